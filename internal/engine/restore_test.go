package engine_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// listing is a system that keeps note of what it holds, and of what was done to it.
type listing struct {
	*system
	mu      sync.Mutex
	held    map[key.Version]bool
	changes int
	// silent makes every question fail.
	silent bool
	// asked are the questions and the fences, as they came.
	asked []string
	fence uint64
}

func (l *listing) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return l, nil
}

func (l *listing) note(v provider.Version, accepted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[v.Number] = accepted
	l.changes++
}

func (l *listing) Accept(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	l.note(v, true)
	return l.system.Accept(ctx, call, endpoint, v)
}

func (l *listing) Refuse(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	l.note(v, false)
	return l.system.Refuse(ctx, call, endpoint, v)
}

func (l *listing) Held(context.Context, provider.Call) ([]provider.Held, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, "held")
	if l.silent {
		return nil, errors.New("it does not answer")
	}
	var list []provider.Held
	for v, accepted := range l.held {
		list = append(list, provider.Held{Endpoint: "one", Version: v, Accepted: accepted})
	}
	return list, nil
}

func (l *listing) Fence(_ context.Context, call provider.Call, endpoint string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, "fence "+endpoint)
	l.fence = max(l.fence, call.Fence)
	return nil
}

func (l *listing) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *listing) changed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// putBack replaces the store by a copy that was made of its file.
func (w *world) putBack(t *testing.T, path, saved string) {
	t.Helper()
	w.Stop()
	if err := w.store.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, rest := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + rest); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(saved)
	if err == nil {
		err = os.WriteFile(path, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if w.store, err = sqlite.Open(t.Context(), sqlite.Config{Path: path}); err != nil {
		t.Fatal(err)
	}
	w.config.Store = w.store
	w.Engine = w.another(t)
}

// restoredWorld is a key that was rotated after the copy that was put back: the
// store remembers v1, and the system accepts v2 only. again begins the engine.
func restoredWorld(t *testing.T) (*world, *listing, *audit.Checkpoint) {
	t.Helper()
	w := newWorld(t)
	l := &listing{system: w.system, held: map[key.Version]bool{}}
	w.config.Drivers = map[string]provider.Driver{"memory": l}
	dir := t.TempDir()
	path, saved := filepath.Join(dir, "k.db"), filepath.Join(dir, "saved.db")
	if err := w.store.Stop(); err != nil {
		t.Fatal(err)
	}
	open := func() {
		var err error
		if w.store, err = sqlite.Open(t.Context(), sqlite.Config{Path: path}); err != nil {
			t.Fatal(err)
		}
		w.config.Store = w.store
		w.Engine = w.another(t)
		w.Start(t.Context())
	}
	open()
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a/b", "p"))
	w.wait(t, w.rotate(t, "a/b"), func(v engine.RotationView) bool { return v.Ended() })
	w.Stop()
	if err := w.store.Stop(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(saved, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	open()
	w.through(t, w.rotate(t, "a/b"))
	signed, err := w.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := audit.ParseVerifier(w.config.Signer.(*audit.Signer).VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	seen, err := audit.OpenCheckpoint(signed, verifier)
	if err != nil {
		t.Fatal(err)
	}
	w.putBack(t, path, saved)
	return w, l, &seen
}

func (w *world) standing(t *testing.T) rotation.State {
	t.Helper()
	view, err := w.Key(t.Context(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	return view.State
}

// TestOldStoreStandsStill: an old database file that was copied into place is
// noticed; nothing outside is changed, commands are refused with the mend, doctor
// says what differs, and one command settles it by a fresh version.
func TestOldStoreStandsStill(t *testing.T) {
	w, l, seen := restoredWorld(t)
	before := l.changed()
	if err := w.Recover(t.Context(), seen); err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context())
	eventually(t, "the differences are found", func() bool {
		state := w.standing(t)
		return len(state.Differences()) == 2
	})
	if _, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: "a/b", Emergency: true}); !errors.Is(err, rotation.ErrRestored) || !strings.Contains(err.Error(), "keyturn reconcile") {
		t.Errorf("an emergency of a key that stands still: %v", err)
	}
	checks, err := w.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, c := range checks {
		if strings.HasPrefix(c.Name, "restore") {
			told = append(told, c.Name+" "+c.Status+" "+c.Message)
		}
	}
	text := strings.Join(told, "\n")
	for _, part := range []string{"restore warning", "1 keys stand still", "restored key a/b failed", "one refuses v1", "one accepts v2"} {
		if !strings.Contains(text, part) {
			t.Errorf("doctor does not say %q:\n%s", part, text)
		}
	}
	if after := l.changed(); after != before {
		t.Errorf("%d changes were made outside before the key was reconciled", after-before)
	}
	if _, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b", How: rotation.AsFound}); !errors.Is(err, rotation.ErrPhase) {
		t.Errorf("as found, with a version whose material is lost: %v", err)
	}
	if _, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b", How: rotation.AsRemembered}); !errors.Is(err, rotation.ErrLockOut) {
		t.Errorf("as remembered, with an unknown version in use: %v", err)
	}
	id, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b", How: rotation.Replace, Reason: "restored"})
	if err != nil {
		t.Fatal(err)
	}
	w.through(t, id)
	state := w.standing(t)
	current := state.Labelled(key.Current)
	if state.Standing() || current <= 1000 {
		t.Errorf("standing %v, current %v", state.Standing(), current)
	}
	l.set(func() {
		if l.held[1] || l.held[2] || !l.held[current] {
			t.Errorf("the system holds %v, current is %v", l.held, current)
		}
	})
	report, err := w.VerifyLog(t.Context(), mustVerifier(t, w))
	if err != nil {
		t.Errorf("the audit log does not verify: %v, %+v", err, report)
	}
	page, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{})
	if err != nil || !strings.Contains(strings.Join(page.Entries, ""), "store.restored") {
		t.Errorf("the audit log does not say where it was cut: %v", err)
	}
	if _, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b", How: rotation.Replace}); !errors.Is(err, engine.ErrState) {
		t.Errorf("reconciling what goes on: %v", err)
	}
}

