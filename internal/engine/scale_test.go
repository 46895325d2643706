package engine_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// The time of a look around grows with what is due, not with what exists.
func TestTickCostsWhatIsDue(t *testing.T) {
	w := newWorld(t)
	w.apply(t, policyDoc("daily", daily), keyDoc("real", "daily"))
	tick := func() time.Duration {
		var took []time.Duration
		for range 11 {
			began := time.Now()
			if err := w.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	tick() // handles what applying made due
	few := tick()
	const many = 20_000
	body := make([]byte, 400)
	for from := 0; from < many; from += 5000 {
		err := w.store.Update(t.Context(), func(tx store.Tx) error {
			for i := range 5000 {
				for _, kind := range []string{"key", "state"} {
					doc := store.Doc{Kind: kind, Name: fmt.Sprintf("idle/%05d", from+i), Due: time.Now().UTC().Add(time.Hour), Body: body}
					if _, err := tx.Docs.Put(t.Context(), doc); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Reading them all takes more than 100 times as long as looking at none.
	if all := tick(); all > 20*few+20*time.Millisecond {
		t.Errorf("%v with one key, %v with %d that are not due", few, all, many)
	}
}

// A fleet that comes back, holding what it was told, writes nothing; and what it
// then acknowledges together is a few events.
func TestFleetComesBack(t *testing.T) {
	w := withVersion(t)
	const fleet = 500
	var acks []rotation.Ack
	attachAll := func(holding func(i int) engine.Holding) map[int]engine.Tell {
		tells := make([]engine.Tell, fleet)
		done := make(chan error, fleet)
		for i := range fleet {
			go func() {
				told, err := w.Attach(t.Context(), alice, engine.PartyRecord{ID: fmt.Sprint("web", i), Kind: "agent"}, []engine.Holding{holding(i)})
				tells[i] = told["a"]
				done <- err
			}()
		}
		byParty := map[int]engine.Tell{}
		for range fleet {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		for i, tell := range tells {
			byParty[i] = tell
		}
		return byParty
	}
	tells := attachAll(func(int) engine.Holding { return engine.Holding{Key: "a"} })
	for i, tell := range tells {
		acks = append(acks, rotation.Ack{ID: fmt.Sprint("web", i), Epoch: tell.Epoch, OK: true, Using: tell.Version})
	}
	if err := w.Acknowledge(t.Context(), alice, "a", acks); err != nil {
		t.Fatal(err)
	}
	w.Stop()
	w.Engine = w.another(t) // a restart: nothing is cached
	w.Start(t.Context())
	before := w.events(t, "a")
	again := attachAll(func(i int) engine.Holding {
		return engine.Holding{Key: key.Name("a"), Version: tells[i].Version, Epoch: tells[i].Epoch}
	})
	for i, tell := range again {
		if tell.Epoch != tells[i].Epoch || tell.Unanswered {
			t.Fatalf("party %d: %+v after %+v", i, tell, tells[i])
		}
	}
	if after := w.events(t, "a"); after != before {
		t.Errorf("%d events for coming back", after-before)
	}
}
