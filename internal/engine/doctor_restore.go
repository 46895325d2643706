package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// standingKey is a key that stands still after a restore.
type standingKey struct {
	name  key.Name
	state rotation.State
}

// maxStandingShown bounds the keys that Doctor lists one by one.
const maxStandingShown = 100

// recoveryChecks says what a restore left to be done.
func (e *Engine) recoveryChecks(ctx context.Context) ([]Check, error) {
	record, left, err := e.underWay(ctx)
	if err != nil || record.At.IsZero() {
		return nil, err
	}
	shown, standing, err := e.standingKeys(ctx)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("the store was put back on %s, with %d entries of the audit log", record.At.Format(time.RFC3339), record.LogSize)
	if record.Lost > 0 {
		what += fmt.Sprintf(" and without the %d that followed", record.Lost)
	}
	checks := []Check{{Name: "restore", Status: "ok", Message: what + "; every key was reconciled"}}
	if standing > 0 {
		checks[0].Status = "warning"
		checks[0].Message = fmt.Sprintf("%s; %d keys stand still", what, standing)
		if left > 0 {
			checks[0].Message += fmt.Sprintf(", for another %v at least: so long may calls that were sent before arrive", left.Round(time.Second))
		}
		checks[0].Hint = "see docs/runbooks/restore.md"
	}
	for _, s := range shown {
		check := Check{Name: "restored key " + string(s.name), Status: "no-data", Message: s.state.WhyStanding(), Hint: "what verifiers accept is asked again by itself; make them reachable"}
		if len(s.state.Differences()) > 0 {
			check.Status, check.Hint = "failed", fmt.Sprintf("settle it with keyturn reconcile %s --replace, --as-found or --as-remembered", s.name)
		}
		checks = append(checks, check)
	}
	if more := standing - len(shown); more > 0 {
		checks = append(checks, Check{Name: "restored keys", Status: "warning", Message: fmt.Sprintf("%d more stand still", more), Hint: "settle the ones above first"})
	}
	return checks, nil
}

// standingKeys returns the first keys that stand still, and how many there are.
func (e *Engine) standingKeys(ctx context.Context) (shown []standingKey, standing int, err error) {
	for after, more := "", true; more; {
		err := e.store.View(ctx, func(tx store.Tx) error {
			docs, err := tx.Index.List(ctx, kindState, "", after, examinePage)
			if err != nil {
				return err
			}
			more = len(docs) == examinePage
			for _, doc := range docs {
				after = doc.Name
				state, err := e.readState(ctx, tx, key.Name(doc.Name))
				if err != nil {
					return err
				}
				if !state.Standing() {
					continue
				}
				if standing++; len(shown) < maxStandingShown {
					shown = append(shown, standingKey{key.Name(doc.Name), state})
				}
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return shown, standing, nil
}
