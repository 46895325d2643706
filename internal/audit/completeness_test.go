package audit_test

import (
	"slices"
	"testing"

	"github.com/keyturn/keyturn/internal/audit"
)

func TestReconcile(t *testing.T) {
	var steps []audit.Transition
	var log []audit.Entry
	for i := range 4 {
		e := entry(i)
		e.Seq = uint64(10 + i)
		log = append(log, e)
		steps = append(steps, audit.Transition{Rotation: e.Rotation, Event: e.Event, From: e.From, To: e.To})
	}
	read := entry(9)
	read.Action = audit.ActionRead
	denied := entry(10)
	denied.Outcome = audit.OutcomeDenied
	log = append(log, read, denied)

	whole := audit.Reconcile(slices.Values(steps), slices.Values(log))
	if ratio, ok := whole.Ratio(); !whole.Complete() || !ok || ratio != 1 || whole.Recorded != 4 {
		t.Errorf("got %+v", whole)
	}

	twice := append(slices.Clone(log), log[2])
	gap := audit.Reconcile(slices.Values(steps), slices.Values(slices.Delete(twice, 1, 2)))
	if ratio, _ := gap.Ratio(); gap.Complete() || ratio != 0.75 || !slices.Equal(gap.Missing, steps[1:2]) || !slices.Equal(gap.Extra, []uint64{12}) {
		t.Errorf("one missing and one twice: got %+v", gap)
	}

	// An entry that tells another transition does not count as the right one.
	other := slices.Clone(log)
	other[0].To = "revoking"
	wrong := audit.Reconcile(slices.Values(steps), slices.Values(other))
	if len(wrong.Missing) != 1 || !slices.Equal(wrong.Extra, []uint64{10}) {
		t.Errorf("another phase: got %+v", wrong)
	}

	none := audit.Reconcile(slices.Values([]audit.Transition(nil)), slices.Values([]audit.Entry(nil)))
	if _, ok := none.Ratio(); ok {
		t.Error("no data became a ratio")
	}
}