func mustVerifier(t *testing.T, w *world) interface {
	Name() string
	KeyHash() uint32
	Verify(msg, sig []byte) bool
} {
	t.Helper()
	verifier, err := audit.ParseVerifier(w.config.Signer.(*audit.Signer).VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	return verifier
}

// TestCallsUnderWayArriveFirst: nothing is asked before the longest time that a call
// may take is over since a restored store was noticed, by a clock that does not jump;
// a server that ends meanwhile has not waited for the next one. doctor says so. Then
// the fence is raised before the first question, and later questions do not wait.
func TestCallsUnderWayArriveFirst(t *testing.T) {
	w, l, seen := restoredWorld(t)
	l.set(func() { l.asked = nil })
	var passed atomic.Int64
	began := time.Now()
	w.config.Monotonic = func() time.Time { return began.Add(time.Duration(passed.Load())) }
	w.Engine = w.another(t)
	waits := func(what string) {
		t.Helper()
		if err := w.Recover(t.Context(), seen); err != nil {
			t.Fatal(err)
		}
		w.Start(t.Context())
		eventually(t, what, func() bool { state := w.standing(t); return strings.Contains(state.WhyStanding(), "may arrive") })
		w.jump(time.Hour) // the clock by which jobs are due
		eventually(t, "doctor says that calls may arrive", func() bool {
			checks, err := w.Doctor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(checks, func(c engine.Check) bool {
				return c.Name == "restore" && c.Status == "warning" && strings.Contains(c.Message, "arrive")
			})
		})
		tries := func() (told int) {
			err := w.store.View(t.Context(), func(tx store.Tx) error {
				events, err := tx.Events.Load(t.Context(), "a/b", 0, 1000)
				told = 0
				for _, event := range events {
					if event.Type == "trouble" {
						told++
					}
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return told
		}
		before := tries()
		eventually(t, what+", and is tried again", func() bool { return tries() > before })
		l.set(func() {
			if len(l.asked) > 0 {
				t.Errorf("%s, and the system was asked: %q", what, l.asked)
			}
		})
	}
	waits("it waits")
	passed.Store(int64(w.config.EffectTime) - 1)
	w.Stop()
	w.Engine = w.another(t)
	waits("the next server waits as long")
	passed.Add(int64(w.config.EffectTime))
	eventually(t, "the system is asked", func() bool { state := w.standing(t); return len(state.Differences()) == 2 })
	floor := w.standing(t).Floor
	l.set(func() {
		if len(l.asked) < 2 || l.asked[0] != "fence one" || l.asked[1] != "held" || l.fence <= floor {
			t.Errorf("asked %q behind fence %d; the restore's number is %d", l.asked, l.fence, floor)
		}
		l.asked = nil
	})
	w.Stop()
	w.Engine = w.another(t)
	w.Start(t.Context())
	if _, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a later question does not wait", func() bool {
		asked := 0
		l.set(func() { asked = len(l.asked) })
		return asked > 0
	})
}

// TestNoDataKeepsStandingStill: as long as the system does not answer the key
// stands still and says so; then it goes on without a command when nothing differs.
func TestNoDataKeepsStandingStill(t *testing.T) {
	w, l, _ := restoredWorld(t)
	l.set(func() {
		// Outside, too, everything was put back: only v1 is accepted.
		l.held = map[key.Version]bool{1: true}
		l.Reset(func(password secret.Value) bool { return strings.HasPrefix(password.RevealString(), "a/b 1 ") })
		l.silent = true
	})
	if err := engine.MarkRestored(t.Context(), w.store, engine.RestoreRecord{At: time.Now(), Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context())
	eventually(t, "it says why it stands still", func() bool {
		state := w.standing(t)
		return strings.Contains(state.WhyStanding(), "it does not answer")
	})
	l.set(func() { l.silent = false })
	eventually(t, "it goes on by itself", func() bool {
		state := w.standing(t)
		return !state.Standing()
	})
	w.through(t, w.rotate(t, "a/b"))
}

// TestUnharmedStoreIsNoAlarm: a log that continues what was seen, as after any
// crash, makes nothing stand still; nor does a second Recover after a first one.
func TestUnharmedStoreIsNoAlarm(t *testing.T) {
	w, _, seen := restoredWorld(t)
	if err := w.Recover(t.Context(), seen); err != nil {
		t.Fatal(err)
	}
	floor := w.standing(t).Floor
	if floor == 0 {
		t.Fatal("the old store was not noticed")
	}
	signed, err := w.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now, err := audit.OpenCheckpoint(signed, mustVerifier(t, w))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.another(t).Recover(t.Context(), &now); err != nil {
			t.Fatal(err)
		}
	}
	if again := w.standing(t).Floor; again != floor {
		t.Errorf("the keys were made to stand still again: %d, %d", floor, again)
	}
}

// TestLookAgain: an operator who looks again, or whose picture has changed, does not
// make the key wait for presenters that are there.
func TestLookAgain(t *testing.T) {
	w, _, seen := restoredWorld(t)
	if err := w.Recover(t.Context(), seen); err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context())
	party := engine.PartyRecord{ID: "p", Kind: "agent"}
	if _, err := w.Attach(t.Context(), alice, party, []engine.Holding{{Key: "a/b"}}); err != nil {
		t.Fatal(err)
	}
	floor := w.standing(t).Floor
	if _, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b"}); err != nil {
		t.Fatal(err)
	}
	state := w.standing(t)
	if p, ok := state.Presenter("p"); !ok || p.Silent || state.Floor != floor || !state.Standing() {
		t.Errorf("after looking again: presenter %+v, floor %d then %d", p, floor, state.Floor)
	}
}

