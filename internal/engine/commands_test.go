package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

func TestApprovals(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("p", "  quarantine: 1h\n  approvals: {required: 2}\n"), keyDoc("a", "p"))
	id := w.rotate(t, "a")
	approve := func(who string) error {
		return w.Steer(t.Context(), audit.Actor{ID: who, Kind: "user"}, id, engine.SteerApprove, "")
	}
	if err := approve("alice"); !errors.Is(err, engine.ErrState) {
		t.Errorf("whoever asked approved: %v", err)
	}
	if err := approve("bob"); err != nil {
		t.Fatal(err)
	}
	if err := approve("bob"); !errors.Is(err, rotation.ErrStale) {
		t.Errorf("approving twice: %v", err)
	}
	if view, err := w.Rotation(t.Context(), id); err != nil || view.Phase != rotation.Planned {
		t.Fatalf("one approval of two: %v %v", view.Phase, err)
	}
	if err := approve("carol"); err != nil {
		t.Fatal(err)
	}
	view := w.through(t, id)
	if !slices.Equal(view.Approvals, []string{"bob", "carol"}) {
		t.Errorf("approved by %v", view.Approvals)
	}
	if err := approve("dave"); err == nil {
		t.Error("approved after the fact")
	}
}

func TestRequestIDs(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("p", ""), keyDoc("a", "p"), keyDoc("b", "p"))
	request := engine.RotateRequest{Key: "a", RequestID: "r1"}
	ids := make(chan key.RotationID, 10)
	var running sync.WaitGroup
	for range 10 {
		running.Go(func() {
			id, err := w.Rotate(t.Context(), alice, request)
			if err != nil {
				t.Error(err)
			}
			ids <- id
		})
	}
	running.Wait()
	first := <-ids
	for range 9 {
		if id := <-ids; id != first {
			t.Errorf("%v and %v for one request", first, id)
		}
	}
	if n := len(w.rotations(t, "a")); n != 1 {
		t.Errorf("%d rotations", n)
	}
	other := request
	other.Key = "b"
	if _, err := w.Rotate(t.Context(), alice, other); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("the same ID for another key: %v", err)
	}
	if _, err := w.Rotate(t.Context(), bob, other); err != nil {
		t.Errorf("somebody else's request: %v", err)
	}
	// What failed is not remembered as done.
	busy := engine.RotateRequest{Key: "a", RequestID: "r2"}
	for range 2 {
		if _, err := w.Rotate(t.Context(), alice, busy); !errors.Is(err, rotation.ErrBusy) {
			t.Errorf("got %v", err)
		}
	}
	w.jump(25 * time.Hour)
	engine.Sweep(t.Context(), w.Engine)
	if n, err := engine.Count(t.Context(), w.Engine, engine.KindRequest); n != 0 || err != nil {
		t.Errorf("%d requests are remembered for ever, %v", n, err)
	}
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"), keyDoc("b", "p"))
	id := w.rotate(t, "a")
	if err := w.Steer(t.Context(), bob, id, engine.SteerPause, "lunch"); err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context())
	w.through(t, w.rotate(t, "b")) // others go on meanwhile
	view, err := w.Rotation(t.Context(), id)
	if err != nil || view.Phase != rotation.Planned || view.Hold.Reason != rotation.HoldOperator || view.Hold.Message != "lunch" {
		t.Errorf("%+v %v", view.Hold, err)
	}
	if err := w.Steer(t.Context(), bob, id, engine.SteerResume, ""); err != nil {
		t.Fatal(err)
	}
	w.through(t, id)
	if err := w.Steer(t.Context(), bob, id, engine.SteerResume, ""); !errors.Is(err, engine.ErrState) {
		t.Errorf("resuming what has ended: %v", err)
	}
	page, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{Rotation: id})
	if err != nil {
		t.Fatal(err)
	}
	log := strings.Join(page.Entries, "\n")
	for _, action := range []string{"rotation.pause", "rotation.resume", "lunch", `"bob"`} {
		if !strings.Contains(log, action) {
			t.Errorf("the log lacks %s", action)
		}
	}
}

// A rotation that has begun goes by the plan that it began with.
func TestPolicyChangeKeepsThePlan(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
	id := w.rotate(t, "a")
	w.apply(t, policyDoc("p", "  quarantine: 5h\n  approvals: {required: 3}\n"))
	w.Start(t.Context())
	if view := w.through(t, id); view.Plan.Quarantine != time.Hour || view.Plan.Approvals != 0 {
		t.Errorf("%+v", view.Plan)
	}
}

func TestProviderThatVanishes(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("p", ""), keyDoc("a", "p"))
	w.config.Drivers = map[string]provider.Driver{}
	w.Engine = w.another(t)
	w.Start(t.Context())
	view := w.wait(t, w.rotate(t, "a"), func(v engine.RotationView) bool { return v.Ended() || v.Hold.Human })
	timeline, err := w.Timeline(t.Context(), view.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(fmt.Sprint(timeline), "unknown provider") {
		t.Errorf("%v, and nobody says why: %v", view.Phase, timeline)
	}
}

