package engine

import (
	"context"
	"errors"
	"fmt"

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
// for what an operator should mend. It changes nothing.
func (e *Engine) Doctor(ctx context.Context) ([]Check, error) {
	var checks []Check
	err := e.store.View(ctx, func(tx store.Tx) error {
		checks = nil
		var expected []audit.Transition
		keys, held, differ := 0, 0, 0
		err := eachKeyName(ctx, tx, func(name key.Name) error {
			keys++
			problem, holds, transitions, err := e.examine(ctx, tx, name)
			if err != nil {
				return err
			}
			if problem != "" {
				differ++
				checks = append(checks, Check{Name: "history of " + string(name), Status: "failed", Message: problem, Hint: "restore the database from a backup; the stored state is not what the events lead to"})
			}
			held += holds
			expected = append(expected, transitions...)
			return nil
		})
		if err != nil {
			return err
		}
		if differ == 0 {
			checks = append(checks, Check{Name: "histories", Status: "ok", Message: fmt.Sprintf("the histories of %d keys lead to their states", keys)})
		}
		checks = append(checks, heldCheck(held))
		complete, err := completeness(ctx, tx, expected)
		checks = append(checks, complete)
		return err
	})
	return checks, err
}

func heldCheck(held int) Check {
	if held == 0 {
		return Check{Name: "held rotations", Status: "ok", Message: "no rotation is on hold"}
	}
	return Check{Name: "held rotations", Status: "warning", Message: fmt.Sprintf("%d rotations are on hold", held), Hint: "see keyturn rotation list --open"}
}

// examine replays a key's events and compares the outcome with what is stored.
func (e *Engine) examine(ctx context.Context, tx store.Tx, name key.Name) (problem string, held int, transitions []audit.Transition, err error) {
	state, _, err := e.decodeState(ctx, tx, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return "", 0, nil, err
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
