package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// change is one transaction that changes keys: what it writes, what it enters
// into the audit log, and what is to be told once it is committed.
type change struct {
	e     *Engine
	ctx   context.Context //nolint:containedctx // a change lives as long as one call of update
	tx    store.Tx
	actor audit.Actor
	now   time.Time

	entries []audit.Entry
	moved   []Moved
	tells   map[key.Name][]Tell
	news    map[key.Name]ownNews
	found   []Finding
	// wake: something may be due earlier than the time-keeper believes.
	wake bool
	// states are those that this transaction has written.
	states map[key.Name]written
	// begins is the policy by which the rotation begins that is begun next.
	begins begins
}

// written is a state that is not committed yet, with its document.
type written struct {
	doc   store.Doc
	state rotation.State
}

// update runs fn in a transaction on behalf of actor. What fn decides is
// committed together with its audit entries, then told. fn may run again.
func (e *Engine) update(ctx context.Context, actor audit.Actor, fn func(*change) error) error {
	var c *change
	err := e.store.Update(ctx, func(tx store.Tx) error {
		c = &change{e: e, ctx: ctx, tx: tx, actor: actor, now: e.now()}
		if err := fn(c); err != nil {
			return err
		}
		return c.enterLog()
	})
	if err != nil {
		return err
	}
	for name, w := range c.states {
		e.states.put(name, w.doc.Rev, w.state)
	}
	for name, tells := range c.tells {
		e.config.Fleet.Tell(name, tells)
	}
	for name, own := range c.news {
		e.news.own(name, own)
		if baker, ok := e.config.Fleet.(Baker); ok {
			baker.Baking(name, own.Bake, own.Since)
		}
	}
	for _, moved := range c.moved {
		e.config.Observer.Moved(moved)
	}
	if judge, ok := e.config.Observer.(AnomalyObserver); ok {
		for _, finding := range c.found {
			judge.Found(finding)
		}
	}
	if c.wake {
		e.wakeUp()
	}
	return nil
}

// now is the time as the store keeps it: events that are replayed must lead to
// the very states that were stored.
func (e *Engine) now() time.Time { return e.config.Now().UTC().Truncate(time.Microsecond) }

// audit adds an entry to the change.
func (c *change) audit(entry audit.Entry) {
	entry.At = c.now
	if entry.Actor == (audit.Actor{}) {
		entry.Actor = c.actor
	}
	if entry.Outcome == "" {
		entry.Outcome = audit.OutcomeOK
	}
	c.entries = append(c.entries, entry)
}

// enterLog appends the change's audit entries.
func (c *change) enterLog() error {
	if len(c.entries) == 0 {
		return nil
	}
	source := logSource{tx: c.tx}
	tail, err := audit.ReadTail(c.ctx, source)
	if err != nil {
		return err
	}
	batch, err := audit.Append(tail, audit.HashReader(c.ctx, source), c.entries...)
	if err != nil {
		return err
	}
	hashes := make([]store.Hash, len(batch.Hashes))
	for i, h := range batch.Hashes {
		hashes[i] = store.Hash(h)
	}
	return c.tx.Log.Append(c.ctx, batch.First, batch.Records, batch.FirstHash, hashes)
}

// state loads the state of a key as this transaction sees it.
func (c *change) state(name key.Name) (rotation.State, store.Doc, error) {
	if w, ok := c.states[name]; ok {
		return w.state, w.doc, nil
	}
	return c.e.loadState(c.ctx, c.tx, name)
}

// readState is loadState for views: what they see is committed and can be kept.
func (e *Engine) readState(ctx context.Context, tx store.Tx, name key.Name) (rotation.State, error) {
	state, doc, err := e.loadState(ctx, tx, name)
	if err == nil && len(state.Presenters) >= worthCaching {
		e.states.put(name, doc.Rev, state)
	}
	return state, err
}

