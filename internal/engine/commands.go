package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// RotateRequest asks for a rotation.
type RotateRequest struct {
	Key    key.Name
	Reason string
	// Emergency begins an emergency; the fields after it apply to that only.
	Emergency bool
	// Strategy overrides the policy's; zero takes the policy's.
	Strategy rotation.Strategy
	// Compromised versions; none means every version that is accepted somewhere.
	Compromised []key.Version
	// RequestID makes a repeated request begin one rotation only.
	RequestID string
}

// Rotate begins a rotation and returns its ID. It fails with ErrNotFound,
// ErrInvalid, or an error of package rotation such as ErrBusy.
func (e *Engine) Rotate(ctx context.Context, actor audit.Actor, request RotateRequest) (key.RotationID, error) {
	if len(request.Compromised) > maxCompromised {
		return key.RotationID{}, fmt.Errorf("%w: compromised: %d versions, at most %d are allowed; leave them out to name all", ErrInvalid, len(request.Compromised), maxCompromised)
	}
	fresh, err := e.newID()
	if err != nil {
		return fresh, err
	}
	id := fresh
	err = e.update(ctx, actor, func(c *change) error {
		id = fresh
		if request.RequestID != "" {
			var err error
			if id, err = c.once(actor, &request, fresh); err != nil || id != fresh {
				return err
			}
		}
		if request.Emergency {
			return c.declare(request, id)
		}
		return c.begin(request.Key, id, rotation.Manual, request.Reason)
	})
	return id, err
}

func (e *Engine) newID() (key.RotationID, error) {
	var random [10]byte
	if _, err := io.ReadFull(e.config.Random, random[:]); err != nil {
		return key.RotationID{}, fmt.Errorf("draw a rotation ID: %w", err)
	}
	return key.NewRotationID(e.config.Now(), random), nil
}

const (
	// requestKept is how long a request ID is remembered.
	requestKept = 24 * time.Hour
	// maxCompromised bounds the versions that one emergency names.
	maxCompromised = 1000
)

// requestRecord is what an earlier request with an ID asked for and led to.
type requestRecord struct {
	Rotation  key.RotationID `json:"rotation"`
	Key       key.Name       `json:"key"`
	Emergency bool           `json:"emergency,omitempty"`
}

// once remembers that a request led to a rotation, and returns the ID of the
// rotation an earlier request with the same ID led to.
func (c *change) once(actor audit.Actor, request *RotateRequest, id key.RotationID) (key.RotationID, error) {
	// The length keeps two actors' requests apart whatever their names contain.
	name := fmt.Sprintf("%d %s %s", len(actor.ID), actor.ID, request.RequestID)
	doc, err := c.tx.Docs.Get(c.ctx, kindRequest, name)
	if err == nil {
		var earlier requestRecord
		if err := decodeInto(doc.Body, &earlier); err != nil {
			return id, err
		}
		if earlier.Key != request.Key || earlier.Emergency != request.Emergency {
			return id, fmt.Errorf("%w: request_id %q was used for something else; draw a new one for every request", ErrInvalid, request.RequestID)
		}
		return earlier.Rotation, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return id, err
	}
	body, err := encode(requestRecord{Rotation: id, Key: request.Key, Emergency: request.Emergency})
	if err != nil {
		return id, err
	}
	_, err = c.tx.Docs.Put(c.ctx, store.Doc{Kind: kindRequest, Name: name, Due: c.now.Add(requestKept), Body: body})
	return id, err
}

// begin begins a rotation by the key's policy.
func (c *change) begin(name key.Name, id key.RotationID, kind rotation.Kind, reason string) error {
	return c.beginApproved(name, id, kind, reason, 0)
}

// beginApproved is begin with at least so many approvals.
func (c *change) beginApproved(name key.Name, id key.RotationID, kind rotation.Kind, reason string, approvals int) error {
	_, k, _, err := c.e.readKey(c.ctx, c.tx, name)
	if err != nil {
		return err
	}
	compiled, err := c.e.policyOf(c.ctx, c.tx, &k)
	if err != nil {
		return err
	}
	plan, judges, err := planOf(compiled, &k, false)
	if err != nil {
		return err
	}
	state, _, err := c.state(name)
	if err != nil {
		return err
	}
	plan.Approvals = max(plan.Approvals, approvals)
	if kind == rotation.Scheduled {
		plan.NotAfter = c.windowEnd(compiled)
	}
	body := rotation.Begin{Kind: kind, Plan: plan, Reason: reason, Actor: c.actor.ID}
	if body.Stages, err = c.stages(&state, compiled, &k); err != nil {
		return err
	}
	if err := c.keepPolicy(&k); err != nil {
		return err
	}
	if _, err := c.step(name, id, body); err != nil {
		return err
	}
	// The step itself may have written the record, when it ended another rotation.
	record, k, doc, err := c.e.readKey(c.ctx, c.tx, name)
	if err != nil {
		return err
	}
	record.LastStart = c.now
	if err := c.putKey(doc, &record, &k); err != nil {
		return err
	}
	return c.editRotation(id, func(r *RotationRecord) { r.Judges = judges })
}

