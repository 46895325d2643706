package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Check is one finding of Doctor.
type Check struct {
	Name string
	// Status is "ok", "warning", "failed" or "no-data".
	Status  string
	Message string
	Hint    string
}

// Doctor compares what is stored with what follows from the events, and looks
// for what an operator should mend. It changes nothing. Its time grows with the
// histories of all keys; its memory with their number, by some bytes each; and it
// holds no snapshot for longer than one page takes.
func (e *Engine) Doctor(ctx context.Context) ([]Check, error) {
	x := examination{
		e: e, seed: maphash.MakeSeed(), counted: map[uint64]uint64{}, held: map[key.Name]int{}, problems: map[key.Name]string{},
	}
	if err := x.run(ctx); err != nil {
		return nil, err
	}
	var checks []Check
	for _, name := range slices.Sorted(maps.Keys(x.problems)) {
		checks = append(checks, Check{
			Name: "history of " + string(name), Status: "failed", Message: x.problems[name],
			Hint: "restore the database from a backup; the stored state is not what the events lead to",
		})
	}
	if len(x.problems) == 0 {
		checks = append(checks, Check{Name: "histories", Status: "ok", Message: fmt.Sprintf("the histories of %d keys lead to their states", len(x.counted))})
	}
	held := 0
	for _, n := range x.held {
		held += n
	}
	recovery, err := e.recoveryChecks(ctx)
	return append(append(checks, heldCheck(held)), append(recovery, x.complete)...), err
}

// examinePage is how many keys, or entries of the log, are examined in one view.
const examinePage = 250

// examination compares histories with states, and with the audit log, page by page.
// Keys are taken in the order of their last changes, so that one that changes
// meanwhile is met again; then only its new events count.
type examination struct {
	e    *Engine
	seed maphash.Seed
	// revision and entries are how far the states and the log have been read.
	revision, entries uint64
	// counted is up to which event the transitions of a key are in the sum, by a hash
	// of its name.
	counted  map[uint64]uint64
	held     map[key.Name]int
	problems map[key.Name]string
	// events and log are the sums over the transitions that the events tell of, and
	// over those that are in the log.
	events, log audit.Sum
	// damaged: an entry of the log cannot be read.
	damaged  bool
	complete Check
}

