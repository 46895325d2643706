package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindReport are sums of what the parties at one node reported during a bake, in
// pieces; named "KEY@VERSION/NODE/PIECE".
const kindReport = "node-report"

const (
	// maxShared bounds the documents of reports that one write tells.
	maxShared = 256
	// reportKept is after how long without a change a document of reports is deleted.
	reportKept = 24 * time.Hour
)

// bake is a version that is judged by what is reported since its bake began. What
// was reported is counted from the moment on at which this node heard of the bake:
// clocks of nodes are not compared.
type bake struct {
	version key.Version
	since   time.Time
}

func (b bake) is(other bake) bool { return b.version == other.version && b.since.Equal(other.since) }

// sumOf names a document of reports.
type sumOf struct {
	key   key.Name
	bake  bake
	piece int
}

func (s sumOf) name(node string) string {
	return reportsOf(s.key, s.bake.version) + pieceName(node, s.piece)
}

func (s sumOf) compare(other sumOf) int {
	return cmp.Or(cmp.Compare(s.key, other.key), cmp.Compare(s.bake.version, other.bake.version), cmp.Compare(s.piece, other.piece))
}

func reportsOf(name key.Name, version key.Version) string {
	return fmt.Sprintf("%s@%d/", name, uint64(version))
}

// shared is the content of a document of reports.
type shared struct {
	Since   time.Time       `json:"since"`
	Samples []engine.Sample `json:"samples"`
}

// Baking implements engine.Baker.
func (h *Hub) Baking(name key.Name, version key.Version, since time.Time) {
	h.reports.judge(name, bake{version, since})
}

// judge notes what is judged from now on.
func (r *reports) judge(name key.Name, b bake) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.unsure, name)
	if r.bakes == nil {
		r.bakes, r.unsure, r.dirty, r.told = map[key.Name]bake{}, map[key.Name]bool{}, map[sumOf]bool{}, map[sumOf]bool{}
	}
	if known, is := r.bakes[name]; is && known.is(b) {
		return
	}
	for of := range r.told {
		if of.key == name {
			r.stale = append(r.stale, of)
			delete(r.told, of)
		}
	}
	for of := range r.dirty {
		if of.key == name {
			delete(r.dirty, of)
		}
	}
	if b.version == 0 && len(r.keys[name]) == 0 {
		delete(r.bakes, name)
		return
	}
	r.bakes[name] = b
}

// sumUp counts a sample for the bake that it belongs to; the caller holds the lock.
func (r *reports) sumUp(name key.Name, version key.Version, party *partyReports, sample *engine.Sample) {
	b, known := r.bakes[name]
	if !known {
		if r.unsure == nil {
			r.unsure = map[key.Name]bool{}
		}
		r.unsure[name] = true
		return
	}
	if b.version != version {
		return
	}
	sum := &party.sum
	if !party.bake.is(b) {
		party.bake, *sum = b, engine.Sample{Presenter: sample.Presenter, Healthy: true}
	}
	sum.At = sample.At
	sum.Reports++
	sum.Attempts += sample.Attempts
	sum.AuthFailures += sample.AuthFailures
	if !sample.Healthy {
		sum.Healthy, sum.Detail = false, sample.Detail
	}
	r.dirty[sumOf{name, b, pieceOf(sample.Presenter)}] = true
}

// Samples implements engine.Fleet: those of parties at this node, and the sums
// that other nodes told. It fails when these cannot be read.
func (h *Hub) Samples(ctx context.Context, name key.Name, version key.Version, since time.Time) ([]engine.Sample, error) {
	list := h.reports.since(name, version, since)
	if h.config.Store == nil {
		return list, nil
	}
	h.mu.Lock()
	self := h.node.id
	h.mu.Unlock()
	err := h.config.Store.View(ctx, func(tx store.Tx) error {
		prefix := reportsOf(name, version)
		for after := ""; ; {
			docs, err := tx.Index.List(ctx, kindReport, prefix, after, nodeBatch)
			if err != nil {
				return err
			}
			for _, doc := range docs {
				after = doc.Name
				if node, _, _ := strings.Cut(doc.Name[len(prefix):], "/"); node == self {
					continue
				}
				var told shared
				if err := json.Unmarshal(doc.Body, &told); err != nil {
					return fmt.Errorf("stored reports %s are damaged: %w", doc.Name, err)
				}
				if told.Since.Equal(since) {
					list = append(list, told.Samples...)
				}
			}
			if len(docs) < nodeBatch {
				return nil
			}
		}
	})
	return list, err
}

