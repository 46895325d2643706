package apikeycheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
)

// Names of records.
const (
	nameMark    = "mark"
	nameEntries = "keys-%08d"
	nameUses    = "uses-%08d"
)

const (
	// markEvery is how far the times in the cache may be behind.
	markEvery = 5 * time.Second
	// pieceSize is about how long a record of entries is.
	pieceSize = 64 << 10
	// maxQueue bounds the changes that wait to be kept; when there are more the whole
	// table is.
	maxQueue = 8 << 20
	// wornOut is how much of changes, beside half of what the table took, has the whole
	// table kept anew.
	wornOut = 1 << 20
	// saveAgain and saveLast bound the time between two tries to save.
	saveAgain = time.Second
	saveLast  = time.Minute
	// maxTries is how often at once a table is begun.
	maxTries = 3
	pageSize = 1000
)

// errFallenBehind: so much was changed while the table was saved that it is begun anew.
var errFallenBehind = errors.New("too much was changed meanwhile")

// saver keeps the cache equal to the table: what is in it, then what waits here, in this
// order, is the table. With each write goes the mark of what is in it then, never of
// what is not yet.
type saver struct {
	checker *Checker
	cache   Cache
	wake    chan struct{}

	mu sync.Mutex
	// waiting are entries that are not in the cache: those that are being written, then
	// the latest. size is how long they are.
	waiting [][]byte
	size    int
	writing int // how many of waiting are being written, and do not grow
	// whole: the cache is of no use as a base; the table is written as a whole, and
	// nothing waits before that has begun.
	whole bool
	// behind ends the writing of a table, if one is being written.
	behind context.CancelCauseFunc
	pepper []byte
	// rev and fresh are those of the latest mark of the server; rev is 0 before it.
	rev   uint64
	fresh *moment
	err   error

	// The rest is of the one who saves.
	generation   uint64
	entries      uint32
	base, beside int // how long the table was, and the changes after it
	kept         mark
	keptAt       *moment
	// usesKept is how many records of uses there are, usesTold that they were reported,
	// withUses that those which wait are to be kept.
	usesKept uint32
	usesTold atomic.Bool
	withUses bool
}

func newSaver(c *Checker) *saver {
	return &saver{checker: c, cache: c.config.Cache, wake: make(chan struct{}, 1), whole: true}
}

func (s *saver) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// change has a change wait that the table has taken.
func (s *saver) change(e *keytable.Entry, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(e, gone)
}

func (s *saver) add(e *keytable.Entry, gone bool) {
	if s.whole {
		return
	}
	last := len(s.waiting) - 1
	if last < s.writing || len(s.waiting[last]) >= pieceSize {
		s.waiting = append(s.waiting, nil)
		last++
	}
	before := len(s.waiting[last])
	s.waiting[last] = appendEntry(s.waiting[last], e, gone)
	if s.size += len(s.waiting[last]) - before; s.size > maxQueue {
		s.restart()
	}
}

// restart has the whole table written.
func (s *saver) restart() {
	s.whole, s.waiting, s.size, s.writing = true, nil, 0, 0
	if s.behind != nil {
		s.behind(errFallenBehind)
	}
}

// swapped has what makes another table of the old one wait.
func (s *saver) swapped(pepper []byte, old, next *keytable.Table) {
	s.mu.Lock()
	same := bytes.Equal(s.pepper, pepper)
	if !same {
		s.pepper = bytes.Clone(pepper)
		s.restart()
	}
	whole := s.whole
	s.mu.Unlock()
	if whole {
		return
	}
	differences(old, next, func(e *keytable.Entry, gone bool) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.add(e, gone)
		return !s.whole
	})
}

// differences calls fn with what has to be changed in old to get next, until fn returns
// false.
func differences(old, next *keytable.Table, fn func(e *keytable.Entry, gone bool) bool) {
	for from := uint32(1); from != 0; {
		var list []keytable.Entry
		list, from = next.Page(from, pageSize)
		for i := range list {
			if before, there := old.Get(&list[i].Hash); (!there || !equal(&before, &list[i])) && !fn(&list[i], false) {
				return
			}
		}
	}
	for from := uint32(1); from != 0; {
		var list []keytable.Entry
		list, from = old.Page(from, pageSize)
		for i := range list {
			if _, there := next.Get(&list[i].Hash); !there && !fn(&list[i], true) {
				return
			}
		}
	}
}

