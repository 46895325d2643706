package engine

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// KeyView is a key as it stands.
type KeyView struct {
	Resource policy.Key
	Record   KeyRecord
	State    rotation.State
	// Versions by number, destroyed ones included, at most 1,000.
	Versions []VersionRecord
	// Next is when the key is due, as far as is known.
	Next policy.Decision
}

// Key returns a key as it stands.
func (e *Engine) Key(ctx context.Context, name key.Name) (KeyView, error) {
	var view KeyView
	err := e.store.View(ctx, func(tx store.Tx) error {
		var err error
		view, err = e.viewKey(ctx, tx, name, true)
		return err
	})
	return view, err
}

func (e *Engine) viewKey(ctx context.Context, tx store.Tx, name key.Name, versions bool) (KeyView, error) {
	var view KeyView
	var err error
	if view.Record, view.Resource, _, err = e.readKey(ctx, tx, name); err != nil {
		return view, err
	}
	if view.State, err = e.readState(ctx, tx, name); err != nil {
		return view, err
	}
	compiled, err := e.policyOf(ctx, tx, &view.Resource)
	if err != nil {
		return view, err
	}
	facts, err := e.facts(ctx, tx, &view.Resource, &view.Record, &view.State)
	if err != nil {
		return view, err
	}
	view.Next = compiled.Due(e.config.Now(), facts)
	if !versions {
		return view, nil
	}
	docs, err := tx.Index.List(ctx, kindVersion, string(name)+"@", "", 1000)
	if err != nil {
		return view, err
	}
	for _, doc := range docs {
		var record VersionRecord
		if err := decodeInto(doc.Body, &record); err != nil {
			return view, err
		}
		view.Versions = append(view.Versions, record)
	}
	return view, nil
}

// Keys lists keys by name, after the given one, at most limit.
func (e *Engine) Keys(ctx context.Context, prefix, after string, limit int) ([]KeyView, error) {
	var list []KeyView
	err := e.store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindKey, prefix, after, limit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			view, err := e.viewKey(ctx, tx, key.Name(doc.Name), false)
			if err != nil {
				return err
			}
			list = append(list, view)
		}
		return nil
	})
	return list, err
}

// KeyState is the state of a key at some time.
type KeyState struct {
	Name  key.Name
	State rotation.State
	// Deleted: the key was taken out; what is left of it has no versions.
	Deleted bool
}

// Changed returns the keys whose states changed after a revision, at most limit, in
// the order of their last changes, and the revision to go on from.
func (e *Engine) Changed(ctx context.Context, after uint64, limit int) (list []KeyState, next uint64, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		list, next = nil, after
		docs, err := tx.Index.Since(ctx, kindState, after, limit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			k := KeyState{Name: key.Name(doc.Name)}
			state, known := e.states.get(k.Name, doc.Rev)
			if k.State = state; !known {
				if err := rotation.UnmarshalState(doc.Body, &k.State); err != nil {
					return fmt.Errorf("the stored state of key %s is damaged: %w", k.Name, err)
				}
			}
			if len(k.State.Versions) == 0 {
				_, err := store.Revision(ctx, tx.Docs, kindKey, doc.Name)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				k.Deleted = err != nil
			}
			list, next = append(list, k), doc.Rev
		}
		return nil
	})
	return list, next, err
}

// Reveal returns the material of one version; with v 0 that of the labelled
// one. The read is audited before the material leaves the engine, with the IP address
// that it goes to; from is empty when there is none.
func (e *Engine) Reveal(ctx context.Context, actor audit.Actor, from string, name key.Name, v key.Version, label key.Label) (key.Version, provider.Material, error) {
	revealed := v
	err := e.update(ctx, actor, func(c *change) error {
		revealed = v
		if _, _, _, err := e.readKey(ctx, c.tx, name); err != nil {
			return err
		}
		state, _, err := c.state(name)
		if err != nil {
			return err
		}
		if v == 0 {
			if revealed = state.Labelled(label); revealed == 0 {
				return fmt.Errorf("%w: key %s has no %v version; begin one with keyturn rotate %s", ErrNotFound, name, label, name)
			}
		}
		if _, ok := state.Version(revealed); !ok && !c.inEscrow(name, revealed) {
			return fmt.Errorf("%w: %s has no version %d, or it is destroyed", ErrNotFound, name, uint64(revealed))
		}
		c.audit(audit.Entry{Action: audit.ActionRead, Key: name, Version: revealed, Detail: nonEmpty(map[string]string{audit.DetailAddress: from})})
		return nil
	})
	if err != nil {
		return 0, provider.Material{}, err
	}
	material, err := e.material(ctx, name, revealed)
	return revealed, material, err
}

// inEscrow reports whether a version has ended with its material kept.
func (c *change) inEscrow(name key.Name, v key.Version) bool {
	doc, err := c.tx.Docs.Get(c.ctx, kindVersion, versionName(name, v))
	if err != nil {
		return false
	}
	var record VersionRecord
	return decodeInto(doc.Body, &record) == nil && !record.Escrowed.IsZero()
}

