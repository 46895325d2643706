package hub

import (
	"context"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// Limits on what is kept of reports, per party, key and version.
const (
	maxSamples  = 32
	maxVersions = 4
)

// reports keeps the latest samples of every party, in memory.
type reports struct {
	mu   sync.Mutex
	keys map[key.Name]map[string]*partyReports
}

// partyReports are one party's samples of one key, by version.
type partyReports struct {
	versions []versionReports
	// unwell: the last sample was bad.
	unwell bool
}

type versionReports struct {
	version key.Version
	samples []engine.Sample
}

// Report takes a party's sample of a version. A party that turns unwell, or well
// again, with the version it was told to use counts as having said so in an
// acknowledgement, so that a stage fails at once and not only when it is judged.
func (h *Hub) Report(ctx context.Context, name key.Name, version key.Version, sample engine.Sample) error {
	sample.At = h.config.Now()
	if h.config.Sampled != nil {
		h.config.Sampled(name, h.cohort(sample.Presenter), sample)
	}
	if !h.reports.add(name, version, sample) {
		return nil
	}
	epoch, told := h.toldEpoch(sample.Presenter, name, version)
	if !told {
		return nil
	}
	return h.Acknowledge(ctx, sample.Presenter, []Outcome{{Key: name, Epoch: epoch, OK: sample.Healthy, Using: version, Detail: sample.Detail}})
}

// cohort is the label of that name of a connected party.
func (h *Hub) cohort(party string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if session := h.sessions[party]; session != nil {
		return session.party.Labels["cohort"]
	}
	return ""
}

// toldEpoch is the epoch under which a connected party was told to use a version.
func (h *Hub) toldEpoch(party string, name key.Name, version key.Version) (uint64, bool) {
	h.mu.Lock()
	session := h.sessions[party]
	h.mu.Unlock()
	if session == nil {
		return 0, false
	}
	session.mu.Lock()
	defer session.mu.Unlock()
	known, ok := session.known[name]
	return known.Epoch, ok && known.Version == version && known.Epoch != 0
}

// add keeps a sample and reports whether the party's health turned.
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
	turned = party.unwell == sample.Healthy
	party.unwell = !sample.Healthy
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

func (r *reports) since(name key.Name, version key.Version, since time.Time) []engine.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []engine.Sample
	for _, party := range r.keys[name] {
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
		}
	}
}