func equal(a, b *keytable.Entry) bool {
	return a.Key == b.Key && a.Version == b.Version && a.Accepted == b.Accepted && a.Rules.Client == b.Rules.Client &&
		a.Rules.PerSecond == b.Rules.PerSecond && a.Rules.Burst == b.Rules.Burst && a.Rules.Expires.Equal(b.Rules.Expires) &&
		slices.Equal(a.Rules.Scopes, b.Rules.Scopes)
}

// mark notes up to which revision, and as of when, everything is in the table and waits
// here.
func (s *saver) mark(rev uint64, fresh *moment) {
	s.mu.Lock()
	moved := s.rev != rev
	s.rev, s.fresh = rev, fresh
	same := !s.whole && s.behind == nil && len(s.waiting) == 0
	s.mu.Unlock()
	switch {
	case same:
		s.checker.confirm(rev) // a restart leads to the same table
	case moved:
		s.poke()
	}
}

func (s *saver) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run saves until ctx ends.
func (s *saver) run(ctx context.Context) {
	ticker := time.NewTicker(markEvery)
	defer ticker.Stop()
	for backoff := saveAgain; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-ticker.C:
		}
		err := s.save(ctx)
		if ctx.Err() != nil {
			return
		}
		s.note(ctx, err)
		if err == nil {
			backoff = saveAgain
			continue
		}
		timer := time.NewTimer(backoff/2 + rand.N(backoff)) //nolint:gosec // it spreads tries and guards no secret
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		s.poke()
		backoff = min(2*backoff, saveLast)
	}
}

// note keeps how saving went, and tells the first of several failures.
func (s *saver) note(ctx context.Context, err error) {
	s.mu.Lock()
	before := s.err
	s.err = err
	s.mu.Unlock()
	switch {
	case err != nil && before == nil:
		s.checker.config.Logger.ErrorContext(ctx, "API keys cannot be kept in the cache: they are verified as before, but no change is confirmed to the server, so that rotations"+
			" wait for this verifier; and after a restart it may have to wait for a server. Mend the cache, for example its disk", "error", err)
	case err == nil && before != nil:
		s.checker.config.Logger.InfoContext(ctx, "API keys are kept in the cache again")
	}
}

// save writes what there is to be written.
func (s *saver) save(ctx context.Context) error {
	if !s.needsWhole() {
		var uses keptUses
		if s.usesTold.Swap(false) && s.usesKept > 0 {
			uses = keptUses{} // if it fails the next report says it again
		}
		if err := s.update(ctx, uses, false); err != nil {
			return err
		}
		if s.beside > s.base/2+wornOut {
			s.mu.Lock()
			s.restart()
			s.mu.Unlock()
		}
	}
	for tries := 1; s.needsWhole(); tries++ {
		if err := s.replace(ctx); err != nil && (!errors.Is(err, errFallenBehind) || tries == maxTries) {
			return err
		}
	}
	return nil
}

// needsWhole reports whether the table is to be written as a whole, and there is one.
func (s *saver) needsWhole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole && s.rev != 0
}

// close keeps everything, uses that wait included, reports these, and forgets them then.
func (s *saver) close(ctx context.Context) error {
	kept := s.saveAll(ctx)
	told := s.checker.send(ctx, false)
	switch {
	case told == nil && kept == nil && s.usesKept > 0:
		// Else they are reported again after the restart.
		if err := s.update(ctx, keptUses{}, true); err != nil {
			s.checker.config.Logger.WarnContext(ctx, "uses of API keys that were reported are kept, and will be reported again", "error", err)
		}
		return nil
	case told == nil:
		return nil
	case kept == nil:
		s.checker.config.Logger.WarnContext(ctx, "uses of API keys could not be reported; they are kept in the cache until the restart", "error", told)
		return nil
	}
	return errors.Join(told, kept)
}

