package apikey

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindVerifier are the verifiers outside the server that were given a snapshot.
const kindVerifier = "apikey-verifier"

const (
	// maxVerifiers bounds the verifiers on one store.
	maxVerifiers = 10_000
	// maxReported bounds the versions with uses that verifiers reported and that are
	// not written yet.
	maxReported = 100_000
	// maxChanges is how many changes are kept for verifiers that are a little behind.
	maxChanges = 16_384
	// pageSize is how many versions of a snapshot are sent at once.
	pageSize = 1000
	// markEvery is how often a verifier is told that it has everything.
	markEvery = time.Second
	// MaxAge bounds for how long a verifier may use a snapshot without news.
	MaxAge = 24 * time.Hour
)

// Verifier is one outside the server that verifies by a snapshot.
type Verifier struct {
	// ID is unique on the store.
	ID string
	// MaxAge is for how long it lets keys in without news: a refusal waits so long
	// for one that is not heard of.
	MaxAge time.Duration
	// Covers reports whether it is told of a key.
	Covers func(key.Name) bool
}

// verifier is what is known of one.
type verifier struct {
	Rev      uint64        `json:"rev"`
	Seen     time.Time     `json:"seen"`
	Reported time.Time     `json:"reported,omitzero"`
	MaxAge   time.Duration `json:"maxAge"`
	Left     bool          `json:"left,omitempty"`
}

// verifiers are those that speak to this node, and the uses they reported.
type verifiers struct {
	mu    sync.Mutex
	known map[string]verifier
	dirty map[string]bool
	uses  map[string]*reportedUse
	// confirmed is closed and replaced when one confirms a revision.
	confirmed chan struct{}

	// changes are the latest lines, in order of their revisions; those up to from
	// are not there any more.
	changes []changeLine
	from    uint64
}

type changeLine struct {
	rev  uint64
	name key.Name
	line []byte
}

type reportedUse struct {
	use     keytable.Use
	holders []holder
}

func (v *verifiers) init() {
	v.known, v.dirty, v.uses, v.confirmed = map[string]verifier{}, map[string]bool{}, map[string]*reportedUse{}, make(chan struct{})
}

// changed keeps the line of a change.
func (v *verifiers) changed(rev uint64, e *keytable.Entry, gone bool) {
	l := keytable.LineOf(e, gone)
	line, err := l.Encode()
	if err != nil {
		return // names and numbers can always be encoded
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.changes) >= maxChanges {
		half := len(v.changes) / 2
		v.from = v.changes[half-1].rev
		v.changes = slices.Clone(v.changes[half:])
	}
	v.changes = append(v.changes, changeLine{rev: rev, name: e.Key, line: line})
}

// skip notes that what was changed up to a revision is in no line.
func (v *verifiers) skip(rev uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changes, v.from = nil, rev
}

// since appends the lines after one revision up to another to b; false when they
// are not all there.
func (v *verifiers) since(after, upTo uint64, covers func(key.Name) bool, b *bytes.Buffer) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if after < v.from {
		return false
	}
	i, _ := slices.BinarySearchFunc(v.changes, after+1, func(c changeLine, rev uint64) int {
		switch {
		case c.rev < rev:
			return -1
		case c.rev > rev:
			return 1
		}
		return 0
	})
	for _, c := range v.changes[i:] {
		if c.rev <= upTo && covers(c.name) {
			b.Write(c.line)
		}
	}
	return true
}

