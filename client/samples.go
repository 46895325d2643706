package client

import (
	"slices"
	"sync"

	"github.com/keyturn/keyturn/key"
)

// Use says how one use of a credential went. The zero value is invalid.
type Use uint8

// The ways a use may go.
const (
	// UseSucceeded: the log-in or the call was accepted.
	UseSucceeded Use = iota + 1
	// UseRefused: the credential itself was refused.
	UseRefused
	// UseBroken: it failed for another reason, for example the network.
	UseBroken
)

// maxSampleVersions bounds the versions of one key that samples are kept of.
const maxSampleVersions = 16

// samples counts uses per key and version until they are reported.
type samples struct {
	mu     sync.Mutex
	counts map[sampleID]Sample
}

type sampleID struct {
	key     key.Name
	version key.Version
}

func newSamples() *samples { return &samples{counts: make(map[sampleID]Sample)} }

func (s *samples) record(name key.Name, version key.Version, use Use) {
	one := Sample{Key: name, Version: version, Attempts: 1, Healthy: use == UseSucceeded}
	if use == UseRefused {
		one.AuthFailures = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.merge(one)
}

// merge adds a sample that is newer than what is there. A version with a refusal
// is not healthy, one without is as healthy as its last use.
func (s *samples) merge(newer Sample) {
	id := sampleID{newer.Key, newer.Version}
	sum, found := s.counts[id]
	if !found && s.crowded(newer) {
		return
	}
	sum.Key, sum.Version, sum.Detail = newer.Key, newer.Version, newer.Detail
	sum.Attempts += newer.Attempts
	sum.AuthFailures += newer.AuthFailures
	sum.Healthy = newer.Healthy && sum.AuthFailures == 0
	s.counts[id] = sum
}

// crowded makes room for a sample by forgetting the oldest version of its key,
// and reports whether that would be the sample itself.
func (s *samples) crowded(newer Sample) bool {
	var versions []key.Version
	for id := range s.counts {
		if id.key == newer.Key {
			versions = append(versions, id.version)
		}
	}
	if len(versions) < maxSampleVersions {
		return false
	}
	oldest := slices.Min(versions)
	if newer.Version < oldest {
		return true
	}
	delete(s.counts, sampleID{newer.Key, oldest})
	return false
}

// take returns what was counted since the last take.
func (s *samples) take() []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Sample, 0, len(s.counts))
	for _, sample := range s.counts {
		out = append(out, sample)
	}
	clear(s.counts)
	return out
}

// putBack returns samples that could not be sent; what was counted meanwhile is newer.
func (s *samples) putBack(unsent []Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	newer := make([]Sample, 0, len(s.counts))
	for _, sample := range s.counts {
		newer = append(newer, sample)
	}
	clear(s.counts)
	for _, sample := range append(unsent, newer...) {
		s.merge(sample)
	}
}