// RotationView is a rotation as it stands.
type RotationView struct {
	RotationRecord
	// Waiting says what an open rotation waits for; Stages how far it is.
	Waiting []rotation.Waiting
	Stages  []StageView
	// Regions says how far an open rotation is in each region, by name.
	Regions []RegionView
	// Behind are the presenters that do not use the new version of an emergency, at most
	// maxBehind; BehindTotal is how many there are.
	Behind      []string
	BehindTotal int
}

// StageView is how far one stage is.
type StageView struct {
	Name string
	// State is "waiting", "presenting", "baking", "passed" or "failed".
	State        string
	Presenters   int
	Acknowledged int
	BakeEnds     time.Time
}

// Rotation returns a rotation by its ID.
func (e *Engine) Rotation(ctx context.Context, id key.RotationID) (RotationView, error) {
	var view RotationView
	err := e.store.View(ctx, func(tx store.Tx) error {
		record, err := viewRotation(ctx, tx, id)
		if err != nil {
			return err
		}
		view, err = e.viewOf(ctx, tx, record)
		return err
	})
	return view, err
}

func viewRotation(ctx context.Context, tx store.Tx, id key.RotationID) (RotationRecord, error) {
	record, _, err := readRotation(ctx, tx, id)
	return record, err
}

func readRotation(ctx context.Context, tx store.Tx, id key.RotationID) (RotationRecord, store.Doc, error) {
	var record RotationRecord
	doc, err := tx.Docs.Get(ctx, kindRotation, newestFirst(id))
	if errors.Is(err, store.ErrNotFound) {
		return record, doc, fmt.Errorf("%w: rotation %v", ErrNotFound, id)
	}
	if err == nil {
		err = decodeInto(doc.Body, &record)
	}
	return record, doc, err
}

func (e *Engine) viewOf(ctx context.Context, tx store.Tx, record RotationRecord) (RotationView, error) {
	view := RotationView{RotationRecord: record}
	if record.Ended() && record.Kind != rotation.Emergency {
		return view, nil
	}
	state, err := e.readState(ctx, tx, record.Key)
	if record.Ended() && errors.Is(err, store.ErrNotFound) {
		return view, nil // the key was deleted
	}
	if err != nil {
		return view, err
	}
	if record.Kind == rotation.Emergency {
		view.behind(&state)
	}
	if record.Ended() {
		return view, nil
	}
	r, ok := state.Rotation(record.ID)
	if !ok {
		return view, nil
	}
	targets, err := e.waitingForTargets(ctx, tx, &record)
	if err != nil {
		return view, err
	}
	view.Waiting = append(state.Explain(r), targets...)
	view.Stages = stagesOf(&state, r)
	view.Regions = regionsOf(&state, r, record.Holders)
	return view, nil
}

// maxBehind bounds RotationView.Behind.
const maxBehind = 20

// behind names the presenters that do not use the version that an emergency brought,
// or is to bring, in. Once there is a later one it is that one's matter.
func (v *RotationView) behind(state *rotation.State) {
	current := state.Labelled(key.Current)
	if v.Ended() && (v.To == 0 || current != v.To) {
		return
	}
	for i := range state.Presenters {
		p := &state.Presenters[i]
		if v.To != 0 && p.Uses(v.To) {
			continue
		}
		if v.BehindTotal++; len(v.Behind) < maxBehind {
			v.Behind = append(v.Behind, p.ID)
		}
	}
}

func stagesOf(state *rotation.State, r *rotation.Rotation) []StageView {
	views := make([]StageView, len(r.Plan.Stages))
	for i, stage := range r.Plan.Stages {
		views[i] = StageView{Name: stage.Name, State: stageState(r, i)}
		if views[i].State == "baking" {
			views[i].BakeEnds = r.BakeSince.Add(stage.Bake)
		}
	}
	for i := range state.Presenters {
		p := &state.Presenters[i]
		view := &views[min(p.Stage, len(views)-1)]
		view.Presenters++
		if p.Uses(r.To) {
			view.Acknowledged++
		}
	}
	return views
}

func stageState(r *rotation.Rotation, stage int) string {
	switch {
	case r.Phase.Retiring() || r.Phase == rotation.Presenting && stage < r.Stage:
		return "passed"
	case r.Phase == rotation.RollingBack && stage == r.Stage && r.Presented:
		return "failed"
	case r.Phase != rotation.Presenting || stage > r.Stage:
		return "waiting"
	case !r.BakeSince.IsZero():
		return "baking"
	}
	return "presenting"
}

// Rotations lists rotations, newest first, at most limit, after the given one:
// those of a key, or all for an empty name.
func (e *Engine) Rotations(ctx context.Context, name key.Name, after key.RotationID, limit int) ([]RotationView, error) {
	var list []RotationView
	err := e.store.View(ctx, func(tx store.Tx) error {
		list = nil
		kind, prefix := kindRotation, ""
		if name != "" {
			kind, prefix = kindOfKey, string(name)+" "
		}
		from := ""
		if !after.IsZero() {
			from = prefix + newestFirst(after)
		}
		docs, err := tx.Index.List(ctx, kind, prefix, from, limit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			if name != "" {
				if doc, err = tx.Docs.Get(ctx, kindRotation, doc.Name[len(prefix):]); err != nil {
					return err
				}
			}
			var record RotationRecord
			if err := decodeInto(doc.Body, &record); err != nil {
				return err
			}
			view, err := e.viewOf(ctx, tx, record)
			if err != nil {
				return err
			}
			list = append(list, view)
		}
		return nil
	})
	return list, err
}

