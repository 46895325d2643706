package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// RestoreRecord says that the store was put back to an earlier state.
type RestoreRecord struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	// LogSize is how many entries the audit log had then; Lost is how many more it
	// is known to have had once, 0 if that is not known.
	LogSize uint64 `json:"logSize"`
	Lost    uint64 `json:"lost,omitempty"`
	// Floor is larger than any epoch and fence of the time that is missing.
	Floor uint64 `json:"floor"`
	// Marked: every key has been told.
	Marked bool `json:"marked,omitempty"`
	// Arrived: what was sent to systems before has arrived, or never will.
	Arrived bool `json:"arrived,omitempty"`
}

const (
	// restoreName is the document about the last restore.
	restoreName = "last"
	// markBatch is how many keys are told in one transaction.
	markBatch = 64
	// numbersAhead is how far the version numbers of a restored key jump ahead, with
	// one more for each second since its last event: more than the missing time can
	// have minted, also after an earlier restore of the same copy.
	numbersAhead = 1000
)

// MarkRestored notes in a store that it was put back to an earlier state, so that
// the next Recover makes every key stand still until it is reconciled. A store
// that is marked already is marked anew.
func MarkRestored(ctx context.Context, s store.Store, record RestoreRecord) error {
	return s.Update(ctx, func(tx store.Tx) error {
		_, size, err := tx.Log.Records(ctx, 0, 1)
		if err != nil {
			return err
		}
		record.LogSize, record.Marked, record.Arrived = size, false, false
		if record.Lost = max(record.Lost, size) - size; record.Floor == 0 {
			record.Floor = uint64(record.At.UnixMicro())
		}
		doc, err := tx.Docs.Get(ctx, kindRestore, restoreName)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		body, err := encode(record)
		if err != nil {
			return err
		}
		_, err = tx.Docs.Put(ctx, store.Doc{Kind: kindRestore, Name: restoreName, Rev: doc.Rev, Body: body})
		return err
	})
}

func readRestore(ctx context.Context, tx store.Tx) (RestoreRecord, store.Doc, error) {
	var record RestoreRecord
	doc, err := tx.Docs.Get(ctx, kindRestore, restoreName)
	if err == nil {
		err = decodeInto(doc.Body, &record)
	}
	return record, doc, err
}

