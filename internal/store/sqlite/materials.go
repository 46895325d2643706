package sqlite

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
		return fmt.Errorf("sqlite: store material: %w", err)
	}
	if err := store.CheckBody("sealed material", sealed); err != nil {
		return fmt.Errorf("sqlite: store material: %w", err)
	}
	changed, err := m.conn.exec("INSERT INTO materials (key, version, pad, sealed) VALUES (?, ?, zeroblob(1024), ?) ON CONFLICT DO NOTHING",
		string(name), int64(version), blob(sealed))
	if err != nil {
		return m.fail("store material", err)
	}
	if changed == 0 {
		return fmt.Errorf("sqlite: material of %s %s exists already: %w", name, version, store.ErrConflict)
	}
	return nil
}

// Get implements store.Materials.
func (m materials) Get(ctx context.Context, name key.Name, version key.Version) (sealed []byte, err error) {
	if err := m.reading(ctx); err != nil {
		return nil, err
	}
	found, err := m.conn.row("SELECT sealed FROM materials WHERE key = ? AND version = ?", []any{string(name), toInt(uint64(version))}, &sealed)
	if err != nil {
		return nil, m.fail("read material", err)
	}
	if !found {
		return nil, fmt.Errorf("sqlite: material of %s %s: %w", name, version, store.ErrNotFound)
	}
	return sealed, nil
}

// Delete implements store.Materials. The checkpoint follows by itself.
func (m materials) Delete(ctx context.Context, name key.Name, version key.Version) error {
	if err := m.writing(ctx); err != nil {
		return err
	}
	changed, err := m.conn.exec("DELETE FROM materials WHERE key = ? AND version = ?", string(name), toInt(uint64(version)))
	if err != nil {
		return m.fail("delete material", err)
	}
	m.shredded = m.shredded || changed > 0
	return nil
}