// loadState returns the state of a key and its document, without the body: of a
// key with many presenters it is large, and mostly known already.
func (e *Engine) loadState(ctx context.Context, tx store.Tx, name key.Name) (rotation.State, store.Doc, error) {
	doc, err := store.Revision(ctx, tx.Docs, kindState, string(name))
	if errors.Is(err, store.ErrNotFound) {
		return rotation.State{}, store.Doc{Kind: kindState, Name: string(name)}, nil
	}
	if err != nil {
		return rotation.State{}, store.Doc{}, err
	}
	if state, ok := e.states.get(name, doc.Rev); ok {
		return state, doc, nil
	}
	return e.decodeState(ctx, tx, name)
}

// worthCaching is the number of presenters from which on a state that was only
// read is kept: decoding it costs more than a millisecond.
const worthCaching = 500

// decodeState reads the state of a key as it is stored.
func (e *Engine) decodeState(ctx context.Context, tx store.Tx, name key.Name) (rotation.State, store.Doc, error) {
	doc, err := tx.Docs.Get(ctx, kindState, string(name))
	if err != nil {
		return rotation.State{}, doc, err
	}
	state, known := e.states.written(name, &doc)
	if !known {
		if err = rotation.UnmarshalState(doc.Body, &state); err != nil {
			err = fmt.Errorf("the stored state of key %s is damaged: %w", name, err)
		}
	}
	doc.Body = nil
	return state, doc, err
}

// step folds one event into the state of a key: it writes the event, the state,
// the rotations' records and the effects, and adds the audit entries.
func (c *change) step(name key.Name, id key.RotationID, body rotation.Body) (after rotation.State, err error) {
	before, doc, err := c.state(name)
	if err != nil {
		return before, err
	}
	after, effects, err := rotation.Step(before, rotation.Event{At: c.now, Rotation: id, Body: body})
	if err != nil {
		return before, fmt.Errorf("key %s: %w", name, err)
	}
	eventType, data, err := rotation.MarshalBody(body)
	if err != nil {
		return before, err
	}
	event := store.Event{Key: name, Seq: after.Seq, Rotation: id, Type: eventType, At: c.now, Body: data}
	if err := c.tx.Events.Append(c.ctx, event); err != nil {
		return before, err
	}
	if doc.Body, err = rotation.MarshalState(&after); err != nil {
		return before, err
	}
	doc.Due = after.Wake()
	rev, err := c.tx.Docs.Put(c.ctx, doc)
	if err != nil {
		return before, err
	}
	doc.Rev = rev
	c.e.states.wrote(name, &doc, after)
	doc.Body = nil
	if c.states == nil {
		c.states = map[key.Name]written{}
	}
	c.states[name] = written{doc: doc, state: after}
	c.wake = c.wake || !doc.Due.IsZero()
	if err := c.publish(name, &before, &after, body); err != nil {
		return before, err
	}
	if err := c.queue(name, &before, &after, effects); err != nil {
		return before, err
	}
	err = c.record(name, &before, &after)
	return after, err
}

// record derives audit entries, records and notices from a step.
func (c *change) record(name key.Name, before, after *rotation.State) error {
	records := map[key.RotationID]*RotationRecord{}
	refused := refusals(before, after)
	for _, list := range [][]rotation.Rotation{after.Ended, after.Rotations} {
		for i := range list {
			if err := c.recordRotation(name, before, &list[i], refused, records); err != nil {
				return err
			}
		}
	}
	transitions := rotation.Diff(*before, *after)
	crowd := crowded(transitions)
	for _, t := range transitions {
		moved := Moved{Key: name, At: c.now, Transition: t, Record: records[t.Rotation], Since: leftSince(before, &t, c.now), Region: after.RegionOf(t.Subject)}
		if t.Kind == rotation.RotationHold && t.To != "" {
			moved.Names = waitingNames(after, t.Rotation)
			if r, open := after.Rotation(t.Rotation); open {
				moved.Late = LateRegions(after, r)
			}
		}
		c.moved = append(c.moved, moved)
		if t.Kind == rotation.VersionState && t.To == key.Destroyed.String() {
			if err := c.versionDestroyed(name, t.Version); err != nil {
				return err
			}
		}
		if crowd[t.Kind] {
			continue
		}
		entry := entryOf(name, after.Seq, moved)
		if t.Kind == rotation.RotationBegun && moved.Record != nil && moved.Record.Policy.SHA256 != "" {
			if entry.Detail == nil {
				entry.Detail = map[string]string{}
			}
			entry.Detail["policy"], entry.Detail["policy-sha256"] = moved.Record.Policy.Name, moved.Record.Policy.SHA256
		}
		c.audit(entry)
	}
	c.auditCrowd(name, after.Seq, transitions, crowd)
	return nil
}

