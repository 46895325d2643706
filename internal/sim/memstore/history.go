package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

type events struct{ *tx }

// Append implements store.Events.
func (e events) Append(ctx context.Context, list ...store.Event) error {
	if err := e.writing(ctx); err != nil {
		return err
	}
	last := map[key.Name]uint64{}
	for _, event := range list {
		if err := event.Check(); err != nil {
			return fmt.Errorf("memstore: append events: %w", err)
		}
		seq, known := last[event.Key]
		if !known {
			seq = uint64(len(e.state.events[event.Key]))
		}
		if event.Seq != seq+1 {
			return fmt.Errorf("memstore: event %d of key %s does not follow event %d: %w", event.Seq, event.Key, seq, store.ErrConflict)
		}
		last[event.Key] = event.Seq
	}
	if !e.ownEvents {
		e.state.events, e.ownEvents = maps.Clone(e.state.events), true
		if e.state.events == nil {
			e.state.events = map[key.Name][]store.Event{}
		}
	}
	for _, event := range list {
		event.At, event.Body = micro(event.At), bytes.Clone(event.Body)
		e.state.events[event.Key] = append(e.state.events[event.Key], event)
	}
	return nil
}

// Load implements store.Events.
func (e events) Load(ctx context.Context, name key.Name, after uint64, limit int) ([]store.Event, error) {
	if err := e.checked(ctx, limit); err != nil {
		return nil, err
	}
	all := e.state.events[name]
	all = all[min(after, uint64(len(all))):]
	return slices.Clone(all[:min(limit, len(all))]), nil
}

// OfRotation implements store.Events.
func (e events) OfRotation(ctx context.Context, id key.RotationID, limit int) ([]store.Event, error) {
	if err := e.checked(ctx, limit); err != nil {
		return nil, err
	}
	var list []store.Event
	for _, name := range slices.Sorted(maps.Keys(e.state.events)) {
		for _, event := range e.state.events[name] {
			if event.Rotation == id && len(list) < limit {
				list = append(list, event)
			}
		}
	}
	return list, nil
}

type auditLog struct{ *tx }

// Append implements store.Log.
func (l auditLog) Append(ctx context.Context, first uint64, records [][]byte, firstHash uint64, hashes []store.Hash) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	for _, record := range records {
		if err := store.CheckBody("log record", record); err != nil {
			return fmt.Errorf("memstore: append to the log: %w", err)
		}
	}
	if first != uint64(len(l.state.records)) || firstHash != uint64(len(l.state.hashes)) {
		return fmt.Errorf("memstore: log has %d records and %d hashes, appending begins at %d and %d: %w",
			len(l.state.records), len(l.state.hashes), first, firstHash, store.ErrConflict)
	}
	for _, record := range records {
		l.state.records = append(l.state.records, bytes.Clone(record))
	}
	l.state.hashes = append(l.state.hashes, hashes...)
	if len(records) > 0 {
		l.touched.Add(store.TopicLog)
	}
	return nil
}

// Records implements store.Log.
func (l auditLog) Records(ctx context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	if err := l.checked(ctx, limit); err != nil {
		return nil, 0, err
	}
	size := uint64(len(l.state.records))
	from = min(from, size)
	return slices.Clone(l.state.records[from:min(size, from+uint64(limit))]), size, nil
}

// Hashes implements store.Log.
func (l auditLog) Hashes(ctx context.Context, indexes []uint64) ([]store.Hash, error) {
	if err := l.reading(ctx); err != nil {
		return nil, err
	}
	hashes := make([]store.Hash, 0, len(indexes))
	for _, i := range indexes {
		if i >= uint64(len(l.state.hashes)) {
			return nil, fmt.Errorf("memstore: hash %d of the log: %w", i, store.ErrNotFound)
		}
		hashes = append(hashes, l.state.hashes[i])
	}
	return hashes, nil
}

type materials struct{ *tx }

func (m materials) own() {
	if !m.ownMaterials {
		m.state.materials, m.ownMaterials = maps.Clone(m.state.materials), true
		if m.state.materials == nil {
			m.state.materials = map[materialOf][]byte{}
		}
	}
}

// Put implements store.Materials.
func (m materials) Put(ctx context.Context, name key.Name, version key.Version, sealed []byte) error {
	if err := m.writing(ctx); err != nil {
		return err
	}
	if err := cmp.Or(store.CheckVersion(name, version), store.CheckBody("sealed material", sealed)); err != nil {
		return fmt.Errorf("memstore: store material: %w", err)
	}
	if _, found := m.state.materials[materialOf{name, version}]; found {
		return fmt.Errorf("memstore: material of %s %s exists already: %w", name, version, store.ErrConflict)
	}
	m.own()
	m.state.materials[materialOf{name, version}] = bytes.Clone(sealed)
	return nil
}

// Get implements store.Materials.
func (m materials) Get(ctx context.Context, name key.Name, version key.Version) ([]byte, error) {
	if err := m.reading(ctx); err != nil {
		return nil, err
	}
	sealed, found := m.state.materials[materialOf{name, version}]
	if !found {
		return nil, fmt.Errorf("memstore: material of %s %s: %w", name, version, store.ErrNotFound)
	}
	return bytes.Clone(sealed), nil
}

// Delete implements store.Materials.
func (m materials) Delete(ctx context.Context, name key.Name, version key.Version) error {
	if err := m.writing(ctx); err != nil {
		return err
	}
	m.own()
	delete(m.state.materials, materialOf{name, version})
	return nil
}
