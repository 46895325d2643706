package hub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Session is one party's connection. Next is called by one goroutine at a time.
type Session struct {
	hub     *Hub
	party   engine.PartyRecord
	poll    bool
	changed chan struct{}
	ended   chan struct{}
	// watched are the keys; never changed.
	watched map[key.Name]struct{}
	// attached: the engine has registered the party; guarded by the hub's lock.
	attached bool
	// serial tells the sessions of this node apart; guarded by the hub's lock.
	serial uint64

	mu      sync.Mutex
	waiting map[key.Name]engine.Tell
	known   map[key.Name]engine.Holding
	err     error
}

// Delivery is an assignment with its material.
type Delivery struct {
	Key key.Name
	engine.Tell
	Material provider.Material
}

func (s *Session) of() sessionOf { return sessionOf{party: s.party.ID, poll: s.poll} }

// put queues a tell, in the place of an older one of the key.
func (s *Session) put(name key.Name, tell engine.Tell) {
	s.mu.Lock()
	known, watched := s.known[name]
	old, waits := s.waiting[name]
	news := watched && (tell.Epoch > known.Epoch || tell.Version != known.Version || tell.Unanswered) && (!waits || tell.Epoch > old.Epoch)
	if news {
		s.waiting[name] = tell
	}
	s.mu.Unlock()
	if news {
		s.wake()
	}
}

func (s *Session) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Next waits for assignments and returns all that wait, by key. After wait it
// returns none. It fails with ErrReplaced or ErrStopped, or when ctx ends.
func (s *Session) Next(ctx context.Context, wait time.Duration) ([]Delivery, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		deliveries, err := s.take(ctx)
		if err != nil || len(deliveries) > 0 {
			return deliveries, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ended:
			return nil, s.err
		case <-s.changed:
		case <-timer.C:
			return nil, nil
		}
	}
}

// take removes what waits and adds the material.
func (s *Session) take(ctx context.Context) ([]Delivery, error) {
	s.mu.Lock()
	waiting := s.waiting
	s.waiting = map[key.Name]engine.Tell{}
	for name, tell := range waiting {
		s.known[name] = engine.Holding{Key: name, Version: tell.Version, Epoch: tell.Epoch}
	}
	s.mu.Unlock()
	deliveries := make([]Delivery, 0, len(waiting))
	for _, name := range slices.Sorted(maps.Keys(waiting)) {
		tell := waiting[name]
		material, err := s.hub.materials.get(ctx, s.hub, name, tell.Version)
		if errors.Is(err, engine.ErrNotFound) {
			continue // destroyed meanwhile: a newer assignment is on its way
		}
		if err != nil {
			return nil, fmt.Errorf("assignment of %s: %w", name, err)
		}
		deliveries = append(deliveries, Delivery{Key: name, Tell: tell, Material: material})
	}
	return deliveries, nil
}

// Close ends the session. The party stays registered.
func (s *Session) Close() { s.end(context.Canceled) }

func (s *Session) end(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
		close(s.ended)
	}
	s.mu.Unlock()
	if first {
		s.hub.remove(s)
	}
}

// How materials are cached: long enough for all parties of a rotation to be
// served from one reading, short enough to hold no plaintext without need.
const (
	materialKept = 30 * time.Second
	// materialTime bounds the reading of one version.
	materialTime = 30 * time.Second
	maxMaterials = 1024
)

// materials caches opened material for parties that are told together.
type materials struct {
	mu      sync.Mutex
	entries map[versionOf]*materialEntry
}

type versionOf struct {
	name    key.Name
	version key.Version
}

type materialEntry struct {
	ready    chan struct{}
	read     time.Time
	material provider.Material
	err      error
}

func (m *materials) get(ctx context.Context, h *Hub, name key.Name, v key.Version) (provider.Material, error) {
	of := versionOf{name, v}
	now := h.config.Now()
	m.mu.Lock()
	entry, ok := m.entries[of]
	if ok && now.Sub(entry.read) < materialKept && now.Sub(entry.read) >= 0 {
		m.mu.Unlock()
		select {
		case <-entry.ready:
			return entry.material, entry.err
		case <-ctx.Done():
			return provider.Material{}, ctx.Err()
		}
	}
	entry = &materialEntry{ready: make(chan struct{}), read: now}
	if m.entries == nil || len(m.entries) >= maxMaterials {
		m.entries = map[versionOf]*materialEntry{}
	}
	m.entries[of] = entry
	m.mu.Unlock()
	// Others wait for the same reading: it outlives the party that asked first.
	reading, cancel := context.WithTimeout(context.WithoutCancel(ctx), materialTime)
	defer cancel()
	entry.material, entry.err = h.core.Material(reading, name, v)
	close(entry.ready)
	if entry.err != nil {
		m.forget(of, entry)
	} else {
		time.AfterFunc(materialKept, func() { m.forget(of, entry) })
	}
	return entry.material, entry.err
}

func (m *materials) forget(of versionOf, entry *materialEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries[of] == entry {
		delete(m.entries, of)
	}
}

func (m *materials) forgetAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = nil
}