// leftSince is when the phase was entered that a rotation leaves; zero if it leaves none.
func leftSince(before *rotation.State, t *rotation.Transition, now time.Time) time.Time {
	if t.Kind != rotation.RotationPhase || t.From == "" {
		return time.Time{}
	}
	if r, known := before.Rotation(t.Rotation); known && r.Phase.String() == t.From {
		return r.PhaseSince
	}
	return now // it went through it within this event
}

// maxEntries is how many changes of presenters in one event are entered one by
// one. More are entered as one, with their number; the event has them all.
const maxEntries = 64

func crowded(transitions []rotation.Transition) map[rotation.TransitionKind]bool {
	counts := map[rotation.TransitionKind]int{}
	for _, t := range transitions {
		counts[t.Kind]++
	}
	crowd := map[rotation.TransitionKind]bool{}
	for _, kind := range []rotation.TransitionKind{rotation.PresenterTold, rotation.PresenterAcked, rotation.PresenterLeft} {
		crowd[kind] = counts[kind] > maxEntries
	}
	return crowd
}

func (c *change) auditCrowd(name key.Name, seq uint64, transitions []rotation.Transition, crowd map[rotation.TransitionKind]bool) {
	sums := map[string]*audit.Entry{}
	counts := map[string]int{}
	for _, t := range transitions {
		if !crowd[t.Kind] {
			continue
		}
		group := string(t.Kind) + t.Version.String() + t.To
		if t.Kind == rotation.PresenterTold {
			group = string(t.Kind) + t.Version.String()
		}
		if sums[group] == nil {
			entry := entryOf(name, seq, Moved{Transition: t})
			entry.Target = ""
			sums[group] = &entry
		}
		counts[group]++
	}
	for group, entry := range sums {
		entry.Detail = map[string]string{"presenters": strconv.Itoa(counts[group])}
		c.audit(*entry)
	}
}

// entryOf is the audit entry of one change.
func entryOf(name key.Name, seq uint64, moved Moved) audit.Entry {
	t := moved.Transition
	entry := audit.Entry{
		Action: audit.Action(t.Kind), Key: name, Rotation: t.Rotation, Event: seq, Version: t.Version,
		From: t.From, To: t.To, Target: t.Subject, Reason: t.Message,
	}
	if t.Reason != "" {
		entry.Detail = map[string]string{"reason": t.Reason}
	}
	more := map[string]string{"waiting-for": strings.Join(moved.Names, " "), "regions": strings.Join(namesOf(moved.Late), " ")}
	for name, text := range more {
		if text == "" {
			continue
		}
		if entry.Detail == nil {
			entry.Detail = map[string]string{}
		}
		entry.Detail[name] = text
	}
	return entry
}

// waitingNames are the parties a rotation waits for.
func waitingNames(state *rotation.State, id key.RotationID) []string {
	r, ok := state.Rotation(id)
	if !ok {
		return nil
	}
	var names []string
	for _, waiting := range state.Explain(r) {
		for _, name := range waiting.Names {
			if len(names) == 20 {
				return names
			}
			names = append(names, name)
		}
	}
	return names
}

