package rotation

import (
	"errors"
	"reflect"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/key"
)

// Presenters that arrive together are told what each would have been told alone,
// in the order of their IDs.
func TestArrivedIsEachJoined(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, acks := fleet(t, rapid.IntRange(0, 20).Draw(rt, "there"))
		if len(acks) > 0 {
			var err error
			if s, _, err = Step(s, Event{Body: Acked{Acks: acks[:rapid.IntRange(1, len(acks)).Draw(rt, "acked")]}}); err != nil {
				rt.Fatal(err)
			}
		}
		alone := s
		var joins []Joined
		for i := range 40 {
			id := strconv.Itoa(100 + i)[1:] // some of those who are there, some not
			if i >= 10 {
				id = strconv.Itoa(i)
			}
			if !rapid.Bool().Draw(rt, "arrives") {
				continue
			}
			j := Joined{ID: id, Stage: rapid.IntRange(0, 2).Draw(rt, "stage"), Holding: key.Version(rapid.IntRange(0, 1).Draw(rt, "holding"))}
			if p, known := s.Presenter(id); known && rapid.Bool().Draw(rt, "heard") {
				j.Epoch = p.Epoch
			}
			joins = append(joins, j)
			var err error
			if alone, _, err = Step(alone, Event{Body: j}); err != nil {
				rt.Fatal(err)
			}
		}
		shuffled := rapid.Permutation(joins).Draw(rt, "order")
		together, _, err := Step(s, Event{Body: Arrived{Joins: shuffled}})
		if len(joins) == 0 {
			if !errors.Is(err, ErrInvalid) {
				rt.Fatalf("nobody arrives: %v", err)
			}
			return
		}
		if err != nil {
			rt.Fatal(err)
		}
		if together.Seq != s.Seq+1 {
			rt.Fatalf("%d events", together.Seq-s.Seq)
		}
		together.Seq = alone.Seq
		if !reflect.DeepEqual(together, alone) {
			rt.Fatalf("together: %+v\nalone: %+v", together, alone)
		}
	})
}

// BenchmarkStepArrived folds the return of 256 of 10,000 presenters.
func BenchmarkStepArrived(b *testing.B) {
	s, acks := fleet(b, 10_000)
	var joins []Joined
	for i := range 256 {
		joins = append(joins, Joined{ID: acks[i*39].ID})
	}
	for b.Loop() {
		if _, _, err := Step(s, Event{Body: Arrived{Joins: joins}}); err != nil {
			b.Fatal(err)
		}
	}
}
