package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

func (w *world) attach(t *testing.T, id string, holdings ...engine.Holding) map[key.Name]engine.Tell {
	t.Helper()
	tells, err := w.Attach(t.Context(), alice, engine.PartyRecord{ID: id, Kind: "agent"}, holdings)
	if err != nil {
		t.Fatal(err)
	}
	return tells
}

func (w *world) events(t *testing.T, name key.Name) uint64 {
	t.Helper()
	view, err := w.Key(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return view.State.Seq
}

// withVersion is a world with key a, whose version 1 is current.
func withVersion(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"), keyDoc("b", "p"))
	w.through(t, w.rotate(t, "a"))
	return w
}

func TestAttachAgainWritesNothing(t *testing.T) {
	w := withVersion(t)
	tell := w.attach(t, "web", engine.Holding{Key: "a"})["a"]
	if tell.Version != 1 || tell.Epoch == 0 || !tell.Unanswered {
		t.Fatalf("%+v", tell)
	}
	holding := engine.Holding{Key: "a", Version: 1, Epoch: tell.Epoch}
	ack := rotation.Ack{ID: "web", Epoch: tell.Epoch, OK: true, Using: 1}
	if err := w.Acknowledge(t.Context(), alice, "a", []rotation.Ack{ack}); err != nil {
		t.Fatal(err)
	}
	before := w.events(t, "a")
	if tell = w.attach(t, "web", holding)["a"]; tell.Unanswered || tell.Version != 1 {
		t.Errorf("%+v", tell)
	}
	if after := w.events(t, "a"); after != before {
		t.Errorf("%d events for coming back", after-before)
	}
	// A party that lost what it had is told anew.
	if again := w.attach(t, "web", engine.Holding{Key: "a"})["a"]; again.Epoch <= tell.Epoch || !again.Unanswered {
		t.Errorf("%+v after %+v", again, tell)
	}
}

// TestFailedAnswerIsAskedForAgain: a presenter said that it could not follow, could
// then, and crashed before it said so. When it comes back it holds what it was told,
// and is told again, or a rotation would wait for its answer for ever.
func TestFailedAnswerIsAskedForAgain(t *testing.T) {
	w := withVersion(t)
	tell := w.attach(t, "web", engine.Holding{Key: "a"})["a"]
	bad := rotation.Ack{ID: "web", Epoch: tell.Epoch, Order: 1, Detail: "reload failed"}
	if err := w.Acknowledge(t.Context(), alice, "a", []rotation.Ack{bad}); err != nil {
		t.Fatal(err)
	}
	holding := engine.Holding{Key: "a", Version: 1, Epoch: tell.Epoch}
	if again := w.attach(t, "web", holding)["a"]; again.Epoch != tell.Epoch || !again.Unanswered {
		t.Errorf("%+v after %+v", again, tell)
	}
	good := rotation.Ack{ID: "web", Epoch: tell.Epoch, Order: 2, OK: true, Using: 1}
	if err := w.Acknowledge(t.Context(), alice, "a", []rotation.Ack{good}); err != nil {
		t.Fatal(err)
	}
	if again := w.attach(t, "web", holding)["a"]; again.Unanswered {
		t.Errorf("it has said that it follows, and is told again: %+v", again)
	}
}

func TestAttachUnknownKeyAttachesNothing(t *testing.T) {
	w := withVersion(t)
	holdings := []engine.Holding{{Key: "a"}, {Key: "nosuch"}}
	if _, err := w.Attach(t.Context(), alice, engine.PartyRecord{ID: "web"}, holdings); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := w.Party(t.Context(), "web"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("it is registered: %v", err)
	}
}

// One party must not use up the numbers by which all others order their tellings.
func TestEpochsCannotBeUsedUp(t *testing.T) {
	w := withVersion(t)
	for _, epoch := range []uint64{math.MaxUint64, 1 << 62, engine.MaxEpochAhead + 1000} {
		_, err := w.Attach(t.Context(), alice, engine.PartyRecord{ID: "web"}, []engine.Holding{{Key: "a", Version: 1, Epoch: epoch}})
		if !errors.Is(err, engine.ErrInvalid) {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
	// A database that was restored is behind its parties.
	if tell := w.attach(t, "web", engine.Holding{Key: "a", Version: 1, Epoch: 5000})["a"]; tell.Epoch <= 5000 {
		t.Errorf("%+v", tell)
	}
}

func TestUnknownVersionsAreNotBelieved(t *testing.T) {
	w := withVersion(t)
	tell := w.attach(t, "web", engine.Holding{Key: "a", Version: 77})["a"]
	if tell.Version != 1 {
		t.Errorf("%+v", tell)
	}
	w.attach(t, "good", engine.Holding{Key: "a"})
	view, err := w.Key(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	good, _ := view.State.Presenter("good")
	acks := []rotation.Ack{
		{ID: "web", Epoch: tell.Epoch, Using: 77, Detail: "x"},
		{ID: "good", Epoch: good.Epoch, OK: true, Using: 1},
	}
	var refused engine.Refused
	if err := w.Acknowledge(t.Context(), alice, "a", acks); !errors.As(err, &refused) || len(refused) != 1 || !errors.Is(refused["web"], engine.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if view, err = w.Key(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if good, _ = view.State.Presenter("good"); !good.Uses(1) {
		t.Errorf("the good answer was lost: %+v", good)
	}
	if web, _ := view.State.Presenter("web"); web.MayUse(77) {
		t.Errorf("the bad one was believed: %+v", web)
	}
	if err := w.Acknowledge(t.Context(), alice, "nosuch", acks); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("answers for a key that does not exist: %v", err)
	}
	if err := w.Acknowledge(t.Context(), alice, "a", []rotation.Ack{{ID: "stranger", Epoch: 1, Using: 1}}); err != nil {
		t.Errorf("an answer that nobody waits for: %v", err)
	}
}

func TestDetach(t *testing.T) {
	w := withVersion(t)
	w.attach(t, "web", engine.Holding{Key: "a"}, engine.Holding{Key: "b"})
	w.attach(t, "web", engine.Holding{Key: "b"})
	if view, err := w.Key(t.Context(), "a"); err != nil || len(view.State.Presenters) != 0 {
		t.Errorf("it still presents a: %v %v", view.State.Presenters, err)
	}
	if err := w.Detach(t.Context(), bob, "web", "test", nil); err != nil {
		t.Fatal(err)
	}
	if view, err := w.Key(t.Context(), "b"); err != nil || len(view.State.Presenters) != 0 {
		t.Errorf("it still presents b: %v %v", view.State.Presenters, err)
	}
	if err := w.Detach(t.Context(), bob, "web", "test", nil); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
}

func TestReadLogPages(t *testing.T) {
	w := withVersion(t)
	for i := range 25 {
		entry := audit.Entry{Action: "test.note", Target: fmt.Sprint(i)}
		if i%5 == 0 {
			entry.Key = "b"
		}
		if err := w.Record(t.Context(), bob, entry); err != nil {
			t.Fatal(err)
		}
	}
	all, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{})
	if err != nil || uint64(len(all.Entries)) != all.Size || all.Next != all.Size {
		t.Fatalf("%d of %d entries, next %d, %v", len(all.Entries), all.Size, all.Next, err)
	}
	var pieces []string
	for from := uint64(0); from < all.Size; {
		page, err := w.ReadLog(t.Context(), from, 3, engine.LogFilter{})
		if err != nil || len(page.Entries) > 3 || page.Next <= from {
			t.Fatalf("%+v %v", page, err)
		}
		pieces, from = append(pieces, page.Entries...), page.Next
	}
	if fmt.Sprint(pieces) != fmt.Sprint(all.Entries) {
		t.Error("the pages differ from the whole")
	}
	only := func(name key.Name) bool { return name == "b" }
	page, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{Visible: only})
	if err != nil || len(page.Entries) < 5 {
		t.Fatalf("%d entries of b, %v", len(page.Entries), err)
	}
	for _, line := range page.Entries {
		if entry, err := audit.Decode([]byte(line)); err != nil || entry.Key != "b" {
			t.Errorf("%s %v", line, err)
		}
	}
	for _, from := range []uint64{all.Size, all.Size + 1, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64} {
		if page, err := w.ReadLog(t.Context(), from, 10, engine.LogFilter{}); err != nil || len(page.Entries) != 0 || page.Next != from {
			t.Errorf("from %d: %+v %v", from, page, err)
		}
	}
}

// Of the signatures of a busy log one an hour remains, and the last one always.
func TestCheckpointsAreThinnedOut(t *testing.T) {
	w := newWorld(t)
	sign := func() {
		t.Helper()
		if err := w.Record(t.Context(), bob, audit.Entry{Action: "test.note"}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		t.Helper()
		engine.Sweep(t.Context(), w.Engine)
		n, err := engine.Count(t.Context(), w.Engine, engine.KindCheckpoint)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 50 {
		sign()
		w.jump(6 * time.Minute) // 5 hours
	}
	if n := count(); n != 50 {
		t.Fatalf("%d of the last day", n)
	}
	w.jump(24 * time.Hour)
	if n := count(); n < 5 || n > 6 {
		t.Errorf("%d of five hours of the day before", n)
	}
	if n := count(); n < 5 || n > 6 {
		t.Errorf("%d after another look", n)
	}
	signer, ok := w.config.Signer.(*audit.Signer)
	if !ok {
		t.Fatal("another signer")
	}
	verifier, err := audit.ParseVerifier(signer.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	if report, err := w.VerifyLog(t.Context(), verifier); err != nil {
		t.Errorf("%+v %v", report, err)
	}
	sign()
	w.jump(1000 * time.Hour)
	if n := count(); n < 6 || n > 7 {
		t.Errorf("%d: the last one is gone", n)
	}
}

// A fleet that comes back is a few events, and what one party gets wrong is told
// to that one.
func TestPartiesThatAttachTogether(t *testing.T) {
	w := withVersion(t)
	const fleet = 300
	before := w.events(t, "a")
	var running sync.WaitGroup
	release := make(chan struct{})
	var problems, told atomic.Int64
	for i := range fleet {
		running.Go(func() {
			<-release
			holdings := []engine.Holding{{Key: "a"}}
			actor := audit.Actor{ID: fmt.Sprint("token", i), Kind: "agent"}
			switch {
			case i == 103:
				actor.Kind = "Not a word" // nobody else must suffer from it
			case i%100 == 1:
				holdings = append(holdings, engine.Holding{Key: "nosuch"})
			case i%100 == 2:
				holdings[0].Epoch = math.MaxUint64
			case i%2 == 0:
				holdings = append(holdings, engine.Holding{Key: "b"})
			}
			tells, err := w.Attach(t.Context(), actor, engine.PartyRecord{ID: fmt.Sprint("web", i), Kind: "agent"}, holdings)
			if i == 103 && !errors.Is(err, audit.ErrEntry) || i%100 == 1 && !errors.Is(err, engine.ErrNotFound) || i%100 == 2 && !errors.Is(err, engine.ErrInvalid) {
				t.Errorf("party %d: %v", i, err)
			}
			if err != nil {
				problems.Add(1)
				return
			}
			if tells["a"].Version != 1 || tells["a"].Presenter != fmt.Sprint("web", i) || len(tells) != 1 {
				t.Errorf("party %d: %+v", i, tells)
			}
			told.Add(1)
		})
	}
	close(release)
	running.Wait()
	if problems.Load() != 7 || told.Load() != fleet-7 {
		t.Errorf("%d failed, %d were told", problems.Load(), told.Load())
	}
	if events := w.events(t, "a") - before; events > fleet/3 {
		t.Errorf("%d events for %d parties", events, fleet)
	}
	view, err := w.Key(t.Context(), "a")
	if err != nil || len(view.State.Presenters) != fleet-7 {
		t.Errorf("%d presenters, %v", len(view.State.Presenters), err)
	}
	joined := map[string]bool{}
	page, err := w.ReadLog(t.Context(), 0, 10_000, engine.LogFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range page.Entries {
		if strings.Contains(entry, `"party.join"`) {
			_, actor, _ := strings.Cut(entry, `"token`)
			number, _, _ := strings.Cut(actor, `"`)
			joined[number] = true
		}
	}
	if len(joined) != fleet-7 {
		t.Errorf("%d parties joined in their own name", len(joined))
	}
	checks, err := w.Doctor(t.Context())
	for _, check := range checks {
		if check.Status == "failed" {
			t.Errorf("%+v", check)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// Who gives up waiting leaves the others alone.
func TestArrivalGivesUp(t *testing.T) {
	w := withVersion(t)
	var running sync.WaitGroup
	for i := range 100 {
		running.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			if i%3 == 0 {
				cancel()
			}
			defer cancel()
			_, err := w.Attach(ctx, alice, engine.PartyRecord{ID: fmt.Sprint("web", i)}, []engine.Holding{{Key: "a"}})
			if err != nil && (i%3 != 0 || !errors.Is(err, context.Canceled)) {
				t.Errorf("party %d: %v", i, err)
			}
		})
	}
	running.Wait()
	w.attach(t, "last", engine.Holding{Key: "a"})
}