// recordRotation writes a rotation's record if it changed.
func (c *change) recordRotation(name key.Name, before *rotation.State, r *rotation.Rotation, refused refusal, records map[key.RotationID]*RotationRecord) error {
	emergency := r.Kind == rotation.Emergency
	if old, ok := before.Rotation(r.ID); ok && !changedVisibly(old, r) && (!emergency || !refused.now) {
		return nil
	}
	record, doc, err := c.rotation(r.ID)
	if errors.Is(err, ErrNotFound) {
		record = RotationRecord{Key: name}
		if c.begins.key == name {
			record.Policy = c.begins.policy
		}
		doc = store.Doc{Kind: kindRotation, Name: newestFirst(r.ID)}
		index := store.Doc{Kind: kindOfKey, Name: string(name) + " " + newestFirst(r.ID)}
		if _, err := c.tx.Docs.Put(c.ctx, index); err != nil {
			return err
		}
		err = nil
	}
	if err != nil {
		return err
	}
	record.take(r, c.now)
	if emergency && refused.proven && record.RefusedAt.IsZero() {
		record.RefusedAt = c.now
	}
	records[r.ID] = &record
	if !r.Phase.Ended() {
		return c.putRotation(doc, &record)
	}
	if err := c.rotationEnded(name); err != nil {
		return err
	}
	return c.putRotation(doc, &record)
}

// changedVisibly reports whether a record must be written anew.
func changedVisibly(old, r *rotation.Rotation) bool {
	return old.Phase != r.Phase || old.Stage != r.Stage || old.Hold != r.Hold || old.To != r.To || old.From != r.From ||
		old.Kind != r.Kind || len(old.Approvals) != len(r.Approvals) || !old.RecoveredAt.Equal(r.RecoveredAt)
}

func (c *change) rotation(id key.RotationID) (RotationRecord, store.Doc, error) {
	return readRotation(c.ctx, c.tx, id)
}

func (c *change) putRotation(doc store.Doc, record *RotationRecord) error {
	body, err := encode(record)
	if err != nil {
		return err
	}
	doc.Body = body
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

// versionDestroyed notes when a version's material was shredded.
func (c *change) versionDestroyed(name key.Name, v key.Version) error {
	return c.editVersion(name, v, func(r *VersionRecord) { r.Destroyed = c.now })
}

// editVersion changes a version's record.
func (c *change) editVersion(name key.Name, v key.Version, edit func(*VersionRecord)) error {
	doc, err := c.tx.Docs.Get(c.ctx, kindVersion, versionName(name, v))
	if err != nil {
		return err
	}
	var record VersionRecord
	if err := decodeInto(doc.Body, &record); err != nil {
		return err
	}
	edit(&record)
	if doc.Body, err = encode(record); err != nil {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

// logSource reads the audit log within a transaction.
type logSource struct{ tx store.Tx }

func (s logSource) Records(ctx context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	return s.tx.Log.Records(ctx, from, limit)
}

func (s logSource) Hashes(ctx context.Context, indexes []uint64) ([]tlog.Hash, error) {
	stored, err := s.tx.Log.Hashes(ctx, indexes)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", audit.ErrMissingHash, err)
	}
	hashes := make([]tlog.Hash, len(stored))
	for i, h := range stored {
		hashes[i] = tlog.Hash(h)
	}
	return hashes, err
}

func (s logSource) Checkpoints(ctx context.Context, from uint64, limit int) ([][]byte, error) {
	after := ""
	if from > 0 {
		after = checkpointName(from - 1)
	}
	docs, err := s.tx.Index.List(ctx, kindCheckpoint, "", after, limit)
	if err != nil {
		return nil, err
	}
	signed := make([][]byte, len(docs))
	for i, doc := range docs {
		signed[i] = doc.Body
	}
	return signed, nil
}

// checkpointName sorts checkpoints by size.
func checkpointName(size uint64) string { return fmt.Sprintf("%020d", size) }

// Transact runs fn in a transaction together with the audit entries that it
// enters, for neighbours that keep documents of their own. fn may run again.
func (e *Engine) Transact(ctx context.Context, actor audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error {
	return e.update(ctx, actor, func(c *change) error { return fn(c.tx, c.audit) })
}
