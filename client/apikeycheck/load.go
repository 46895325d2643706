package apikeycheck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
)

// errForeign: the cache is another verifier's, or of another centre.
var errForeign = errors.New("the cache is of another verifier")

// load takes over what the cache holds, if it is of use. It fails only with ctx.
func (s *saver) load(ctx context.Context) error {
	c := s.checker
	l := loading{table: keytable.New()}
	err := s.cache.Load(ctx, l.take)
	if ctx.Err() != nil {
		return fmt.Errorf("read the cache of API keys: %w", ctx.Err())
	}
	if err == nil && l.records == 0 {
		return nil
	}
	if err == nil {
		err = l.check(c)
	}
	if err != nil {
		c.config.Logger.WarnContext(ctx, "the cache of API keys is not used; everything is fetched anew, and kept instead", "error", err)
		return nil
	}
	for _, text := range l.uses {
		if err := c.uses.restore(text); err != nil {
			c.config.Logger.WarnContext(ctx, "uses of API keys that were kept in the cache are lost", "error", err)
		}
	}
	now := c.config.Now()
	s.pepper, s.generation, s.whole = l.pepper, l.generation, false
	s.entries, s.base, s.beside = l.mark.Entries, l.mark.Base, l.size-l.mark.Base
	s.usesKept, s.kept = l.mark.Uses, l.mark
	s.fresh = c.clock.restored(now, l.mark.Fresh)
	c.hasher.Store(keytable.NewHasher(l.pepper))
	c.table.Store(l.table)
	c.fresh.Store(s.fresh)
	c.reported.Store(c.clock.restored(now, l.mark.Reported))
	c.limit.Store(int64(min(c.config.MaxAge, l.mark.MaxAge)))
	if s.fresh == nil || c.reported.Load() == nil {
		c.config.Logger.WarnContext(ctx, "the cache of API keys is of a time that is still to come, so the clock was set back; no key is let in before a server answers",
			"fresh", time.Unix(0, l.mark.Fresh).UTC())
	}
	return nil
}

// loading is what was read so far.
type loading struct {
	table      *keytable.Table
	records    int
	generation uint64
	entries    uint32
	size       int
	pepper     []byte
	mark       mark
	marked     bool
	uses       [][]byte
}

func (l *loading) take(r Record) error {
	f, err := decodeFrame(r.Data)
	if err != nil {
		return err
	}
	if l.records++; l.records == 1 {
		l.generation = f.generation
	}
	if f.generation != l.generation {
		return fmt.Errorf("%w: record %s is of another generation", errDamaged, r.Name)
	}
	name := SecretRecord
	switch f.kind {
	case framePepper:
		l.pepper = slices.Clone(f.body)
	case frameMark:
		name, l.marked = nameMark, true
		l.mark, err = decodeMark(f.body)
	case frameEntries:
		l.entries++
		name, l.size = fmt.Sprintf(nameEntries, l.entries), l.size+len(f.body)
		err = eachEntry(f.body, func(e *keytable.Entry, gone bool) error { return change(l.table, e, gone) })
	case frameUses:
		l.uses = append(l.uses, slices.Clone(f.body))
		name = fmt.Sprintf(nameUses, len(l.uses))
	}
	if err == nil && r.Name != name {
		err = fmt.Errorf("%w: record %s is out of its place", errDamaged, r.Name)
	}
	return err
}

// check returns an error unless everything is there and the checker's own.
func (l *loading) check(c *Checker) error {
	if !l.marked || len(l.pepper) == 0 || l.entries != l.mark.Entries || uint32(len(l.uses)) != l.mark.Uses || l.mark.Base > l.size || l.mark.Base < 0 {
		return fmt.Errorf("%w: a record is missing", errDamaged)
	}
	if l.mark.Verifier != c.config.Name {
		return fmt.Errorf("%w: %q, and this is %q", errForeign, l.mark.Verifier, c.config.Name)
	}
	if !slices.ContainsFunc(l.mark.Centre, func(address string) bool { return slices.Contains(c.addresses, address) }) {
		return fmt.Errorf("%w: its server is at %q, and this one's at %q", errForeign, l.mark.Centre, c.addresses)
	}
	return nil
}
