package postgres

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

type materials struct{ *tx }

// Put implements store.Materials.
func (m materials) Put(ctx context.Context, name key.Name, version key.Version, sealed []byte) error {
	if err := m.writing(ctx); err != nil {
		return err
	}
	if err := store.CheckVersion(name, version); err != nil {
		return fmt.Errorf("postgres: store material: %w", err)
	}
	if err := store.CheckBody("sealed material", sealed); err != nil {
		return fmt.Errorf("postgres: store material: %w", err)
	}
	changed, err := m.execNow("INSERT INTO materials (key, version, sealed) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING 1",
		string(name), toInt(uint64(version)), blob(sealed))
	if err != nil {
		return m.fail("store material", err)
	}
	if changed == 0 {
		return fmt.Errorf("postgres: material of %s %s exists already: %w", name, version, store.ErrConflict)
	}
	return nil
}

// Get implements store.Materials.
func (m materials) Get(ctx context.Context, name key.Name, version key.Version) (sealed []byte, err error) {
	if err := m.reading(ctx); err != nil {
		return nil, err
	}
	found := false
	if plain(string(name)) {
		found, err = m.row([]any{&sealed}, "SELECT sealed FROM materials WHERE key = $1 AND version = $2", string(name), toInt(uint64(version)))
		if err != nil {
			return nil, m.fail("read material", err)
		}
	}
	if !found {
		return nil, fmt.Errorf("postgres: material of %s %s: %w", name, version, store.ErrNotFound)
	}
	return sealed, nil
}

// Delete implements store.Materials. Overwriting a row first would only write
// another one beside it; the part of the table is rewritten soon after instead,
// by this process or, if it dies, by another.
func (m materials) Delete(ctx context.Context, name key.Name, version key.Version) error {
	if err := m.writing(ctx); err != nil {
		return err
	}
	if !plain(string(name)) {
		return nil
	}
	err := m.exec(`WITH gone AS (DELETE FROM materials WHERE key = $1 AND version = $2 RETURNING tableoid::regclass::text AS part)
		INSERT INTO shreds (part, number) SELECT part, 1 FROM gone ON CONFLICT (part) DO UPDATE SET number = shreds.number + 1`,
		string(name), toInt(uint64(version)))
	m.shredded = true
	return m.fail("delete material", err)
}
