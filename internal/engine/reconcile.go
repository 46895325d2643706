package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// maxLooks bounds the tries of one reconciliation that run at once.
const maxLooks = 4

// passage is how long this process has known that the store was put back.
type passage struct {
	mu    sync.Mutex
	known bool
	floor uint64
	since time.Time
}

// left is how much longer what was sent to systems before the store was put back may
// arrive there. now is by a clock that never jumps. Whoever sent it had gone when the
// store was marked, which was before this process knew; so it is over when the longest
// time that a call may take has passed since then, here or at another node.
func (p *passage) left(record RestoreRecord, now time.Time, longest time.Duration) time.Duration {
	if record.Arrived {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known || p.floor != record.Floor {
		p.known, p.floor, p.since = true, record.Floor, now
	}
	return max(0, longest-now.Sub(p.since))
}

// underWay returns what a key that stands still waits for before its system is asked:
// the last restore, and how much longer what was sent before it may arrive.
func (e *Engine) underWay(ctx context.Context) (record RestoreRecord, left time.Duration, err error) {
	err = e.store.View(ctx, func(tx store.Tx) (err error) {
		record, _, err = readRestore(ctx, tx)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return record, 0, nil
	}
	if err != nil {
		return record, 0, err
	}
	return record, e.passage.left(record, e.config.Monotonic(), e.config.EffectTime), nil
}

// noteArrived notes that nothing is under way any more from before this restore.
func (c *change) noteArrived(of RestoreRecord) error {
	record, doc, err := readRestore(c.ctx, c.tx)
	if errors.Is(err, store.ErrNotFound) || err == nil && (record.Arrived || record.Floor != of.Floor) {
		return nil
	}
	if err != nil {
		return err
	}
	record.Arrived = true
	if doc.Body, err = encode(record); err != nil {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

// reconcile finds out what verifiers accept, once what was sent to them before the
// store was put back can change that no more: it has had its time, and a system that
// compares fences has seen a larger one. Nothing else is changed outside.
func (e *Engine) reconcile(ctx context.Context, call provider.Call, effect rotation.Effect) done {
	record, left, err := e.underWay(ctx)
	if err != nil {
		return done{err: err}
	}
	if left > 0 {
		until := e.config.Now().UTC().Add(left).Format(time.RFC3339)
		err := fmt.Errorf("calls that were sent before the store was put back may arrive until %s", until)
		return done{err: err, pause: left + e.config.Jitter(left/8), waits: true}
	}
	err = e.fence(ctx, call)
	look := looked{}
	if err == nil {
		look, err = e.look(ctx, call)
	}
	if err != nil {
		// Never for good: somebody may mend it, and the key stands still as long.
		return asked(done{err: err})
	}
	body := rotation.Reconciled{Effect: effect.EffectRef, Listed: look.listed, Found: look.found}
	return done{outcome: rotation.OK, body: body, write: func(c *change) error {
		for _, v := range slices.Sorted(maps.Keys(look.foreign)) {
			if err := c.foreignVersion(call.Key, v, look.foreign[v]); err != nil {
				return err
			}
		}
		return c.noteArrived(record)
	}}
}

// fence has the verifiers turn away what was sent before this call, if the system
// can.
func (e *Engine) fence(ctx context.Context, call provider.Call) error {
	system, err := e.system(ctx, call.Key)
	if err != nil {
		return err
	}
	fencer, ok := system.(provider.Fencer)
	if !ok {
		return nil
	}
	var state rotation.State
	err = e.store.View(ctx, func(tx store.Tx) (err error) {
		state, err = e.readState(ctx, tx, call.Key)
		return err
	})
	if err != nil {
		return err
	}
	for i := range state.Verifiers {
		if err := fencer.Fence(ctx, call, state.Verifiers[i].ID); err != nil {
			return fmt.Errorf("raise the fence at %s: %w", state.Verifiers[i].ID, err)
		}
	}
	return nil
}

// foreignVersion notes a version that is accepted, and whose material is not here: it
// was never, or it is destroyed and an endpoint has come back that was not asked to
// refuse it.
func (c *change) foreignVersion(name key.Name, v key.Version, attributes map[string]string) error {
	record := VersionRecord{Number: v, Created: c.now}
	doc, err := c.tx.Docs.Get(c.ctx, kindVersion, versionName(name, v))
	switch {
	case errors.Is(err, store.ErrNotFound):
		doc = store.Doc{Kind: kindVersion, Name: versionName(name, v)}
	case err != nil:
		return err
	default:
		if err := decodeInto(doc.Body, &record); err != nil || record.Destroyed.IsZero() {
			return err
		}
	}
	record.Foreign, record.Attributes, record.Destroyed = true, attributes, time.Time{}
	if doc.Body, err = encode(record); err != nil {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

// looked is what the verifiers of a key accept.
type looked struct {
	found  []rotation.Found
	listed bool
	// foreign are the attributes of versions that are accepted and not known here.
	foreign map[key.Version]map[string]string
}

// look tries every version at every verifier, and asks the system what it holds.
func (e *Engine) look(ctx context.Context, call provider.Call) (looked, error) {
	look := looked{foreign: map[key.Version]map[string]string{}}
	var state rotation.State
	err := e.store.View(ctx, func(tx store.Tx) (err error) {
		state, err = e.readState(ctx, tx, call.Key)
		return err
	})
	if err != nil {
		return look, err
	}
	system, err := e.system(ctx, call.Key)
	if err != nil {
		return look, err
	}
	var held []provider.Held
	if lister, ok := system.(provider.Lister); ok {
		look.listed = true
		if held, err = lister.Held(ctx, call); err != nil {
			return look, fmt.Errorf("what the system holds: %w", err)
		}
	} else if err := allHeard(&state); err != nil {
		return look, err
	}
	for _, h := range held {
		_, known := state.Version(h.Version)
		_, verifies := state.Verifier(h.Endpoint)
		if !known && verifies && h.Accepted {
			look.found = append(look.found, rotation.Found{Verifier: h.Endpoint, Version: h.Version, Accepted: true})
			look.foreign[h.Version] = h.Attributes
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(maxLooks)
	failures := make([]error, len(state.Versions)*len(state.Verifiers))
	for i := range state.Versions {
		v := state.Versions[i].Number
		_, version, err := e.open(ctx, call.Key, v)
		if err != nil {
			return look, errors.Join(err, group.Wait())
		}
		for j := range state.Verifiers {
			endpoint := state.Verifiers[j].ID
			group.Go(func() error {
				verdict, err := tryVersion(ctx, system, call, endpoint, version)
				if err != nil {
					failures[i*len(state.Verifiers)+j] = fmt.Errorf("%v at %s: %w", v, endpoint, err)
					return nil // they are told below, in order
				}
				mu.Lock()
				defer mu.Unlock()
				look.found = append(look.found, rotation.Found{Verifier: endpoint, Version: v, Accepted: verdict == provider.Accepted})
				return nil
			})
		}
	}
	err = group.Wait()
	for _, failure := range failures {
		err = cmp.Or(err, failure) // the first in order, however they came
	}
	return look, err
}

// allHeard fails while a registered presenter has not come back: where the system
// keeps no note of what it holds, only presenters know of versions that are not
// known here.
func allHeard(state *rotation.State) error {
	for i := range state.Presenters {
		if p := &state.Presenters[i]; p.Silent {
			return fmt.Errorf("presenter %s has not come back, and the system cannot say which versions it holds; start it, or remove it with keyturn party remove %s", p.ID, p.ID)
		}
	}
	return nil
}

// tryVersion reports whether an endpoint accepts a version: by using it, or, if its
// material is not here and the system needs it, by what the endpoint says it holds.
func tryVersion(ctx context.Context, system provider.System, call provider.Call, endpoint string, version provider.Version) (provider.Verdict, error) {
	if len(version.Material.Secrets) > 0 || forgets(system) {
		return system.Probe(ctx, call, endpoint, version)
	}
	lister, ok := system.(provider.Lister)
	if !ok {
		return 0, provider.Permanent(fmt.Errorf("the material of %v was lost with a restore, so that it cannot be tried", version.Number), "see to it that the system refuses it, then declare it compromised")
	}
	held, err := lister.Held(ctx, call)
	if err != nil {
		return 0, err
	}
	for _, h := range held {
		if h.Endpoint == endpoint && h.Version == version.Number && h.Accepted {
			return provider.Accepted, nil
		}
	}
	return provider.Refused, nil
}
