package signals

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

type changes struct {
	Source
	list []engine.KeyState
}

func (c *changes) Changed(_ context.Context, after uint64, limit int) ([]engine.KeyState, uint64, error) {
	rest := c.list[min(int(after), len(c.list)):]
	rest = rest[:min(limit, len(rest))]
	return rest, after + uint64(len(rest)), nil
}

func drawState(rt *rapid.T) rotation.State {
	var s rotation.State
	if rapid.Bool().Draw(rt, "keyed") {
		minted := time.Unix(1_700_000_000+rapid.Int64Range(0, 30_000).Draw(rt, "minted"), 0)
		s.Versions = append(s.Versions, rotation.Version{Number: 1, Label: key.Current, MintedAt: minted})
	}
	if rapid.Bool().Draw(rt, "compromised") {
		s.Versions = append(s.Versions, rotation.Version{Number: 2, State: key.Compromised})
		s.Verifiers = []rotation.Verifier{{ID: "a", Region: "eu", Slots: []rotation.Slot{{Version: 2, Acceptance: rotation.Accepted}}}}
	}
	for i := range rapid.IntRange(0, 4).Draw(rt, "presenters") {
		s.Presenters = append(s.Presenters, rotation.Presenter{
			ID: fmt.Sprint(i), Region: rapid.SampledFrom([]string{"eu", "us", ""}).Draw(rt, "region"), Failed: rapid.Bool().Draw(rt, "failed"),
		})
	}
	if rapid.Bool().Draw(rt, "rotating") {
		s.Rotations = []rotation.Rotation{{ID: key.RotationID{1}, Phase: rotation.Draining}}
	}
	return s
}

// What is kept by changes is what a look at all keys would find.
func TestInventoryFollowsChanges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		source := &changes{}
		known := newInventory(5)
		last := map[key.Name]engine.KeyState{}
		for range rapid.IntRange(1, 4).Draw(rt, "looks") {
			for range rapid.IntRange(0, 30).Draw(rt, "changes") {
				k := engine.KeyState{Name: key.Name(fmt.Sprintf("k%02d", rapid.IntRange(0, 12).Draw(rt, "key")))}
				if k.Deleted = rapid.IntRange(0, 4).Draw(rt, "deleted") == 0; !k.Deleted {
					k.State = drawState(rt)
				}
				source.list = append(source.list, k)
				last[k.Name] = k
			}
			if err := known.catchUp(context.Background(), source, time.Now); err != nil {
				rt.Fatal(err)
			}
		}
		fresh := newInventory(1000)
		all := &changes{}
		for _, k := range last {
			all.list = append(all.list, k)
		}
		if err := fresh.catchUp(context.Background(), all, time.Now); err != nil {
			rt.Fatal(err)
		}
		if known.unkeyed != fresh.unkeyed || known.unrefused != fresh.unrefused || !maps.Equal(known.hours, fresh.hours) ||
			!maps.Equal(known.presenters, fresh.presenters) || !reflect.DeepEqual(known.open, fresh.open) || len(known.idle) != len(fresh.idle) || len(known.more) != len(fresh.more) {
			rt.Fatalf("by changes %+v\nat once %+v", known, fresh)
		}
		if len(known.first) > 5 {
			rt.Fatalf("%d first keys", len(known.first))
		}
		for i, m := range known.first {
			if i > 0 && known.first[i-1].key >= m.key || last[m.key].Deleted || !m.at.Equal(last[m.key].State.Versions[0].MintedAt) {
				rt.Fatalf("first keys %v", known.first)
			}
		}
	})
}
