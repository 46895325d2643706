package apikey

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Used is how often a version was used, or tried although it is refused, by one
// caller since it was told last.
type Used struct {
	Key     key.Name
	Version key.Version
	Caller  Caller
	Count   uint64
	// Refused: it was not let in.
	Refused bool
	At      time.Time
}

// maxRefusals bounds the callers that are remembered between two tellings.
const maxRefusals = 4096

// refusals are those who showed a key that is not let in. What is no version is
// noted alike, so that it takes as long, and told to nobody.
type refusals struct {
	mu     sync.Mutex
	counts map[refusal]refusedUse
	// unwritten were told of and are not written yet; guarded by Service.flushing.
	unwritten map[refusal]refusedUse
}

type refusal struct {
	key     key.Name
	version key.Version
	caller  Caller
}

type refusedUse struct {
	count uint64
	last  time.Time
}

func (r *refusals) add(found *keytable.Found, caller Caller, at time.Time) {
	r.addN(found.Key, found.Version, caller, 1, at)
}

func (r *refusals) addN(name key.Name, v key.Version, caller Caller, n uint64, at time.Time) {
	one := refusal{key: name, version: v, caller: Caller{Address: clip(caller.Address), Application: clip(caller.Application)}}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = map[refusal]refusedUse{}
	}
	count(r.counts, one, refusedUse{count: n, last: at})
}

// count adds to the counts of one refusal; when there are too many of them, none is added.
func count(counts map[refusal]refusedUse, one refusal, more refusedUse) {
	use, known := counts[one]
	if !known && len(counts) >= maxRefusals {
		return
	}
	use.count += more.count
	if more.last.After(use.last) {
		use.last = more.last
	}
	counts[one] = use
}

// takeRefused tells who tried versions that are refused, and keeps it to be written.
func (s *Service) takeRefused() {
	s.refused.mu.Lock()
	counts := s.refused.counts
	s.refused.counts = nil
	s.refused.mu.Unlock()
	list := make([]Used, 0, len(counts))
	for one, use := range counts {
		if one.version == 0 {
			continue
		}
		list = append(list, Used{Key: one.key, Version: one.version, Caller: one.caller, Count: use.count, Refused: true, At: use.last})
		if s.refused.unwritten == nil {
			s.refused.unwritten = map[refusal]refusedUse{}
		}
		count(s.refused.unwritten, one, use)
	}
	if len(list) > 0 {
		s.config.Used(list)
	}
}

// writeRefused writes who tried versions that are refused since the last time. What
// cannot be written waits.
func (s *Service) writeRefused(ctx context.Context, now time.Time) error {
	s.takeRefused()
	if len(s.refused.unwritten) == 0 {
		return nil
	}
	of := map[string][]refusal{}
	for one := range s.refused.unwritten {
		name := docName(one.key, one.version)
		of[name] = append(of[name], one)
	}
	for part := range slices.Chunk(slices.Sorted(maps.Keys(of)), maxUses) {
		err := s.config.Store.Update(ctx, func(tx store.Tx) error {
			for _, name := range part {
				_, err := store.Revision(ctx, tx.Docs, kindEntry, name)
				if err == nil {
					err = s.addRefused(ctx, tx, of[name], now)
				}
				if err != nil && !errors.Is(err, store.ErrNotFound) { // a verifier made it up, or it is long gone
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, name := range part {
			for _, one := range of[name] {
				delete(s.refused.unwritten, one)
			}
		}
	}
	s.config.Tried()
	return nil
}

// addRefused adds to the tries of one version.
func (s *Service) addRefused(ctx context.Context, tx store.Tx, tries []refusal, now time.Time) error {
	doc, stored, err := s.usesHere(ctx, tx, tries[0].key, tries[0].version)
	if err != nil {
		return err
	}
	for _, one := range tries {
		use := s.refused.unwritten[one]
		stored.Refused += use.count
		if use.last.After(stored.RefusedLast) {
			stored.RefusedLast = use.last.UTC()
		}
		more := holder{Address: one.caller.Address, Application: one.caller.Application}
		more.count(use.count, use.last)
		stored.RefusedBy = merge(stored.RefusedBy, &more)
	}
	if err := putUses(ctx, tx, doc, &stored, now); err != nil {
		return err
	}
	return putTried(ctx, tx, docName(stored.Key, stored.Version), stored.RefusedLast, now)
}

const (
	// triedEvery is how exactly it is known when a refused version was last tried,
	// triedKept for how long.
	triedEvery = time.Minute
	triedKept  = 24 * time.Hour
)

// tried is a version that somebody showed although it is refused.
type tried struct {
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// putTried notes that a version was tried, so that those which were can be listed.
func putTried(ctx context.Context, tx store.Tx, name string, last, now time.Time) error {
	doc, err := tx.Docs.Get(ctx, kindTried, name)
	one := tried{First: last}
	switch {
	case errors.Is(err, store.ErrNotFound):
		doc = store.Doc{Kind: kindTried, Name: name}
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(doc.Body, &one); err != nil {
			return fmt.Errorf("stored tries %s are damaged: %w", name, err)
		}
		if last.Sub(one.Last) < triedEvery {
			return nil
		}
		if last.Sub(one.Last) > triedKept {
			one.First = last
		}
	}
	one.Last = last
	if doc.Body, err = json.Marshal(one); err != nil {
		return fmt.Errorf("encode tries: %w", err)
	}
	doc.Due = now.Add(triedKept)
	_, err = tx.Docs.Put(ctx, doc)
	return err
}

// Tried is a refused version that somebody showed.
type Tried struct {
	ClientUse
	// Since is when that began: there was no day without it since.
	Since time.Time
}

// TriedSince returns the refused versions that somebody has shown since a time, to
// the minute and at most a day back, at most limit.
func (s *Service) TriedSince(ctx context.Context, since time.Time, limit int) (list []Tried, err error) {
	const most = 10_000
	err = s.config.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindTried, "", "", most)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			var t tried
			if err := json.Unmarshal(doc.Body, &t); err != nil {
				return fmt.Errorf("stored tries %s are damaged: %w", doc.Name, err)
			}
			if t.Last.Before(since.Add(-triedEvery)) || len(list) == limit {
				continue
			}
			entry, err := tx.Docs.Get(ctx, kindEntry, doc.Name)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			use, err := useOf(ctx, tx, entry)
			if err != nil {
				return err
			}
			expired := !use.Expires.IsZero() && !use.RefusedLast.Before(use.Expires)
			if (!use.Accepted || expired) && use.RefusedLast.After(since) {
				list = append(list, Tried{ClientUse: use, Since: t.First})
			}
		}
		return nil
	})
	return list, err
}

// tellUsed tells who used a version.
func (s *Service) tellUsed(use *keytable.Use, named []holder) {
	list := make([]Used, 0, len(named)+1)
	rest := uint64(use.Count)
	for i := range named {
		h := &named[i]
		rest -= min(rest, h.All)
		list = append(list, Used{Key: use.Key, Version: use.Version, Caller: Caller{Address: h.Address, Application: h.Application}, Count: h.All, At: h.Last})
	}
	if rest > 0 {
		list = append(list, Used{Key: use.Key, Version: use.Version, Count: rest, At: use.Last})
	}
	s.config.Used(list)
}