func TestProviderThatPanics(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	panics := 0
	w.system.SetHook(func(_ context.Context, operation string, _ key.Name) error {
		if operation == "accept" && panics < 2 {
			panics++
			panic("out of order")
		}
		return nil
	})
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
	w.through(t, w.rotate(t, "a"))
	if panics != 2 {
		t.Errorf("%d panics", panics)
	}
}

func TestDeletion(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("used", "p"), keyDoc("watched", "p"), keyDoc("idle", "p"))
	w.through(t, w.rotate(t, "used"))
	party := engine.PartyRecord{ID: "web", Kind: "agent"}
	if _, err := w.Attach(t.Context(), alice, party, []engine.Holding{{Key: "watched"}}); err != nil {
		t.Fatal(err)
	}
	prune := engine.ApplyRequest{Prune: true}
	if codes := w.try(t, prune, policyDoc("p", "  quarantine: 1h\n")); !slices.Equal(codes, []string{"key-in-use", "key-in-use"}) {
		t.Errorf("deleting keys in use: %v", codes)
	}
	if codes := w.try(t, prune, keyDoc("used", "p"), keyDoc("watched", "p")); !slices.Equal(codes, []string{"policy-in-use"}) {
		t.Errorf("deleting a policy in use: %v", codes)
	}
	if _, err := w.Key(t.Context(), "idle"); err != nil {
		t.Errorf("a refused prune deleted something: %v", err)
	}
	if codes := w.try(t, prune, policyDoc("p", "  quarantine: 1h\n"), keyDoc("used", "p"), keyDoc("watched", "p")); len(codes) != 0 {
		t.Errorf("deleting an idle key: %v", codes)
	}
	if _, err := w.Key(t.Context(), "idle"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	// Whose token covers some keys prunes those alone.
	some := engine.ApplyRequest{Prune: true, Allowed: func(name key.Name) bool { return name == "mine" }}
	if codes := w.try(t, some, policyDoc("p", "  quarantine: 1h\n")); len(codes) != 0 {
		t.Errorf("pruning nothing of one's own: %v", codes)
	}
	if _, err := w.Key(t.Context(), "used"); err != nil {
		t.Error(err)
	}
}

// No secret leaves before its reading is in the log.
func TestRevealIsAuditedFirst(t *testing.T) {
	w := newWorld(t)
	w.Start(t.Context())
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
	w.through(t, w.rotate(t, "a"))
	v, material, err := w.Reveal(t.Context(), bob, "", "a", 0, key.Current)
	if err != nil || v != 1 || material.Secrets["password"].RevealString() == "" {
		t.Fatalf("%v %v", v, err)
	}
	for name, reveal := range map[string]struct {
		version key.Version
		label   key.Label
	}{"no such version": {version: 99}, "no such label": {label: key.Previous}} {
		if _, _, err := w.Reveal(t.Context(), bob, "", "a", reveal.version, reveal.label); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	page, err := w.ReadLog(t.Context(), 0, 1000, engine.LogFilter{Key: "a"})
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	for _, line := range page.Entries {
		if entry, err := audit.Decode([]byte(line)); err != nil || entry.Action == audit.ActionRead {
			reads++
			if entry.Actor.ID != "bob" || entry.Version != 1 {
				t.Errorf("%s %v", line, err)
			}
		}
	}
	if reads != 1 {
		t.Errorf("%d readings are in the log", reads)
	}
	if err := w.store.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, material, err := w.Reveal(t.Context(), bob, "", "a", 1, 0); err == nil || len(material.Secrets) > 0 {
		t.Error("a secret left although nothing could be written")
	}
}

// A worker that hangs loses its lease; another server repeats the effect, and
// the first one's late result changes nothing.
func TestLostLeaseEndsTheSame(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("p", "  quarantine: 1h\n"), keyDoc("a", "p"))
	var hung atomic.Bool
	hanging, release := make(chan struct{}), make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free)
	w.system.SetHook(func(_ context.Context, operation string, _ key.Name) error {
		if operation == "mint" && !hung.Swap(true) {
			close(hanging)
			<-release // it heeds no context
		}
		return nil
	})
	w.Start(t.Context())
	id := w.rotate(t, "a")
	<-hanging
	other := w.another(t)
	other.Start(t.Context())
	defer other.Stop()
	w.through(t, id)
	_, before, err := w.Reveal(t.Context(), bob, "", "a", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	free()
	w.Stop() // it has recorded, or dropped, what it held
	_, after, err := w.Reveal(t.Context(), bob, "", "a", 1, 0)
	if err != nil || before.Secrets["password"].RevealString() != after.Secrets["password"].RevealString() {
		t.Errorf("the late result replaced the version: %v", err)
	}
	if n := len(w.rotations(t, "a")); n != 1 {
		t.Errorf("%d rotations", n)
	}
	checks, err := other.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range checks {
		if check.Status == "failed" {
			t.Errorf("%+v", check)
		}
	}
}