// Snapshot sends a verifier everything that it covers, then every change, until
// ctx ends or send fails. send gets whole lines (keytable.Line) that belong
// together. Before the first one the verifier is noted: changes wait for it from
// then on.
func (s *Service) Snapshot(ctx context.Context, v Verifier, send func([]byte) error) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	pepper := s.peppers.forSnapshots.Load()
	if pepper == nil {
		if err := s.peppers.load(ctx, &s.config, true); err != nil {
			return err
		}
		pepper = s.peppers.forSnapshots.Load()
	}
	if err := s.enter(ctx, &v); err != nil {
		return err
	}
	// What was changed before it was noted waited for nobody: it is read now.
	if err := s.catchUp(ctx); err != nil {
		return err
	}
	first := keytable.Line{Pepper: *pepper}
	line, err := first.Encode()
	if err != nil {
		return err
	}
	if err := send(line); err != nil {
		return err
	}
	ticker := time.NewTicker(markEvery)
	defer ticker.Stop()
	var has uint64
	for whole := true; ; {
		moved := s.arrived()
		rev := s.rev.Load()
		var b bytes.Buffer
		if !whole {
			whole = !s.verifiers.since(has, rev, v.Covers, &b)
		}
		if whole {
			b.Reset()
			if err := s.sendAll(v.Covers, send); err != nil {
				return err
			}
			whole = false
		}
		mark := keytable.Line{Rev: max(rev, 1), Age: max((s.config.Now().UnixNano()-s.fresh.Load())/int64(time.Millisecond), 0)}
		if line, err = mark.Encode(); err != nil {
			return err
		}
		b.Write(line)
		if err := send(b.Bytes()); err != nil {
			return err
		}
		has = rev
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-moved:
		case <-ticker.C:
		}
	}
}

