package signals

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// Limits of a sweep.
const (
	// spacing keeps sweeps from taking more than one part in so many of a processor.
	spacing = 20
	// soonest is how long after news the gauges are read anew.
	soonest = time.Second
)

// view is what one sweep over all keys found.
type view struct {
	began time.Time
	// patience is how long a region may be waited for, next when that is over for
	// the next one; zero when none is waited for.
	patience time.Duration
	next     time.Time
	open     map[key.RotationID]bool
	busy     map[key.Name]int
	holds    []hold
	// minted is when the current version of the first keys was minted, by name, and
	// hours how many were in each hour since 1970, over all keys.
	minted []mintedAt
	hours  map[int64]int
	// unkeyed are the keys without a current version.
	unkeyed    int
	phases     map[rotation.Phase]int
	oldest     map[rotation.Phase]time.Time
	held       map[heldBy]int
	presenters map[presenterGroup]int
	regions    regionsSeen
	uses       []oldUse
	retiring   map[string]int // presenters by grace
	unrefused  int            // compromised versions that some verifier may accept
	standing   int            // keys that stand still after a restore
	// standingSince is when that was first seen.
	standingSince time.Time
	silent        []engine.SilentTarget
	leaks         int // leaked versions that may be accepted
	partners      seenPartners
	refusal       engine.StoreRefusal
}

type mintedAt struct {
	key key.Name
	at  time.Time
}

type heldBy struct {
	reason rotation.HoldReason
	human  bool
}

type presenterGroup struct{ region, state string }

// oldUse is the measured use of a version that is being retired.
type oldUse struct {
	key   key.Name
	grace string
	uses  int
}

func newView(began time.Time) *view {
	return &view{
		began: began, open: map[key.RotationID]bool{}, busy: map[key.Name]int{},
		phases: map[rotation.Phase]int{}, oldest: map[rotation.Phase]time.Time{}, held: map[heldBy]int{},
		presenters: map[presenterGroup]int{}, regions: regionsSeen{}, retiring: map[string]int{},
	}
}

// sweepSoon asks for a sweep without waiting for its time.
func (s *Signals) sweepSoon() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// sweepAll reads the gauges from the engine until Stop: after news and at every
// interval, but never so often that it becomes a load.
func (s *Signals) sweepAll(ctx context.Context, source Source) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-s.stop:
		case <-ctx.Done():
		}
	}()
	failing := false
	known := newInventory(s.config.MaxKeys)
	for {
		began, next := s.config.Now(), s.config.Every
		v, err := s.sweep(ctx, source, known)
		took := s.config.Now().Sub(began)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.metrics.sweeps.WithLabelValues("failed").Inc()
			if !failing {
				s.log.LogAttrs(ctx, slog.LevelWarn, "the gauges could not be read from the engine; trying again", slog.Any("error", err))
			}
		default:
			s.metrics.sweeps.WithLabelValues("ok").Inc()
			observe(s.metrics.sweep, took, key.RotationID{})
			s.view.Store(v)
			next = v.soon(next)
			select {
			case s.found <- v:
			case <-ctx.Done():
				return
			}
		}
		failing = err != nil
		if !s.pause(ctx, max(soonest, spacing*took), next) {
			return
		}
	}
}

// pause waits for the shortest pause, and then for news or the longest one's end.
func (s *Signals) pause(ctx context.Context, shortest, longest time.Duration) bool {
	rest := time.NewTimer(shortest)
	defer rest.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-rest.C:
	}
	rest.Reset(max(0, longest-shortest))
	select {
	case <-ctx.Done():
		return false
	case <-s.news:
	case <-rest.C:
	}
	return true
}

// sweep takes what has changed and looks at every key with an open rotation.
func (s *Signals) sweep(ctx context.Context, source Source, known *inventory) (*view, error) {
	began := s.config.Now()
	if err := known.catchUp(ctx, source, s.config.Now); err != nil {
		return nil, err
	}
	v := known.view(began)
	v.patience = s.config.RegionBehind
	for _, name := range slices.Sorted(maps.Keys(known.open)) {
		state := known.open[name]
		for j := range state.Rotations {
			if err := v.takeRotation(ctx, source, name, &state, &state.Rotations[j]); err != nil {
				return nil, err
			}
		}
	}
	v.takeTargets(source)
	v.takeStore(source)
	if err := v.takeAlarms(ctx, source); err != nil {
		return nil, err
	}
	if err := v.takeLeaks(ctx, source); err != nil {
		return nil, err
	}
	if err := v.takePartners(ctx, source); err != nil {
		return nil, err
	}
	return v, nil
}

func accepted(state *rotation.State, v key.Version) bool {
	for i := range state.Verifiers {
		if slot, ok := state.Verifiers[i].Slot(v); ok && slot.Acceptance != rotation.Refused {
			return true
		}
	}
	return false
}

func (v *view) takeRotation(ctx context.Context, source Source, name key.Name, state *rotation.State, r *rotation.Rotation) error {
	v.open[r.ID] = true
	v.phases[r.Phase]++
	if oldest, known := v.oldest[r.Phase]; !known || r.PhaseSince.Before(oldest) {
		v.oldest[r.Phase] = r.PhaseSince
	}
	if moving(r.Phase.String()) {
		v.busy[name]++
	}
	if r.Hold.Reason != "" {
		v.held[heldBy{reason: r.Hold.Reason, human: r.Hold.Human}]++
		v.holds = append(v.holds, hold{
			key: name, rotation: r.ID, kind: r.Kind.String(), reason: r.Hold.Reason, message: r.Hold.Message,
			human: r.Hold.Human, since: r.Hold.Since, parties: parties(state.Explain(r)), late: engine.LateRegions(state, r),
		})
	}
	v.takeRegions(name, state, r)
	if r.Phase != rotation.Draining && r.Phase != rotation.Revoking {
		return nil
	}
	grace := "within"
	if over(r, v.began) {
		grace = "over"
	}
	for i := range state.Presenters {
		if state.Presenters[i].MayUse(r.From) {
			v.retiring[grace]++
		}
	}
	record, err := source.Rotation(ctx, r.ID)
	if err != nil {
		return err
	}
	if !record.MeasuredAt.IsZero() {
		v.uses = append(v.uses, oldUse{key: name, grace: grace, uses: record.Uses})
	}
	return nil
}

// over reports whether the grace of the old version is over.
func over(r *rotation.Rotation, now time.Time) bool {
	if r.Phase == rotation.Revoking {
		return true
	}
	grace := r.Plan.DrainMin
	if r.Plan.Strategy != 0 {
		grace = r.Plan.Grace
	}
	return now.After(r.PhaseSince.Add(grace))
}

// parties are the names that a rotation waits for, at most 20.
func parties(waiting []rotation.Waiting) []string {
	var names []string
	for _, w := range waiting {
		for _, name := range w.Names {
			if len(names) == 20 {
				return names
			}
			names = append(names, name)
		}
	}
	return names
}

var _ Source = (*engine.Engine)(nil)