// windowEnd is when a scheduled rotation that has not begun by then is given up.
func (c *change) windowEnd(compiled *policy.Compiled) time.Time {
	next, ok := compiled.NextWindow(c.now)
	if !ok || next.Open.After(c.now) {
		return time.Time{}
	}
	return next.Close
}

// stages assigns the key's presenters to the stages of its policy.
func (c *change) stages(state *rotation.State, compiled *policy.Compiled, k *policy.Key) ([]rotation.StageOf, error) {
	var list []rotation.StageOf
	for i := range state.Presenters {
		p := &state.Presenters[i]
		party, _, err := readParty(c.ctx, c.tx, p.ID)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		stage, err := stageFor(compiled, k, &party)
		if err != nil {
			return nil, err
		}
		if stage != p.Stage {
			list = append(list, rotation.StageOf{ID: p.ID, Stage: stage})
		}
	}
	return list, nil
}

// stageFor is the stage a party belongs to; one that no stage takes moves last.
func stageFor(compiled *policy.Compiled, k *policy.Key, party *PartyRecord) (int, error) {
	stage, ok, err := compiled.Stage(k.Info(), party.info())
	if err != nil {
		return 0, fmt.Errorf("stage of party %s: %w", party.ID, err)
	}
	if !ok {
		stage = len(compiled.Stages()) - 1
	}
	return stage, nil
}

// declare begins an emergency.
func (c *change) declare(request RotateRequest, id key.RotationID) error {
	_, k, _, err := c.e.readKey(c.ctx, c.tx, request.Key)
	if err != nil {
		return err
	}
	compiled, err := c.e.policyOf(c.ctx, c.tx, &k)
	if err != nil {
		return err
	}
	plan, _, err := planOf(compiled, &k, true)
	if err != nil {
		return err
	}
	if request.Strategy != 0 {
		plan.Strategy = request.Strategy
	}
	state, _, err := c.state(request.Key)
	if err != nil {
		return err
	}
	compromised := request.Compromised
	if len(compromised) == 0 {
		compromised = state.Live()
	}
	if len(compromised) == 0 {
		return fmt.Errorf("%w: key %s has no version that could be compromised", ErrState, request.Key)
	}
	body := rotation.Declare{Compromised: compromised, Plan: plan, Reason: request.Reason, Actor: c.actor.ID, Insist: true}
	if err := c.keepPolicy(&k); err != nil {
		return err
	}
	_, err = c.step(request.Key, id, body)
	return err
}

// Rollback returns to the version before the one that the rotation brought in.
// It returns the rotation that does so: the same one during the cut-over, a new
// one afterwards.
func (e *Engine) Rollback(ctx context.Context, actor audit.Actor, of key.RotationID, reason string) (key.RotationID, error) {
	fresh, err := e.newID()
	if err != nil {
		return fresh, err
	}
	id := of
	err = e.update(ctx, actor, func(c *change) error {
		id = of
		record, _, err := c.rotation(of)
		if err != nil {
			return err
		}
		_, k, _, err := c.e.readKey(c.ctx, c.tx, record.Key)
		if err != nil {
			return err
		}
		compiled, err := e.policyOf(ctx, c.tx, &k)
		if err != nil {
			return err
		}
		plan, _, err := planOf(compiled, &k, false)
		if err != nil {
			return err
		}
		// Everybody returns at once: the version was proven before.
		plan.Stages = []rotation.Stage{{Name: "all", AckTimeout: plan.Stages[len(plan.Stages)-1].AckTimeout, SkipEmpty: true}}
		plan.Judged, plan.Approvals, plan.HoldOnFailure = false, 0, true
		after, err := c.step(record.Key, fresh, rotation.Revert{Of: of, Plan: plan, Reason: reason, Actor: actor.ID})
		if _, begun := after.Rotation(fresh); begun {
			id = fresh
		}
		return err
	})
	return id, err
}

// Steer is what can be done to an open rotation. The zero value is invalid.
type Steer uint8

// The ways to steer.
const (
	SteerApprove Steer = iota + 1
	SteerPause
	SteerResume
	SteerCancel
)

