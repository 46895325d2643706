package apikeycheck

import (
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/secret"
)

// shelf is a cache in memory. during is called once, in the middle of the next write, and
// late before the next Replace is done.
type shelf struct {
	records      map[string][]byte
	during, late func()
}

func once(fn *func()) {
	if call := *fn; call != nil {
		*fn = nil
		call()
	}
}

func (s *shelf) Load(_ context.Context, each func(Record) error) error {
	for _, name := range slices.Sorted(maps.Keys(s.records)) {
		if err := each(Record{Name: name, Data: s.records[name]}); err != nil {
			return err
		}
	}
	return nil
}

func (s *shelf) Replace(ctx context.Context, records iter.Seq[Record]) error {
	next := map[string][]byte{}
	for r := range records {
		next[r.Name] = r.Data
		if r.Name != SecretRecord {
			once(&s.during)
		}
	}
	once(&s.late)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.records = next
	return nil
}

func (s *shelf) Update(_ context.Context, records ...Record) error {
	once(&s.during)
	for _, r := range records {
		s.records[r.Name] = r.Data
	}
	return nil
}

// TestFallsBehind: when more is changed while something is written than may wait, nothing
// is confirmed and nothing more is kept in memory; the next write is of the whole table.
func TestFallsBehind(t *testing.T) {
	for _, whole := range []bool{true, false} {
		cache := &shelf{}
		c, s := newKeeping(t, cache)
		flood := func() {
			for n := range 2 * maxQueue / 100 {
				put(t, c, uint64(n), n%2 == 0)
				if s.size > maxQueue || len(s.waiting) > 2*maxQueue/pieceSize {
					t.Fatalf("%d bytes wait in %d pieces", s.size, len(s.waiting))
				}
			}
			s.mark(3, c.clock.at(at, 0))
		}
		put(t, c, 1, true)
		s.mark(1, c.clock.at(at, 0))
		if !whole {
			if err := s.save(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		put(t, c, 2, true)
		s.mark(2, c.clock.at(at, 0))
		cache.during = flood
		write := s.update
		if whole {
			write = func(ctx context.Context, _ keptUses, _ bool) error { return s.replace(ctx) }
		}
		if err := write(t.Context(), nil, false); whole && !errors.Is(err, errFallenBehind) || !whole && err != nil {
			t.Errorf("whole: %v: %v", whole, err)
		}
		if confirmed := c.rev.Load(); confirmed > 1 || !s.whole || s.waiting != nil {
			t.Errorf("whole: %v: revision %d is confirmed; %d pieces wait", whole, confirmed, len(s.waiting))
		}
		cache.during = flood
		if err := s.save(t.Context()); err != nil || c.rev.Load() != 3 {
			t.Errorf("whole: %v: afterwards revision %d is confirmed, %v", whole, c.rev.Load(), err)
		}
		reads(t, c, cache)
	}
}

// TestChangesDuringAWrite: what comes while something is written is written after it.
func TestChangesDuringAWrite(t *testing.T) {
	cache := &shelf{}
	c, s := newKeeping(t, cache)
	put(t, c, 1, true)
	for n := uint64(2); n < 9; n += 2 { // the first one is a Replace
		put(t, c, n, true)
		s.mark(n, c.clock.at(at, 0))
		cache.during = func() {
			put(t, c, n, false)
			put(t, c, n+1, true)
			s.mark(n+1, c.clock.at(at, 0))
		}
		cache.late = func() {
			s.mark(n+1, c.clock.at(at, 0))
			if c.rev.Load() != 0 {
				t.Errorf("revision %d is confirmed, and nothing is written", c.rev.Load())
			}
		}
		for range 2 {
			if err := s.save(t.Context()); err != nil {
				t.Fatal(err)
			}
			if confirmed := c.rev.Load(); confirmed > n && len(s.waiting) != 0 {
				t.Errorf("revision %d is confirmed, and %d pieces wait", confirmed, len(s.waiting))
			}
		}
		if c.rev.Load() != n+1 {
			t.Errorf("revision %d is confirmed, want %d", c.rev.Load(), n+1)
		}
		reads(t, c, cache)
	}
}

// newKeeping returns a checker without a server, and its saver.
func newKeeping(t *testing.T, cache Cache) (*Checker, *saver) {
	t.Helper()
	config := Config{Address: "https://centre.example", Token: client.StaticToken(secret.NewString("token")), Name: "test", Cache: cache, Now: func() time.Time { return at }}
	addresses, err := config.complete()
	if err != nil {
		t.Fatal(err)
	}
	c := &Checker{config: config, addresses: addresses, clock: clock{at}, told: make(chan struct{}, 1)}
	c.table.Store(keytable.New())
	c.limit.Store(int64(config.MaxAge))
	c.saver = newSaver(c)
	c.saver.pepper = []byte("pepper")
	return c, c.saver
}

// put changes the table as a stream does.
func put(t *testing.T, c *Checker, n uint64, accepted bool) {
	t.Helper()
	e := keytable.Entry{Key: "partners/acme", Version: 1, Accepted: accepted, Rules: keytable.Rules{Client: "ACME Ltd."}}
	binary.LittleEndian.PutUint64(e.Hash[:], n)
	if err := change(c.table.Load(), &e, false); err != nil {
		t.Fatal(err)
	}
	c.saver.change(&e, false)
}

// reads compares what the cache gives with the table.
func reads(t *testing.T, c *Checker, cache Cache) {
	t.Helper()
	again, s := newKeeping(t, cache)
	if err := s.load(t.Context()); err != nil || s.whole {
		t.Fatalf("the cache is not used: %v", err)
	}
	if again.table.Load().Len() != c.table.Load().Len() {
		t.Errorf("the cache has %d versions, want %d", again.table.Load().Len(), c.table.Load().Len())
	}
	differences(again.table.Load(), c.table.Load(), func(e *keytable.Entry, gone bool) bool {
		t.Errorf("the cache is wrong about %v, gone: %v", e.Hash[:8], gone)
		return true
	})
}
