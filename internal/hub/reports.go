package hub

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// Limits on what is kept of reports, per party, key and version.
const (
	maxSamples  = 32
	maxVersions = 4
	// maxSampleDetail bounds the text of a sample, in bytes.
	maxSampleDetail = 256
)

// reports keeps the latest samples of every party, in memory, and sums up those
// that a bake is judged by.
type reports struct {
	mu   sync.Mutex
	keys map[key.Name]map[string]*partyReports
	// bakes are the versions that are judged. A key whose bake is not known is
	// unsure once it was reported of.
	bakes  map[key.Name]bake
	unsure map[key.Name]bool
	// dirty are sums that other nodes have not read yet; stale are documents of
	// bakes that are over.
	dirty map[sumOf]bool
	told  map[sumOf]bool
	stale []sumOf
}

// partyReports are one party's samples of one key, by version.
type partyReports struct {
	versions []versionReports
	// settled is the version whose health the engine has been told of, or knew, and
	// unwell what that was.
	settled key.Version
	unwell  bool
	// sum is what counts for the bake of that name.
	sum  engine.Sample
	bake bake
}

type versionReports struct {
	version key.Version
	samples []engine.Sample
}

// Report takes a party's sample of a version. A party that turns unwell, or well
// again, with the version it was told to use counts as having said so in an
// acknowledgement, so that a stage fails at once and not only when it is judged.
// It fails with engine.ErrNotFound, and keeps nothing, when the party does not
// present the key.
func (h *Hub) Report(ctx context.Context, name key.Name, version key.Version, sample engine.Sample) error {
	sample.At = h.config.Now()
	sample.Detail = strings.ToValidUTF8(sample.Detail[:min(len(sample.Detail), maxSampleDetail)], "")
	if !h.watches(sample.Presenter, name) {
		_, _, presents, err := h.core.Assigned(ctx, name, sample.Presenter)
		if err != nil {
			return err
		}
		if !presents {
			return fmt.Errorf("%w: party %s does not present key %s; it connects first", engine.ErrNotFound, sample.Presenter, name)
		}
	}
	if h.config.Sampled != nil {
		h.config.Sampled(name, version, h.cohort(sample.Presenter), sample)
	}
	turned := h.reports.add(name, version, sample)
	if h.config.Store != nil && h.reports.waiting() && h.node.accompanied() {
		h.node.wake()
	}
	if !turned {
		return nil
	}
	tell, unwell, _, err := h.core.Assigned(ctx, name, sample.Presenter)
	if err != nil {
		return err
	}
	// A good report is no answer to a telling: only what was bad can be taken back.
	if tell.Version == version && unwell == sample.Healthy {
		outcome := Outcome{Key: name, Epoch: tell.Epoch, OK: sample.Healthy, Using: version, Detail: sample.Detail}
		if err := h.Acknowledge(ctx, sample.Presenter, []Outcome{outcome}); err != nil {
			return err
		}
	}
	if tell.Version == version {
		h.reports.settle(name, version, sample)
	}
	return nil
}

// cohort is the label of that name of a connected party.
func (h *Hub) cohort(party string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, session := range h.sessionsOf(party) {
		return session.party.Labels["cohort"]
	}
	return ""
}

// watches reports whether a connected party has named the key.
func (h *Hub) watches(party string, name key.Name) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.sessionsOf(party), func(s *Session) bool {
		if !s.attached {
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		_, ok := s.known[name]
		return ok
	})
}

// settle notes that the engine knows how the party fares.
func (r *reports) settle(name key.Name, version key.Version, sample engine.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if party := r.keys[name][sample.Presenter]; party != nil {
		party.settled, party.unwell = version, !sample.Healthy
	}
}

// add keeps a sample and reports whether the engine may not know of the party's
// health with the version.
func (r *reports) add(name key.Name, version key.Version, sample engine.Sample) (turned bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		r.keys = map[key.Name]map[string]*partyReports{}
	}
	if r.keys[name] == nil {
		r.keys[name] = map[string]*partyReports{}
	}
	party := r.keys[name][sample.Presenter]
	if party == nil {
		party = &partyReports{}
		r.keys[name][sample.Presenter] = party
	}
	turned = party.settled != version || party.unwell == sample.Healthy
	r.sumUp(name, version, party, &sample)
	for i := range party.versions {
		if v := &party.versions[i]; v.version == version {
			v.samples = append(v.samples, sample)
			if len(v.samples) > maxSamples {
				v.samples = append(v.samples[:0], v.samples[1:]...)
			}
			return turned
		}
	}
	if len(party.versions) == maxVersions {
		party.versions = append(party.versions[:0], party.versions[1:]...)
	}
	party.versions = append(party.versions, versionReports{version: version, samples: []engine.Sample{sample}})
	return turned
}

// since returns the sums of a bake, or else the samples that are not older than
// since.
func (r *reports) since(name key.Name, version key.Version, since time.Time) []engine.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	judged := bake{version: version, since: since}
	known := r.bakes[name].is(judged)
	var list []engine.Sample
	for _, party := range r.keys[name] {
		if known {
			if party.bake.is(judged) {
				list = append(list, party.sum)
			}
			continue
		}
		for _, v := range party.versions {
			if v.version != version {
				continue
			}
			for _, sample := range v.samples {
				if !sample.At.Before(since) {
					list = append(list, sample)
				}
			}
		}
	}
	return list
}

// drop forgets a party.
func (r *reports) drop(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, parties := range r.keys {
		delete(parties, id)
		if len(parties) == 0 {
			delete(r.keys, name)
			delete(r.unsure, name)
			if r.bakes[name].version == 0 {
				delete(r.bakes, name)
			}
		}
	}
}