func (x *examination) run(ctx context.Context) error {
	if err := x.findStateless(ctx); err != nil {
		return err
	}
	for more := true; more; {
		err := x.e.store.View(ctx, func(tx store.Tx) error {
			var err error
			more, err = x.readLog(ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
	}
	for more := true; more; {
		err := x.e.store.View(ctx, func(tx store.Tx) error {
			var err error
			more, err = x.readKeys(ctx, tx)
			if more || err != nil {
				return err
			}
			return x.compare(ctx, tx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// findStateless finds keys whose state is missing.
func (x *examination) findStateless(ctx context.Context) error {
	for after, more := "", true; more; {
		err := x.e.store.View(ctx, func(tx store.Tx) error {
			docs, err := tx.Index.List(ctx, kindKey, "", after, examinePage)
			if err != nil {
				return err
			}
			more = len(docs) == examinePage
			for _, doc := range docs {
				after = doc.Name
				_, err := store.Revision(ctx, tx.Docs, kindState, doc.Name)
				if errors.Is(err, store.ErrNotFound) {
					x.problems[key.Name(doc.Name)], err = "it has no state", nil
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readLog reads a page of the log and reports whether there is more.
func (x *examination) readLog(ctx context.Context, tx store.Tx) (more bool, err error) {
	records, _, err := tx.Log.Records(ctx, x.entries, 4*examinePage)
	if err != nil {
		return false, err
	}
	for _, record := range records {
		x.entries++
		entry, err := audit.Decode(record)
		if err != nil {
			x.damaged = true // the exact comparison tells which one
			continue
		}
		x.log.Entry(entry)
	}
	return len(records) == 4*examinePage, nil
}

// readKeys examines a page of keys and reports whether there is more.
func (x *examination) readKeys(ctx context.Context, tx store.Tx) (more bool, err error) {
	docs, err := tx.Index.Since(ctx, kindState, x.revision, examinePage)
	if err != nil {
		return false, err
	}
	for _, doc := range docs {
		x.revision = doc.Rev
		if err := x.readKey(ctx, tx, doc); err != nil {
			return false, err
		}
	}
	return len(docs) == examinePage, nil
}

func (x *examination) readKey(ctx context.Context, tx store.Tx, doc store.Doc) error {
	name := key.Name(doc.Name)
	id := maphash.String(x.seed, doc.Name)
	problem, held, transitions, err := x.e.examine(ctx, tx, doc)
	if err != nil {
		return err
	}
	delete(x.problems, name)
	delete(x.held, name)
	if problem != "" {
		x.problems[name] = problem
	}
	if held > 0 {
		x.held[name] = held
	}
	last := x.counted[id]
	for _, t := range transitions {
		if t.Event > x.counted[id] {
			x.events.Transition(t)
			last = max(last, t.Event)
		}
	}
	x.counted[id] = last
	return nil
}

// compare compares the two sums within one view. When they differ it compares one
// by one, which takes memory for every transition.
func (x *examination) compare(ctx context.Context, tx store.Tx) error {
	for more := true; more; {
		var err error
		if more, err = x.readLog(ctx, tx); err != nil {
			return err
		}
	}
	x.complete = Check{Name: "audit completeness"}
	switch {
	case x.damaged || x.events != x.log:
		return x.compareExactly(ctx, tx)
	case x.events.Count() == 0:
		x.complete.Status, x.complete.Message = "no-data", "no rotation has moved yet"
	default:
		x.complete.Status, x.complete.Message = "ok", fmt.Sprintf("100 %% of %d transitions are in the audit log", x.events.Count())
	}
	return nil
}

func (x *examination) compareExactly(ctx context.Context, tx store.Tx) error {
	var expected []audit.Transition
	for revision, more := uint64(0), true; more; {
		docs, err := tx.Index.Since(ctx, kindState, revision, examinePage)
		if err != nil {
			return err
		}
		more = len(docs) == examinePage
		for _, doc := range docs {
			revision = doc.Rev
			_, _, transitions, err := x.e.examine(ctx, tx, doc)
			if err != nil {
				return err
			}
			expected = append(expected, transitions...)
		}
	}
	var err error
	x.complete, err = completeness(ctx, tx, expected)
	return err
}

func heldCheck(held int) Check {
	if held == 0 {
		return Check{Name: "held rotations", Status: "ok", Message: "no rotation is on hold"}
	}
	return Check{Name: "held rotations", Status: "warning", Message: fmt.Sprintf("%d rotations are on hold", held), Hint: "see keyturn rotation list --open"}
}

// examine replays a key's events and compares the outcome with its state as it is
// stored.
func (e *Engine) examine(ctx context.Context, tx store.Tx, doc store.Doc) (problem string, held int, transitions []audit.Transition, err error) {
	name := key.Name(doc.Name)
	var state rotation.State
	if err := rotation.UnmarshalState(doc.Body, &state); err != nil {
		return fmt.Sprintf("the stored state is damaged: %v", err), 0, nil, nil
	}
	for i := range state.Rotations {
		if state.Rotations[i].Hold.Reason != "" {
			held++
		}
	}
	var replayed rotation.State
	err = e.replay(ctx, tx, name, func(event store.Event, before, after rotation.State) error {
		for _, t := range rotation.Diff(before, after) {
			if t.Kind == rotation.RotationPhase {
				transitions = append(transitions, audit.Transition{Rotation: t.Rotation, Event: event.Seq, From: t.From, To: t.To})
			}
		}
		replayed = after
		return nil
	})
	if err != nil {
		return err.Error(), held, transitions, nil //nolint:nilerr // the error is the finding
	}
	stored, err := encode(state)
	if err != nil {
		return "", held, nil, err
	}
	folded, err := encode(replayed)
	if err != nil {
		return "", held, nil, err
	}
	if string(stored) != string(folded) {
		problem = fmt.Sprintf("the state after event %d is not what the events lead to", state.Seq)
	}
	return problem, held, transitions, nil
}

// completeness compares the transitions that took place with the audit log.
func completeness(ctx context.Context, tx store.Tx, expected []audit.Transition) (Check, error) {
	check := Check{Name: "audit completeness"}
	var failure error
	entries := func(yield func(audit.Entry) bool) {
		for next := uint64(0); ; {
			records, _, err := tx.Log.Records(ctx, next, 1000)
			if err != nil || len(records) == 0 {
				failure = err
				return
			}
			for _, record := range records {
				next++
				entry, err := audit.Decode(record)
				if err != nil {
					failure = err
					return
				}
				if !yield(entry) {
					return
				}
			}
		}
	}
	transitions := func(yield func(audit.Transition) bool) {
		for _, t := range expected {
			if !yield(t) {
				return
			}
		}
	}
	result := audit.Reconcile(transitions, entries)
	if errors.Is(failure, audit.ErrEntry) {
		check.Status, check.Message, check.Hint = "failed", failure.Error(), "run keyturn audit verify"
		return check, nil
	}
	if failure != nil {
		return check, failure
	}
	ratio, known := result.Ratio()
	switch {
	case !known:
		check.Status, check.Message = "no-data", "no rotation has moved yet"
	case result.Complete():
		check.Status, check.Message = "ok", fmt.Sprintf("100 %% of %d transitions are in the audit log", result.Expected)
	default:
		check.Status = "failed"
		check.Message = fmt.Sprintf("%.3f %% of %d transitions are in the audit log, %d entries stand for none", 100*ratio, result.Expected, len(result.Extra))
		check.Hint = "run keyturn audit verify; somebody may have changed the database"
	}
	return check, nil
}
