package emergency_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

func (w *world) orders(t *testing.T, n int) []key.Name {
	t.Helper()
	documents := []string{policyDoc}
	var names []key.Name
	for i := range n {
		names = append(names, key.Name(fmt.Sprintf("prod/orders/db%02d", i)))
		documents = append(documents, keyDoc(string(names[i]), `tier: "1", team: orders`))
	}
	w.apply(t, append(documents, keyDoc("prod/other/db", `tier: "1", team: other`))...)
	w.first(t, append([]key.Name{"prod/other/db"}, names...)...)
	return names
}

func bySelector(selector string) emergency.Request {
	return emergency.Request{Selection: emergency.Selection{Selector: selector}, Strategy: rotation.ContainFirst, Reason: "the laptop was stolen"}
}

// TestGroup: every key with the labels is declared, contained and replaced, and no
// other; the time to the last refusal is measured; who asks again gets the same group.
func TestGroup(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		names := w.orders(t, 5)
		w.apply(t, keyDoc("prod/orders/none", `tier: "1", team: orders`))
		down := atomic.Bool{}
		down.Store(true)
		w.system.SetHook(func(_ context.Context, operation string, name key.Name) error {
			switch {
			case name == "prod/orders/none":
				return errors.New("it is not there")
			case operation == "refuse" && name == names[2] && down.Load():
				return errors.New("connection refused")
			}
			return nil
		})
		request := bySelector("tier=1, team=orders")
		request.RequestID = "r1"
		found, err := w.Find(t.Context(), alice, request)
		if err != nil || len(found.Members) != 6 || !found.ID.IsZero() || !strings.Contains(found.Members[0].Why[0], "team=orders") {
			t.Fatalf("%+v, %v", found, err)
		}
		if list, err := w.Groups(t.Context(), key.RotationID{}, 10); err != nil || len(list) != 0 {
			t.Fatalf("looking declared something: %v, %v", list, err)
		}
		begun := time.Now()
		group, err := w.Declare(t.Context(), alice, request)
		if err != nil || len(group.Members) != 6 || group.Declared.IsZero() {
			t.Fatalf("%+v, %v", group, err)
		}
		for _, m := range group.Members {
			if (m.Key == "prod/orders/none") != (m.Trouble != "") {
				t.Errorf("%s: %q", m.Key, m.Trouble)
			}
		}
		again, err := w.Declare(t.Context(), alice, request)
		if err != nil || again.ID != group.ID {
			t.Errorf("a repeated request led to %v, %v", again.ID, err)
		}
		other := bySelector("tier=1")
		other.RequestID = "r1"
		if _, err := w.Declare(t.Context(), alice, other); !errors.Is(err, engine.ErrInvalid) {
			t.Errorf("the ID of a request served another one: %v", err)
		}
		if _, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: names[0], RequestID: "r1"}); !errors.Is(err, engine.ErrInvalid) {
			t.Errorf("the ID of a group served a rotation: %v", err)
		}

		time.Sleep(5 * time.Second)
		view := w.look(t, group.ID)
		if view.Ended {
			t.Error("the group has ended although a key is not contained")
		}
		for i, m := range view.Members {
			switch r := view.Rotations[i]; {
			case m.Key == "prod/orders/none":
			case r.Group != group.ID || r.Kind != rotation.Emergency || r.Plan.Strategy != rotation.ContainFirst:
				t.Errorf("%s: %+v", m.Key, r)
			case m.Key == names[2]:
				if !r.RefusedAt.IsZero() {
					t.Errorf("%s counts as refused, although it is accepted", m.Key)
				}
			case r.RefusedAt.IsZero() || r.RefusedAt.Sub(begun) > 2*time.Second:
				t.Errorf("%s was refused at %v, declared at %v", m.Key, r.RefusedAt, begun)
			}
		}
		down.Store(false)
		time.Sleep(time.Minute)
		view = w.look(t, group.ID)
		for i, m := range view.Members {
			if m.Key == names[2] && view.Rotations[i].RefusedAt.Sub(begun) < 5*time.Second {
				t.Errorf("%s: refused at %v", m.Key, view.Rotations[i].RefusedAt)
			}
		}
		if v, err := w.Key(t.Context(), "prod/other/db"); err != nil || v.State.Labelled(key.Current) != 1 {
			t.Errorf("a key that is not in the group was replaced: %v", err)
		}
		// One entry for the group, one for each key, with the group's ID.
		if list := w.entries(t, "emergency.declare"); len(list) != 1 || list[0].Target != group.ID.String() || list[0].Detail["keys"] != "6" || list[0].Actor != alice {
			t.Errorf("%+v", list)
		}
		members := w.entries(t, "emergency.member")
		if len(members) != 5 {
			t.Fatalf("%d entries of members", len(members))
		}
		for _, entry := range members {
			if entry.Detail["group"] != group.ID.String() || entry.Actor != alice || entry.Rotation.IsZero() || entry.Reason != "the laptop was stolen" {
				t.Errorf("%+v", entry)
			}
		}
	})
}