// saveAll keeps everything as it is now.
func (s *saver) saveAll(ctx context.Context) error {
	s.mu.Lock()
	whole, marked := s.whole, s.rev != 0
	s.mu.Unlock()
	s.checker.uses.drain(s.checker.table.Load())
	s.withUses = true
	if whole && !marked {
		return errors.New("there is no snapshot to keep yet")
	}
	if whole {
		return s.replace(ctx)
	}
	uses, err := s.checker.uses.encode()
	if err != nil {
		return err
	}
	if len(uses) == 0 && s.usesKept == 0 {
		uses = nil
	}
	return s.update(ctx, uses, true)
}

// empty leaves nothing in the cache.
func (s *saver) empty(ctx context.Context) error {
	if err := s.cache.Replace(ctx, func(func(Record) bool) {}); err != nil {
		return fmt.Errorf("empty the cache of API keys: %w", err)
	}
	return nil
}

// newMark is the mark of everything that waits now. The caller holds the lock.
func (s *saver) newMark() mark {
	c := s.checker
	m := mark{Verifier: c.config.Name, Centre: c.addresses, MaxAge: time.Duration(c.limit.Load()), Entries: s.entries, Base: s.base, Uses: s.usesKept}
	if s.fresh != nil {
		m.Fresh = s.fresh.wall
	}
	if reported := c.reported.Load(); reported != nil {
		m.Reported = reported.wall
	}
	return m
}

// keptUses are uses as records hold them.
type keptUses [][]byte