// Timeline returns what happened in a rotation, from its audit entries' events.
func (e *Engine) Timeline(ctx context.Context, id key.RotationID) ([]Moved, error) {
	var moves []Moved
	err := e.store.View(ctx, func(tx store.Tx) error {
		moves = nil
		record, err := viewRotation(ctx, tx, id)
		if err != nil {
			return err
		}
		begun := false
		return e.replay(ctx, tx, record.Key, func(event store.Event, before, after rotation.State) error {
			if _, open := after.Rotation(id); !begun && !open && len(after.Ended) == 0 {
				return nil // nothing to compare; the key may have thousands of parties
			}
			begun = true
			for _, t := range rotation.Diff(before, after) {
				if t.Rotation == id {
					moves = append(moves, Moved{Key: record.Key, At: event.At, Transition: t, Since: leftSince(&before, &t, event.At)})
				}
			}
			return nil
		})
	})
	return moves, err
}

// replay folds the events of a key from its first one on.
func (e *Engine) replay(ctx context.Context, tx store.Tx, name key.Name, visit func(store.Event, rotation.State, rotation.State) error) error {
	var state rotation.State
	for {
		events, err := tx.Events.Load(ctx, name, state.Seq, 1000)
		if err != nil || len(events) == 0 {
			return err
		}
		for _, event := range events {
			body, err := rotation.UnmarshalBody(event.Type, event.Body)
			if err != nil {
				return fmt.Errorf("event %d of %s: %w", event.Seq, name, err)
			}
			after, _, err := rotation.Step(state, rotation.Event{At: event.At, Rotation: event.Rotation, Body: body})
			if err != nil {
				return fmt.Errorf("event %d of %s does not replay: %w", event.Seq, name, err)
			}
			if err := visit(event, state, after); err != nil {
				return err
			}
			state = after
		}
	}
}

// WatchRotation calls visit with the rotation now and after every change, until
// it has ended, visit fails, or ctx ends.
func (e *Engine) WatchRotation(ctx context.Context, id key.RotationID, visit func(RotationView) error) error {
	changed := e.store.Watch(ctx, store.TopicDocs)
	poll := time.NewTicker(e.config.Poll)
	defer poll.Stop()
	var seen revisions
	var last RotationView
	for {
		view, now, err := e.rotationSince(ctx, id, seen)
		if err != nil {
			return err
		}
		if now != seen && (seen == revisions{} || !reflect.DeepEqual(view, last)) {
			last = view
			if err := visit(view); err != nil {
				return err
			}
		}
		seen = now
		if last.Ended() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-poll.C:
		}
	}
}

// revisions are those of the documents that a rotation is shown from.
type revisions struct{ rotation, state uint64 }

// rotationSince returns a rotation, unless nothing changed since the revisions.
func (e *Engine) rotationSince(ctx context.Context, id key.RotationID, seen revisions) (view RotationView, now revisions, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		record, doc, err := readRotation(ctx, tx, id)
		if err != nil {
			return err
		}
		now = revisions{rotation: doc.Rev}
		if !record.Ended() {
			state, err := tx.Docs.Get(ctx, kindState, string(record.Key))
			if err != nil {
				return err
			}
			now.state = state.Rev
		}
		if now != seen {
			view, err = e.viewOf(ctx, tx, record)
		}
		return err
	})
	return view, now, err
}

// Plan says what a rotation of the key would do, when, and to whom.
func (e *Engine) Plan(ctx context.Context, name key.Name) (policy.Timeline, error) {
	var timeline policy.Timeline
	err := e.store.View(ctx, func(tx store.Tx) error {
		view, err := e.viewKey(ctx, tx, name, false)
		if err != nil {
			return err
		}
		compiled, err := e.policyOf(ctx, tx, &view.Resource)
		if err != nil {
			return err
		}
		facts, err := e.facts(ctx, tx, &view.Resource, &view.Record, &view.State)
		if err != nil {
			return err
		}
		input := policy.PlanInput{
			Now: e.config.Now(), Key: view.Resource.Info(), Facts: facts,
			Topology: policy.Topology{Capacity: view.State.Capacity, Gap: view.State.Gap},
		}
		for i := range view.State.Verifiers {
			w := &view.State.Verifiers[i]
			input.Topology.Endpoints = append(input.Topology.Endpoints, policy.Endpoint{Name: w.ID, Region: w.Region})
		}
		for i := range view.State.Presenters {
			party, _, err := readParty(ctx, tx, view.State.Presenters[i].ID)
			if err != nil {
				return err
			}
			input.Parties = append(input.Parties, party.info())
		}
		timeline, err = compiled.Plan(input)
		return err
	})
	return timeline, err
}