func (s *Service) sendAll(covers func(key.Name) bool, send func([]byte) error) error {
	reset := keytable.Line{Reset: true}
	line, err := reset.Encode()
	if err != nil {
		return err
	}
	if err := send(line); err != nil {
		return err
	}
	for from := uint32(1); from != 0; {
		var list []keytable.Entry
		list, from = s.table.Page(from, pageSize)
		var b bytes.Buffer
		for i := range list {
			if !covers(list[i].Key) {
				continue
			}
			l := keytable.LineOf(&list[i], false)
			if line, err = l.Encode(); err != nil {
				return err
			}
			b.Write(line)
		}
		if b.Len() == 0 {
			continue
		}
		if err := send(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// enter notes a verifier, in the store too, unless that is known already.
func (s *Service) enter(ctx context.Context, v *Verifier) error {
	now := s.config.Now().UTC()
	next := verifier{Seen: now, MaxAge: min(v.MaxAge, MaxAge)}
	err := s.config.Store.Update(ctx, func(tx store.Tx) error { return putVerifier(ctx, tx, v.ID, next) })
	if err != nil {
		return fmt.Errorf("note the verifier: %w", err)
	}
	s.verifiers.mu.Lock()
	defer s.verifiers.mu.Unlock()
	if len(s.verifiers.known) < maxVerifiers || !s.verifiers.known[v.ID].Seen.IsZero() {
		s.verifiers.known[v.ID] = next
	}
	return nil
}

func putVerifier(ctx context.Context, tx store.Tx, id string, v verifier) error {
	doc, err := store.Revision(ctx, tx.Docs, kindVerifier, id)
	if errors.Is(err, store.ErrNotFound) {
		doc, err = store.Doc{Kind: kindVerifier, Name: id}, nil
	}
	if err != nil {
		return err
	}
	if doc.Body, err = json.Marshal(v); err != nil {
		return fmt.Errorf("encode a verifier: %w", err)
	}
	doc.Due = v.Seen.Add(v.MaxAge + goneKept)
	_, err = tx.Docs.Put(ctx, doc)
	return err
}

// Report is what a verifier tells.
type Report struct {
	// Rev is what it serves.
	Rev uint64 `json:"rev"`
	// Leaving: it serves nothing any more.
	Leaving bool        `json:"leaving,omitempty"`
	Uses    []ReportUse `json:"uses,omitempty"`
}

// ReportUse is how often a version was used since the last report, by whom.
type ReportUse struct {
	Key         key.Name    `json:"key"`
	Version     key.Version `json:"version"`
	Count       uint32      `json:"count"`
	Address     string      `json:"address,omitempty"`
	Application string      `json:"application,omitempty"`
	// Refused: it was tried and not let in.
	Refused bool `json:"refused,omitempty"`
}

// Report takes what a verifier tells. What it tells of keys that it does not cover
// is left out. It is durable with the next writing of uses.
func (s *Service) Report(v *Verifier, report *Report) error {
	now := s.config.Now().UTC()
	l := &s.verifiers
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range report.Uses {
		u := &report.Uses[i]
		if u.Count == 0 || !v.Covers(u.Key) {
			continue
		}
		if u.Refused {
			s.refused.addN(u.Key, u.Version, Caller{Address: u.Address, Application: u.Application}, uint64(u.Count), now)
			continue
		}
		name := docName(u.Key, u.Version)
		pending := l.uses[name]
		if pending == nil {
			if len(l.uses) >= maxReported {
				return fmt.Errorf("%w: too many uses wait to be written", ErrUnsure)
			}
			pending = &reportedUse{use: keytable.Use{Key: u.Key, Version: u.Version}}
			l.uses[name] = pending
		}
		pending.use.Count += u.Count
		pending.use.Last = now
		one := holder{Address: clip(u.Address), Application: clip(u.Application)}
		one.count(uint64(u.Count), now)
		pending.add(&one)
	}
	known := l.known[v.ID]
	known.Rev, known.Seen, known.Reported, known.MaxAge, known.Left = report.Rev, now, now, min(v.MaxAge, MaxAge), report.Leaving
	if len(l.known) < maxVerifiers || !l.known[v.ID].Seen.IsZero() {
		l.known[v.ID] = known
		l.dirty[v.ID] = true
	}
	close(l.confirmed)
	l.confirmed = make(chan struct{})
	return nil
}

func (u *reportedUse) add(one *holder) {
	for i := range u.holders {
		if u.holders[i].is(one) {
			u.holders[i].Now += one.Now
			u.holders[i].All += one.All
			u.holders[i].Span, u.holders[i].Last = one.Span, one.Last
			return
		}
	}
	if len(u.holders) < maxHolders {
		u.holders = append(u.holders, *one)
	}
}

// heard returns a channel that is closed when a verifier confirms something here.
func (v *verifiers) heard() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.confirmed
}

// writeReports writes what verifiers reported: their uses, then that they did.
func (s *Service) writeReports(ctx context.Context, now time.Time) error {
	l := &s.verifiers
	l.mu.Lock()
	uses, dirty := l.uses, l.dirty
	l.uses, l.dirty = map[string]*reportedUse{}, map[string]bool{}
	states := map[string]verifier{}
	for id := range dirty {
		states[id] = l.known[id]
	}
	l.mu.Unlock()
	err := s.writeReportsOf(ctx, uses, states, now)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		for id, v := range states {
			if v.Left && l.known[id] == v {
				delete(l.known, id)
			}
		}
		return nil
	}
	for name, u := range uses { // what was not written waits again; what was is not in uses any more
		if l.uses[name] == nil {
			l.uses[name] = u
			continue
		}
		l.uses[name].use.Count += u.use.Count
		for i := range u.holders {
			l.uses[name].add(&u.holders[i])
		}
	}
	maps.Copy(l.dirty, dirty)
	return err
}

func (s *Service) writeReportsOf(ctx context.Context, uses map[string]*reportedUse, states map[string]verifier, now time.Time) error {
	for part := range slices.Chunk(slices.Sorted(maps.Keys(uses)), maxUses) {
		written := map[string]bool{}
		err := s.config.Store.Update(ctx, func(tx store.Tx) error {
			for _, name := range part {
				if _, err := store.Revision(ctx, tx.Docs, kindEntry, name); errors.Is(err, store.ErrNotFound) {
					continue // a verifier made it up, or it is long gone
				} else if err != nil {
					return err
				}
				if _, err := s.addUses(ctx, tx, &uses[name].use, uses[name].holders, now); err != nil {
					return err
				}
				written[name] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, name := range part {
			if written[name] {
				s.tellUsed(&uses[name].use, uses[name].holders)
			}
			delete(uses, name)
		}
	}
	for part := range slices.Chunk(slices.Sorted(maps.Keys(states)), maxUses) {
		err := s.config.Store.Update(ctx, func(tx store.Tx) error {
			for _, id := range part {
				if err := writeVerifier(ctx, tx, id, states[id]); err != nil {
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

func writeVerifier(ctx context.Context, tx store.Tx, id string, v verifier) error {
	if !v.Left {
		return putVerifier(ctx, tx, id, v)
	}
	doc, err := store.Revision(ctx, tx.Docs, kindVerifier, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return tx.Docs.Delete(ctx, kindVerifier, id, doc.Rev)
}

// listVerifiers returns the verifiers on the store, with what this node knows.
func (s *Service) listVerifiers(ctx context.Context, tx store.Tx) (map[string]verifier, error) {
	docs, err := tx.Index.List(ctx, kindVerifier, "", "", maxVerifiers)
	if err != nil {
		return nil, err
	}
	list := make(map[string]verifier, len(docs))
	for _, doc := range docs {
		var v verifier
		if err := json.Unmarshal(doc.Body, &v); err != nil {
			return nil, fmt.Errorf("stored verifier %s is damaged: %w", doc.Name, err)
		}
		list[doc.Name] = v
	}
	s.verifiers.mu.Lock()
	defer s.verifiers.mu.Unlock()
	for id, v := range s.verifiers.known {
		if stored, there := list[id]; there && !v.Seen.Before(stored.Seen) {
			list[id] = v
		}
	}
	return list, nil
}

// Known is a verifier outside the server that was given a snapshot and has not been
// silent for so long that it is forgotten.
type Known struct {
	// ID is as in Verifier.
	ID   string
	Seen time.Time
	// Left: it said that it serves nothing any more.
	Left bool
}

// Verifiers returns those that are known, in no order.
func (s *Service) Verifiers(ctx context.Context) ([]Known, error) {
	var list map[string]verifier
	err := s.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		list, err = s.listVerifiers(ctx, tx)
		return err
	})
	known := make([]Known, 0, len(list))
	for id, v := range list {
		known = append(known, Known{ID: id, Seen: v.Seen, Left: v.Left})
	}
	return known, err
}

// mayServe reports whether the verifier may still let in what it was told of.
func (v *verifier) mayServe(now time.Time) bool {
	return !v.Left && now.Sub(v.Seen) <= v.MaxAge+staleMargin
}

// lateVerifiers names those that must be waited for until they serve a revision.
func lateVerifiers(list map[string]verifier, now time.Time, rev uint64, changed time.Time, accepted bool) []string {
	var names []string
	for id, v := range list {
		switch {
		case v.Rev >= rev || !v.mayServe(now):
		case accepted && now.Sub(v.Seen) > deadAfter:
			// It does not refuse what it does not know.
		case !accepted && now.Sub(changed) > v.MaxAge+staleMargin:
			// By itself it serves nothing any more.
		default:
			names = append(names, "verifier "+id)
		}
	}
	slices.Sort(names)
	return names
}

// untold names those that have not told of their uses since then.
func untold(list map[string]verifier, now, since time.Time) []string {
	var names []string
	for id, v := range list {
		if v.mayServe(now) && v.Reported.Before(since) {
			names = append(names, "verifier "+id)
		}
	}
	slices.Sort(names)
	return names
}

const maxLateNames = 20

// someNames joins names, not too many of them.
func someNames(names []string) string {
	if len(names) > maxLateNames {
		return fmt.Sprintf("%s and %d others", strings.Join(names[:maxLateNames], ", "), len(names)-maxLateNames)
	}
	return strings.Join(names, ", ")
}