// update writes what waits; the uses, if they are not nil, in place of those that are
// kept; and the mark, if it is time or has to be now.
func (s *saver) update(ctx context.Context, uses keptUses, now bool) error {
	s.mu.Lock()
	rev, entries := s.rev, s.entries
	s.writing = len(s.waiting)
	pieces := s.waiting[:s.writing:s.writing]
	m := s.newMark()
	s.mu.Unlock()
	m.Entries += uint32(len(pieces))
	if uses != nil {
		m.Uses = uint32(len(uses))
	}
	began := s.checker.config.Now()
	moved := m.Fresh != s.kept.Fresh || m.Reported != s.kept.Reported || m.MaxAge != s.kept.MaxAge
	if len(pieces) > 0 || uses != nil || moved && (now || s.checker.clock.since(s.keptAt, began) >= int64(markEvery)) {
		records, err := s.records(pieces, entries, &m)
		if err != nil {
			return err
		}
		if uses != nil {
			records = append(records, s.usesRecords(uses, s.usesKept)...)
		}
		if err := s.cache.Update(ctx, records...); err != nil {
			return fmt.Errorf("save %d changes in the cache: %w", len(pieces), err)
		}
		s.kept, s.keptAt, s.usesKept = m, s.checker.clock.at(began, 0), m.Uses
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = 0
	if s.whole { // so much came that what was written is of no use
		return nil
	}
	s.entries = m.Entries
	for _, piece := range pieces {
		s.size -= len(piece)
		s.beside += len(piece)
	}
	s.waiting = slices.Delete(s.waiting, 0, len(pieces))
	if rev != 0 {
		s.checker.confirm(rev)
	}
	return nil
}

// records are the pieces, numbered after those that there are, and the mark.
func (s *saver) records(pieces [][]byte, after uint32, m *mark) ([]Record, error) {
	records := make([]Record, 0, len(pieces)+1)
	for i, piece := range pieces {
		records = append(records, s.entriesRecord(after+uint32(i)+1, piece))
	}
	data, err := jsonFrame(frameMark, s.generation, 0, m)
	return append(records, Record{Name: nameMark, Data: data}), err
}

func (s *saver) entriesRecord(number uint32, piece []byte) Record {
	f := frame{kind: frameEntries, generation: s.generation, number: number, body: piece}
	return Record{Name: fmt.Sprintf(nameEntries, number), Data: f.encode()}
}

func (s *saver) usesRecords(uses keptUses, before uint32) []Record {
	var records []Record
	for i := range max(uint32(len(uses)), before) {
		record := Record{Name: fmt.Sprintf(nameUses, i+1)}
		if int(i) < len(uses) {
			f := frame{kind: frameUses, generation: s.generation, number: i + 1, body: uses[i]}
			record.Data = f.encode()
		}
		records = append(records, record)
	}
	return records
}

// replace writes the table as a whole.
func (s *saver) replace(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	// From now on what is changed waits, and is written after the table, which may have
	// it already.
	s.whole, s.waiting, s.size, s.writing, s.behind = false, nil, 0, 0, cancel
	table, pepper := s.checker.table.Load(), s.pepper
	s.mu.Unlock()
	writing := &wholeTable{saver: s, generation: rand.Uint64() | 1, table: table, pepper: pepper} //nolint:gosec // it tells generations apart and guards no secret
	err := s.cache.Replace(ctx, writing.records(ctx))
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err == nil {
		err = writing.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behind = nil
	if err == nil && s.whole {
		err = errFallenBehind
	}
	if err != nil {
		s.whole, s.waiting, s.size, s.writing = true, nil, 0, 0
		return fmt.Errorf("save the snapshot in the cache: %w", err)
	}
	s.generation, s.entries, s.base, s.beside = writing.generation, writing.mark.Entries, writing.size, 0
	s.kept, s.keptAt, s.usesKept = writing.mark, s.checker.clock.at(s.checker.config.Now(), 0), writing.mark.Uses
	s.checker.confirm(writing.rev)
	if len(s.waiting) > 0 || s.rev != writing.rev {
		s.poke()
	}
	return nil
}

// wholeTable is a table that is being written.
type wholeTable struct {
	saver      *saver
	generation uint64
	table      *keytable.Table
	pepper     []byte

	// What was written in the end.
	mark mark
	rev  uint64
	size int
	err  error
}

// records are the pepper, the table page by page, what was changed meanwhile, and the
// mark of that.
func (w *wholeTable) records(ctx context.Context) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		s := &saver{generation: w.generation}
		f := frame{kind: framePepper, generation: w.generation, body: w.pepper}
		if !yield(Record{Name: SecretRecord, Data: f.encode()}) {
			return
		}
		var number uint32
		write := func(piece []byte) bool {
			number++
			w.size += len(piece)
			return yield(s.entriesRecord(number, piece))
		}
		var piece []byte
		for from := uint32(1); from != 0 && ctx.Err() == nil; {
			var list []keytable.Entry
			list, from = w.table.Page(from, pageSize)
			for i := range list {
				if piece = appendEntry(piece, &list[i], false); len(piece) >= pieceSize {
					if !write(piece) {
						return
					}
					piece = nil
				}
			}
		}
		if ctx.Err() != nil || len(piece) > 0 && !write(piece) {
			return
		}
		w.finish(s, number, write, yield)
	}
}

// finish writes what was changed meanwhile, the uses that are kept, and the mark.
func (w *wholeTable) finish(s *saver, number uint32, write func([]byte) bool, yield func(Record) bool) {
	var uses keptUses
	if w.saver.withUses || w.saver.usesKept > 0 && !w.saver.usesTold.Load() {
		if uses, w.err = w.saver.checker.uses.encode(); w.err != nil {
			return
		}
	}
	w.saver.mu.Lock()
	if w.saver.whole {
		w.saver.mu.Unlock()
		return // it has fallen behind, and is begun anew
	}
	tail := w.saver.waiting
	w.saver.waiting, w.saver.size = nil, 0
	w.mark, w.rev = w.saver.newMark(), w.saver.rev
	w.saver.mu.Unlock()
	for _, piece := range tail {
		if !write(piece) {
			return
		}
		number++
	}
	for _, record := range s.usesRecords(uses, 0) {
		if !yield(record) {
			return
		}
	}
	w.mark.Entries, w.mark.Base, w.mark.Uses = number, w.size, uint32(len(uses))
	data, err := jsonFrame(frameMark, w.generation, 0, &w.mark)
	if w.err = err; err == nil {
		yield(Record{Name: nameMark, Data: data})
	}
}