// Steer approves, pauses, resumes or cancels a rotation.
func (e *Engine) Steer(ctx context.Context, actor audit.Actor, id key.RotationID, steer Steer, reason string) error {
	var body rotation.Body
	switch steer {
	case SteerApprove:
		body = rotation.Approve{Actor: actor.ID}
	case SteerPause:
		body = rotation.Pause{Actor: actor.ID, Reason: reason}
	case SteerResume:
		body = rotation.Resume{Actor: actor.ID}
	case SteerCancel:
		body = rotation.Cancel{Actor: actor.ID, Reason: reason}
	default:
		return fmt.Errorf("%w: unknown action", ErrInvalid)
	}
	return e.update(ctx, actor, func(c *change) error {
		record, _, err := c.rotation(id)
		if err != nil {
			return err
		}
		if record.Ended() {
			return fmt.Errorf("%w: rotation %v has ended: %v", ErrState, id, record.Phase)
		}
		if steer == SteerApprove && record.Actor == actor.ID {
			return fmt.Errorf("%w: whoever asked for a rotation cannot approve it; ask somebody else", ErrState)
		}
		after, err := c.step(record.Key, id, body)
		if err != nil {
			return err
		}
		c.audit(audit.Entry{
			Action: "rotation." + steerNames()[steer], Key: record.Key, Rotation: id, Event: after.Seq, Reason: reason,
		})
		return nil
	})
}

func steerNames() map[Steer]audit.Action {
	return map[Steer]audit.Action{SteerApprove: "approve", SteerPause: "pause", SteerResume: "resume", SteerCancel: "cancel"}
}

// consider begins a scheduled rotation of a key if it is due, and notes when to
// look again.
func (e *Engine) consider(ctx context.Context, name key.Name) error {
	return e.update(ctx, Server(), func(c *change) error {
		record, k, doc, err := c.e.readKey(c.ctx, c.tx, name)
		if err != nil {
			return err
		}
		if doc.Due.IsZero() || doc.Due.After(c.now) {
			return nil
		}
		decision, err := c.decide(&record, &k)
		if err != nil {
			c.e.log.ErrorContext(ctx, "the schedule of a key cannot be computed", "key", name, "error", err)
			doc.Due = c.now.Add(time.Hour)
			return c.putKey(doc, &record, &k)
		}
		if decision.Due {
			id, err := e.newID()
			if err != nil {
				return err
			}
			err = c.begin(name, id, rotation.Scheduled, decision.Message)
			if err == nil {
				if record, k, doc, err = c.e.readKey(c.ctx, c.tx, name); err != nil {
					return err
				}
				doc.Due = c.now.Add(time.Minute)
				return c.putKey(doc, &record, &k)
			}
			if !errors.Is(err, rotation.ErrBusy) {
				return err
			}
			decision.At = c.now.Add(time.Minute)
		}
		doc.Due = lookAgain(c.now, decision.At)
		return c.putKey(doc, &record, &k)
	})
}

// lookAgain is when to consider a key next: at the time it will be due, but
// never in the past, and not at all when no time makes it due.
func lookAgain(now, at time.Time) time.Time {
	if at.IsZero() {
		return time.Time{}
	}
	if !at.After(now) {
		return now.Add(time.Minute)
	}
	return at
}

func (c *change) decide(record *KeyRecord, k *policy.Key) (policy.Decision, error) {
	compiled, err := c.e.policyOf(c.ctx, c.tx, k)
	if err != nil {
		return policy.Decision{}, err
	}
	state, _, err := c.state(k.Metadata.Name)
	if err != nil {
		return policy.Decision{}, err
	}
	facts, err := c.e.facts(c.ctx, c.tx, k, record, &state)
	if err != nil {
		return policy.Decision{}, err
	}
	return compiled.Due(c.now, facts), nil
}

// putKey writes a key's record; a zero doc.Due means that no time makes it due.
func (c *change) putKey(doc store.Doc, record *KeyRecord, k *policy.Key) error {
	body, err := encode(record)
	if err != nil {
		return err
	}
	doc.Kind, doc.Name, doc.Body = kindKey, string(k.Metadata.Name), body
	_, err = c.tx.Docs.Put(c.ctx, doc)
	c.wake = c.wake || !doc.Due.IsZero()
	return err
}

// rotationEnded notes the end at the key, and when the key is due next.
func (c *change) rotationEnded(name key.Name) error {
	k, resource, doc, err := c.e.readKey(c.ctx, c.tx, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	k.LastEnd = c.now
	doc.Due = c.now
	c.moved = slices.Clip(c.moved)
	return c.putKey(doc, &k, &resource)
}