// reportChanges are the documents of reports to write and to delete.
type reportChanges struct {
	put  map[sumOf]shared
	drop []string
	of   []sumOf
}

func (c *reportChanges) empty() bool { return len(c.put) == 0 && len(c.of) == 0 }

// changes takes the sums that must be written. Without company nobody reads them:
// they wait.
func (r *reports) changes(accompanied bool) *reportChanges {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &reportChanges{put: map[sumOf]shared{}, of: r.stale}
	r.stale = nil
	if !accompanied {
		return c
	}
	for _, of := range slices.SortedFunc(maps.Keys(r.dirty), sumOf.compare) {
		if len(c.put) == maxShared {
			break
		}
		delete(r.dirty, of)
		c.put[of] = shared{Since: of.bake.since}
	}
	keys := map[key.Name]bool{}
	for of := range c.put {
		keys[of.key] = true
	}
	for name := range keys {
		for _, id := range slices.Sorted(maps.Keys(r.keys[name])) {
			party := r.keys[name][id]
			of := sumOf{name, party.bake, pieceOf(id)}
			if told, wanted := c.put[of]; wanted {
				told.Samples = append(told.Samples, party.sum)
				c.put[of] = told
			}
		}
	}
	for of := range c.put {
		r.told[of] = true
	}
	return c
}

// unchanged notes that changes were not written.
func (r *reports) unchanged(c *reportChanges) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = append(r.stale, c.of...)
	for of := range c.put {
		if r.bakes[of.key].is(of.bake) {
			r.dirty[of] = true
		}
	}
}

// shareAgain makes all that was told be told anew.
func (r *reports) shareAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = nil
	for of := range r.told {
		r.dirty[of] = true
	}
}

// asked takes the keys whose bake is not known although they were reported of.
func (r *reports) asked() []key.Name {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]key.Name, 0, len(r.unsure))
	for name := range r.unsure {
		list = append(list, name)
	}
	slices.Sort(list)
	return list[:min(len(list), nodeBatch)]
}

// ask finds out what is judged of keys that were reported of, when that was
// decided before this node started.
func (n *node) ask(ctx context.Context) error {
	for _, name := range n.hub.reports.asked() {
		version, since, err := n.hub.core.Bake(ctx, name)
		if err != nil {
			return err
		}
		n.hub.reports.suppose(name, bake{version, since})
	}
	return nil
}

// suppose notes what is judged, unless something was heard meanwhile.
func (r *reports) suppose(name key.Name, b bake) {
	r.mu.Lock()
	unsure := r.unsure[name]
	r.mu.Unlock()
	if unsure {
		r.judge(name, b)
	}
}

// share writes the documents of reports in the transaction of tell. One whose
// next content follows at once is not deleted before.
func (n *node) share(ctx context.Context, tx store.Tx, changes *reportChanges, revs map[string]uint64) error {
	written := map[string]bool{}
	for _, of := range slices.SortedFunc(maps.Keys(changes.put), sumOf.compare) {
		body, err := json.Marshal(changes.put[of])
		if err != nil {
			return err
		}
		name := of.name(n.id)
		written[name] = true
		doc := store.Doc{Kind: kindReport, Name: name, Rev: n.revs[kindReport+name], Due: n.hub.config.Now().UTC().Add(reportKept), Body: body}
		if revs[kindReport+name], err = tx.Docs.Put(ctx, doc); err != nil {
			return err
		}
	}
	changes.drop = nil
	for _, of := range changes.of {
		name := of.name(n.id)
		if written[name] {
			continue
		}
		err := tx.Docs.Delete(ctx, kindReport, name, n.revs[kindReport+name])
		if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
			return err
		}
		changes.drop = append(changes.drop, name)
	}
	return nil
}

// sweepReports deletes the reports of bakes that nobody told the end of.
func (n *node) sweepReports(ctx context.Context) error {
	return store.Sweep(ctx, n.hub.config.Store, kindReport, n.hub.config.Now, nil)
}

// waiting reports whether sums have not been told yet.
func (r *reports) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dirty)+len(r.unsure) > 0
}
