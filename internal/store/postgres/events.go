package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

type events struct{ *tx }

// Append implements store.Events. It appends all events or none.
func (e events) Append(ctx context.Context, list ...store.Event) error {
	if err := e.writing(ctx); err != nil {
		return err
	}
	for _, event := range list {
		if err := event.Check(); err != nil {
			return fmt.Errorf("postgres: append events: %w", err)
		}
	}
	if err := e.follow(list); err != nil {
		return err
	}
	for _, event := range list {
		err := e.exec(`WITH done AS (INSERT INTO events (key, seq, rotation, type, at, body)
				SELECT $1::text, $2::bigint, $3::bytea, $4::text, $5::bigint, $6::bytea
				WHERE (SELECT coalesce(max(seq), 0) + 1 FROM events WHERE key = $1::text) = $2::bigint RETURNING 1)
			SELECT 1 / count(*) FROM done`,
			string(event.Key), toInt(event.Seq), event.Rotation[:], event.Type, toMicros(event.At), blob(event.Body))
		if err != nil {
			return e.fail("append events", err)
		}
		e.known.events[event.Key] = event.Seq
	}
	return nil
}

// follow fails with store.ErrConflict when the events do not follow what is
// stored, or one another.
func (e events) follow(list []store.Event) error {
	last := make(map[key.Name]uint64, 1)
	for _, event := range list {
		seq, known := last[event.Key]
		if !known {
			seq, known = e.lastEvent(event.Key)
		}
		if !known {
			if _, err := e.row([]any{&seq}, "SELECT coalesce(max(seq), 0) FROM events WHERE key = $1", string(event.Key)); err != nil {
				return e.fail("append events", err)
			}
		}
		if event.Seq != seq+1 {
			return fmt.Errorf("postgres: event %d of key %s does not follow event %d: %w", event.Seq, event.Key, seq, store.ErrConflict)
		}
		last[event.Key] = event.Seq
	}
	return nil
}

// Load implements store.Events.
func (e events) Load(ctx context.Context, name key.Name, after uint64, limit int) ([]store.Event, error) {
	if !plain(string(name)) {
		return nil, e.check(ctx, limit)
	}
	return e.find(ctx, limit, "SELECT key, seq, rotation, type, at, body FROM events WHERE key = $1 AND seq > $2 ORDER BY seq LIMIT $3",
		string(name), toInt(after), limit)
}

// OfRotation implements store.Events.
func (e events) OfRotation(ctx context.Context, id key.RotationID, limit int) ([]store.Event, error) {
	return e.find(ctx, limit, "SELECT key, seq, rotation, type, at, body FROM events WHERE rotation = $1 ORDER BY key, seq LIMIT $2", id[:], limit)
}

func (e events) check(ctx context.Context, limit int) error {
	if err := e.reading(ctx); err != nil {
		return err
	}
	if err := store.CheckLimit(limit); err != nil {
		return fmt.Errorf("postgres: load events: %w", err)
	}
	return nil
}

func (e events) find(ctx context.Context, limit int, query string, args ...any) ([]store.Event, error) {
	if err := e.check(ctx, limit); err != nil {
		return nil, err
	}
	found, err := collectRows(e.tx, scanEvent, query, args...)
	return found, e.fail("load events", err)
}

func scanEvent(rows pgx.Rows) (store.Event, error) {
	var event store.Event
	var name string
	var rotation []byte
	var at int64
	if err := rows.Scan(&name, &event.Seq, &rotation, &event.Type, &at, &event.Body); err != nil {
		return store.Event{}, err
	}
	event.Key = key.Name(name)
	copy(event.Rotation[:], rotation)
	event.At = fromMicros(at)
	return event, nil
}
