package apikey

import (
	"context"
	"errors"
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
	return putUses(ctx, tx, doc, &stored, now)
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
