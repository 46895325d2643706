package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

type events struct{ *tx }

// Append implements store.Events. It appends all events or none.
func (e events) Append(ctx context.Context, list ...store.Event) error {
	if err := e.writing(ctx); err != nil {
		return err
	}
	last := make(map[key.Name]uint64)
	for _, event := range list {
		if err := event.Check(); err != nil {
			return fmt.Errorf("sqlite: append events: %w", err)
		}
		seq, known := last[event.Key]
		if !known {
			if _, err := e.conn.row("SELECT seq FROM events WHERE key = ? ORDER BY seq DESC LIMIT 1", []any{string(event.Key)}, &seq); err != nil {
				return e.fail("append events", err)
			}
		}
		if event.Seq != seq+1 {
			return fmt.Errorf("sqlite: event %d of key %s does not follow event %d: %w", event.Seq, event.Key, seq, store.ErrConflict)
		}
		last[event.Key] = event.Seq
	}
	for _, event := range list {
		if _, err := e.conn.exec("INSERT INTO events (key, seq, rotation, type, at, body) VALUES (?, ?, ?, ?, ?, ?)",
			string(event.Key), toInt(event.Seq), event.Rotation[:], event.Type, toMicros(event.At), blob(event.Body)); err != nil {
			return e.fail("append events", err)
		}
	}
	return nil
}

// Load implements store.Events.
func (e events) Load(ctx context.Context, name key.Name, after uint64, limit int) ([]store.Event, error) {
	return e.find(ctx, limit, "SELECT key, seq, rotation, type, at, body FROM events WHERE key = ? AND seq > ? ORDER BY seq LIMIT ?",
		string(name), toInt(after), limit)
}

// OfRotation implements store.Events.
func (e events) OfRotation(ctx context.Context, id key.RotationID, limit int) ([]store.Event, error) {
	return e.find(ctx, limit, "SELECT key, seq, rotation, type, at, body FROM events WHERE rotation = ? ORDER BY key, seq LIMIT ?",
		id[:], limit)
}

func (e events) find(ctx context.Context, limit int, query string, args ...any) ([]store.Event, error) {
	if err := e.reading(ctx); err != nil {
		return nil, err
	}
	if err := store.CheckLimit(limit); err != nil {
		return nil, fmt.Errorf("sqlite: load events: %w", err)
	}
	found, err := rows(ctx, e.conn, scanEvent, query, args...)
	return found, e.fail("load events", err)
}

func scanEvent(r *sql.Rows) (store.Event, bool, error) {
	var event store.Event
	var rotation sql.RawBytes
	var at int64
	if err := r.Scan(&event.Key, &event.Seq, &rotation, &event.Type, &at, &event.Body); err != nil {
		return store.Event{}, false, err
	}
	copy(event.Rotation[:], rotation)
	event.At = fromMicros(at)
	return event, true, nil
}