func (w *world) look(t *testing.T, id key.RotationID) emergency.View {
	t.Helper()
	view, err := w.View(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// dying is an engine that fails from some declaration on, as if the process died.
type dying struct {
	*engine.Engine
	left atomic.Int32
}

var errDied = errors.New("the process is gone")

func (d *dying) DeclareMember(ctx context.Context, actor audit.Actor, request engine.RotateRequest, member engine.Membership) error {
	if d.left.Add(-1) < 0 {
		return errDied
	}
	return d.Engine.DeclareMember(ctx, actor, request, member)
}

// TestCrashWhileDeclaring: whichever keys were declared when the process died, another
// one declares the rest, and none twice.
func TestCrashWhileDeclaring(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		names := w.orders(t, 4)
		for declared := range len(names) {
			config := w.config
			dies := &dying{Engine: w.Engine}
			dies.left.Store(int32(declared))
			config.Engine = dies
			if _, err := emergency.New(config).Declare(t.Context(), alice, bySelector("team=orders")); !errors.Is(err, errDied) {
				t.Fatal(err)
			}
			groups, err := w.Groups(t.Context(), key.RotationID{}, 1)
			if err != nil || len(groups) != 1 || !groups[0].Declared.IsZero() {
				t.Fatalf("%+v, %v", groups, err)
			}
			ctx, stop := context.WithCancel(t.Context())
			for range 2 { // two nodes
				go w.Run(ctx)
			}
			time.Sleep(30 * time.Second)
			stop()
			synctest.Wait()
			view := w.look(t, groups[0].ID)
			if view.Declared.IsZero() {
				t.Fatalf("after %d declarations the rest was not declared", declared)
			}
			for i, m := range view.Members {
				if m.Trouble != "" || view.Rotations[i] == nil || view.Rotations[i].RefusedAt.IsZero() {
					t.Errorf("%s: %+v", m.Key, m)
				}
			}
			if n := len(w.entries(t, "emergency.member")); n != (declared+1)*len(names) {
				t.Errorf("%d declarations of %d keys in %d groups", n, len(names), declared+1)
			}
		}
	})
}

// TestSelectionIsBounded: what selects nothing, everything or too little is refused.
func TestSelectionIsBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.orders(t, 2)
		for _, test := range []struct {
			request emergency.Request
			want    error
		}{
			{bySelector(""), engine.ErrInvalid},
			{bySelector("a=b=c"), engine.ErrInvalid},
			{bySelector("team=nobody"), engine.ErrNotFound},
			{emergency.Request{Selection: emergency.Selection{Selector: "team=orders"}, Keys: []key.Name{"prod/other/db"}}, engine.ErrInvalid},
		} {
			if _, err := w.Declare(t.Context(), alice, test.request); !errors.Is(err, test.want) {
				t.Errorf("%v: %v", test.request.Selection, err)
			}
		}
		request := bySelector("tier=1")
		request.Visible = func(name key.Name) bool { return name == "prod/orders/db01" }
		if found, err := w.Find(t.Context(), alice, request); err != nil || len(found.Members) != 1 {
			t.Errorf("%+v, %v", found, err)
		}
		if _, err := w.Group(t.Context(), key.RotationID{1}); !errors.Is(err, engine.ErrNotFound) {
			t.Error(err)
		}
	})
}

// TestWatchGroup: every change is told, until the group has ended.
func TestWatchGroup(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.orders(t, 2)
		group, err := w.Declare(t.Context(), alice, bySelector("team=orders"))
		if err != nil {
			t.Fatal(err)
		}
		var views []emergency.View
		if err := w.Watch(t.Context(), group.ID, func(v emergency.View) error {
			views = append(views, v)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if last := views[len(views)-1]; len(views) < 2 || !last.Ended || last.Rotations[0].Phase != rotation.Done || last.Rotations[1].RefusedAt.IsZero() {
			t.Errorf("%d views, the last %+v", len(views), last)
		}
	})
}