// TestKeyAppliedAfterRestore: a key that is applied for the first time in a store that
// was put back may have existed in the time that is missing. It stands still until
// its system was asked, and its numbers are none that can have been given out.
func TestKeyAppliedAfterRestore(t *testing.T) {
	w, l, seen := restoredWorld(t)
	if err := w.Recover(t.Context(), seen); err != nil {
		t.Fatal(err)
	}
	l.set(func() { l.silent = true })
	w.apply(t, keyDoc("c/d", "p"))
	view, err := w.Key(t.Context(), "c/d")
	if err != nil {
		t.Fatal(err)
	}
	if !view.State.Standing() || view.State.Next <= 1000 || view.State.Floor == 0 {
		t.Errorf("standing %v, next %v, floor %d", view.State.Standing(), view.State.Next, view.State.Floor)
	}
}

// TestNumbersAfterTwoRestores: what was minted between two restores of one copy has
// other numbers than what is minted after the second.
func TestNumbersAfterTwoRestores(t *testing.T) {
	w, _, _ := restoredWorld(t)
	first := w.config.Now
	next := func(later time.Duration) key.Version {
		if first == nil {
			first = time.Now
		}
		w.config.Now = func() time.Time { return first().Add(later) }
		w.Engine = w.another(t)
		if err := engine.MarkRestored(t.Context(), w.store, engine.RestoreRecord{At: w.config.Now(), Reason: "a test"}); err != nil {
			t.Fatal(err)
		}
		if err := w.Recover(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		return w.standing(t).Next
	}
	one := next(time.Hour)
	if two := next(2 * time.Hour); one < 1000+3600 || two < one+1000+3600 {
		t.Errorf("the numbers go on at %v after one hour, at %v after two", one, two)
	}
}

// TestDestroyedVersionComesBack: an endpoint that accepts a version whose material is
// destroyed, as it was away when that was revoked, is made to refuse it.
func TestDestroyedVersionComesBack(t *testing.T) {
	w := newWorld(t)
	l := &listing{system: w.system, held: map[key.Version]bool{}}
	w.config.Drivers = map[string]provider.Driver{"memory": l}
	w.Engine = w.another(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("p", "  quarantine: 0s\n  retain: {destroyAfter: 0s}\n"), keyDoc("a/b", "p"))
	for range 2 {
		w.wait(t, w.rotate(t, "a/b"), func(v engine.RotationView) bool { return v.Ended() })
	}
	if state := w.standing(t); len(state.Versions) != 1 {
		t.Fatalf("v1 is not destroyed: %+v", state.Versions)
	}
	w.Stop()
	l.set(func() { l.held[1] = true })
	if err := engine.MarkRestored(t.Context(), w.store, engine.RestoreRecord{At: time.Now(), Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	w.Engine = w.another(t)
	if err := w.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context())
	eventually(t, "v1 is found", func() bool { state := w.standing(t); return len(state.Differences()) == 1 })
	if _, err := w.Reconcile(t.Context(), alice, engine.ReconcileRequest{Key: "a/b", How: rotation.Replace}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "v1 is refused", func() bool {
		refused := false
		l.set(func() { refused = !l.held[1] })
		return refused
	})
}

// TestLastRestore: whoever must not trust what is missing learns when the store was
// put back.
func TestLastRestore(t *testing.T) {
	s := memstore.New()
	if at, err := engine.LastRestore(t.Context(), s); err != nil || !at.IsZero() {
		t.Errorf("a store that never was: %v, %v", at, err)
	}
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := engine.MarkRestored(t.Context(), s, engine.RestoreRecord{At: when}); err != nil {
		t.Fatal(err)
	}
	if at, err := engine.LastRestore(t.Context(), s); err != nil || !at.Equal(when) {
		t.Errorf("%v, %v", at, err)
	}
}
