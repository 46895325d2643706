package apikey

import (
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
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
	one := refusal{key: found.Key, version: found.Version, caller: Caller{Address: clip(caller.Address), Application: clip(caller.Application)}}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = map[refusal]refusedUse{}
	}
	use, known := r.counts[one]
	if !known && len(r.counts) >= maxRefusals {
		return
	}
	r.counts[one] = refusedUse{count: use.count + 1, last: at}
}

// tellRefused tells who tried versions that are refused.
func (s *Service) tellRefused() {
	s.refused.mu.Lock()
	counts := s.refused.counts
	s.refused.counts = nil
	s.refused.mu.Unlock()
	list := make([]Used, 0, len(counts))
	for one, use := range counts {
		if one.version != 0 {
			list = append(list, Used{Key: one.key, Version: one.version, Caller: one.caller, Count: use.count, Refused: true, At: use.last})
		}
	}
	if len(list) > 0 {
		s.config.Used(list)
	}
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