// LastRestore returns when a store was last put back to an earlier state; zero if it
// never was.
func LastRestore(ctx context.Context, s store.Store) (at time.Time, err error) {
	err = s.View(ctx, func(tx store.Tx) error {
		record, _, err := readRestore(ctx, tx)
		at = record.At
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	return at, err
}

// Recover must be called before Start. Where the store was put back to an earlier
// state it makes every key stand still and be reconciled, and lets revisions and
// fences jump ahead of all that the missing time can have used. seen is the last
// checkpoint of the audit log that this node has seen, nil for none: a log that
// does not continue it was put back. It is repeated after a crash, and harmless
// when several nodes do it at once.
func (e *Engine) Recover(ctx context.Context, seen *audit.Checkpoint) error {
	if err := e.compare(ctx, seen); err != nil {
		return err
	}
	var record RestoreRecord
	err := e.store.View(ctx, func(tx store.Tx) (err error) {
		record, _, err = readRestore(ctx, tx)
		return err
	})
	if err == nil {
		e.passage.left(record, e.config.Monotonic(), e.config.EffectTime) // it begins now
	}
	if errors.Is(err, store.ErrNotFound) || err == nil && record.Marked {
		return nil
	}
	if err != nil {
		return err
	}
	e.log.WarnContext(ctx, "the store was put back to an earlier state; every key stands still until what is accepted outside is reconciled",
		"reason", record.Reason, "log", record.LogSize, "lost", record.Lost)
	if err := e.store.Update(ctx, func(tx store.Tx) error {
		if jumper, ok := tx.Leases.(store.Jumper); ok {
			return jumper.Jump(ctx, record.Floor)
		}
		return nil
	}); err != nil {
		return err
	}
	for after, more := "", true; more; {
		if after, more, err = e.markSome(ctx, record, after); err != nil {
			return err
		}
	}
	return e.update(ctx, Server(), func(c *change) error {
		now, doc, err := readRestore(ctx, c.tx)
		if err != nil || now.Marked {
			return err
		}
		now.Marked = true
		if doc.Body, err = encode(now); err != nil {
			return err
		}
		c.audit(audit.Entry{Action: "store.restored", Reason: record.Reason, Detail: map[string]string{
			"log": fmt.Sprint(record.LogSize), "lost": fmt.Sprint(record.Lost),
		}})
		_, err = c.tx.Docs.Put(ctx, doc)
		return err
	})
}

// compare marks the store when its log does not continue what was seen.
func (e *Engine) compare(ctx context.Context, seen *audit.Checkpoint) error {
	if seen == nil {
		return nil
	}
	reason := ""
	err := e.store.View(ctx, func(tx store.Tx) error {
		reason = ""
		_, size, err := tx.Log.Records(ctx, 0, 1)
		if err != nil {
			return err
		}
		if size < seen.Size {
			reason = fmt.Sprintf("the audit log has %d entries, and had %d", size, seen.Size)
			return nil
		}
		now, err := audit.CheckpointAt(seen.Origin, seen.Size, audit.HashReader(ctx, logSource{tx: tx}))
		if err == nil && now.Root != seen.Root {
			reason = fmt.Sprintf("the first %d entries of the audit log are others than they were", seen.Size)
		}
		return err
	})
	if err != nil || reason == "" {
		return err
	}
	return MarkRestored(ctx, e.store, RestoreRecord{At: e.now(), Reason: reason, Lost: seen.Size})
}

// markSome tells some keys after the given one.
func (e *Engine) markSome(ctx context.Context, record RestoreRecord, after string) (last string, more bool, err error) {
	err = e.update(ctx, Server(), func(c *change) error {
		docs, err := c.tx.Index.List(ctx, kindState, "", after, markBatch)
		if err != nil {
			return err
		}
		last, more = after, len(docs) == markBatch
		for _, doc := range docs {
			last = doc.Name
			state, _, err := c.state(key.Name(doc.Name))
			if err != nil {
				return err
			}
			if state.Floor >= record.Floor {
				continue
			}
			if err := c.standStill(key.Name(doc.Name), &state, record.Floor); err != nil {
				return err
			}
		}
		return nil
	})
	return last, more, err
}

// standStill tells a key that its past may be missing.
func (c *change) standStill(name key.Name, state *rotation.State, floor uint64) error {
	next := state.Next + numbersAhead
	if age := c.now.Sub(state.Now); !state.Now.IsZero() && age > 0 {
		next += key.Version(age / time.Second)
	}
	_, err := c.step(name, key.RotationID{}, rotation.Restored{Epoch: max(floor, state.Epoch+1), Next: next})
	return err
}

// bornAgain tells a key that was configured just now that the store was put back
// once: it may have existed in the time that is missing, and what its system
// accepts, and its presenters hold, would have numbers that were given out again.
func (c *change) bornAgain(name key.Name, state *rotation.State) error {
	record, _, err := readRestore(c.ctx, c.tx)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.standStill(name, state, record.Floor)
}

// ReconcileRequest settles what differs after a restore.
type ReconcileRequest struct {
	Key key.Name
	// How is zero to look again only.
	How rotation.Resolution
	// LockOut allows AsRemembered to lock presenters out.
	LockOut bool
	Reason  string
}

// Reconcile settles the differences of a key that stands still after a restore, or
// looks again. It looks at the system first, and settles nothing when that is not as
// it was shown. It returns the rotation that brings in a fresh version, if there is
// one.
func (e *Engine) Reconcile(ctx context.Context, actor audit.Actor, request ReconcileRequest) (key.RotationID, error) {
	view, err := e.Key(ctx, request.Key)
	if err != nil {
		return key.RotationID{}, err
	}
	if !view.State.Standing() {
		return key.RotationID{}, fmt.Errorf("%w: key %s does not stand still; nothing is to be reconciled", ErrState, request.Key)
	}
	var look looked
	if request.How != 0 {
		limited, cancel := context.WithTimeout(ctx, e.config.EffectTime)
		defer cancel()
		if look, err = e.look(limited, provider.Call{Key: request.Key}); err != nil {
			return key.RotationID{}, fmt.Errorf("%w: key %s: what verifiers accept could not be found out: %w", ErrState, request.Key, err)
		}
	}
	id, err := e.newID()
	if err != nil {
		return id, err
	}
	retire := make([]key.RotationID, len(view.State.Versions)+len(look.foreign))
	for i := range retire {
		if retire[i], err = e.newID(); err != nil {
			return id, err
		}
	}
	changed := false
	err = e.update(ctx, actor, func(c *change) error {
		changed = false
		state, _, err := c.state(request.Key)
		if err != nil {
			return err
		}
		plan, judges, err := c.planAfterRestore(request.Key, &state)
		if err != nil {
			return err
		}
		body := rotation.Resolve{
			How: request.How, Found: look.found, Plan: plan, Retire: retire, LockOut: request.LockOut, Reason: request.Reason, Actor: actor.ID,
		}
		if request.How != 0 {
			_, err = c.step(request.Key, id, body)
			changed = errors.Is(err, rotation.ErrStale)
		}
		if request.How == 0 || changed {
			// The same restore once more: presenters that came back since are there still.
			_, err = c.step(request.Key, key.RotationID{}, rotation.Restored{Epoch: state.Floor, Next: state.Next})
			return err
		}
		if err != nil {
			return err
		}
		c.audit(audit.Entry{Action: "key.reconcile", Key: request.Key, Reason: request.Reason, Detail: map[string]string{
			"how": request.How.String(), "lock-out": fmt.Sprint(request.LockOut),
		}})
		return c.editRotation(id, func(r *RotationRecord) { r.Judges = judges })
	})
	switch {
	case err != nil:
		return key.RotationID{}, err
	case changed:
		return key.RotationID{}, fmt.Errorf("%w: key %s: what verifiers accept has changed since it was shown; look at it again with keyturn key show %s", ErrState, request.Key, request.Key)
	case request.How != rotation.Replace:
		return key.RotationID{}, nil
	}
	return id, nil
}

// planAfterRestore is the plan of what replaces and retires versions after a
// restore: the policy's, or its emergency's while a version is compromised. A
// human has asked for it: it waits for no approval.
func (c *change) planAfterRestore(name key.Name, state *rotation.State) (rotation.Plan, []JudgeRule, error) {
	_, k, _, err := c.e.readKey(c.ctx, c.tx, name)
	if err != nil {
		return rotation.Plan{}, nil, err
	}
	compiled, err := c.e.policyOf(c.ctx, c.tx, &k)
	if err != nil {
		return rotation.Plan{}, nil, err
	}
	compromised := slices.ContainsFunc(state.Versions, func(v rotation.Version) bool { return v.State == key.Compromised })
	plan, judges, err := planOf(compiled, &k, compromised)
	plan.Approvals, plan.NotBefore, plan.NotAfter = 0, time.Time{}, time.Time{}
	return plan, judges, err
}
