package sqlite

import (
	"context"
	"fmt"
	"strings"

	"github.com/keyturn/keyturn/internal/store"
)

// Dump implements store.Dumper.
func (s *Store) Dump(ctx context.Context, fn func(table func(store.Table) store.Rows) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	c, err := s.readers.take(ctx)
	if err != nil {
		return s.fault("open the database for reading", err)
	}
	defer s.readers.give(c)
	if _, err := c.exec("BEGIN"); err != nil {
		return s.fault("begin to read", err)
	}
	defer func() { _, _ = c.exec("ROLLBACK") }() // there is nothing to lose
	return fn(func(table store.Table) store.Rows { return s.dumpTable(ctx, c, table) })
}

// dumpOrder is what identifies the rows of each table.
func dumpOrder(table string) string {
	return map[string]string{
		"counters": "id", "docs": "kind, name", "events": "key, seq", "jobs": "seq",
		"log_records": "number", "log_hashes": "number", "materials": "key, version",
	}[table]
}

func (s *Store) dumpTable(ctx context.Context, c *conn, table store.Table) store.Rows {
	return func(yield func([]any, error) bool) {
		rows, err := c.sql.QueryContext(ctx, fmt.Sprintf("SELECT %s FROM %s ORDER BY %s", strings.Join(table.Columns, ", "), table.Name, dumpOrder(table.Name)))
		if err != nil {
			yield(nil, s.fault("read the table "+table.Name, err))
			return
		}
		defer rows.Close()
		row := make([]any, len(table.Columns))
		into := make([]any, len(row))
		for i := range row {
			into[i] = &row[i]
		}
		for rows.Next() {
			if err := rows.Scan(into...); err != nil {
				yield(nil, s.fault("read the table "+table.Name, err))
				return
			}
			for i, column := range table.Columns {
				// The driver returns an empty blob as nil; only times may be absent.
				if b, isBytes := row[i].([]byte); (row[i] == nil || isBytes && b == nil) && column != "due" && column != "until" {
					row[i] = []byte{}
				}
			}
			if !yield(row, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, s.fault("read the table "+table.Name, err))
		}
	}
}

// movedID marks the file of an installation that has moved ("KTMV"): programs
// that know nothing of moves refuse it as one of another program.
const movedID = 0x4b544d56

// MovedError says where an installation has moved to.
type MovedError struct {
	Path, Move, Destination string
}

// Error says what to do.
func (e *MovedError) Error() string {
	return fmt.Sprintf("sqlite: %v: %s holds the state before the move to %s (name that database as store.postgres in the configuration; to give up what has happened there since, restore a backup made before the move)", ErrMoved, e.Path, e.Destination)
}

// Unwrap makes it an ErrMoved.
func (e *MovedError) Unwrap() error { return ErrMoved }

// MarkMoved makes the file useless for every later Open, which fails with a
// *MovedError. move names the move; destination must hold no password. What is
// under way ends first; Update fails afterwards.
func (s *Store) MarkMoved(ctx context.Context, move, destination string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.writer.turns.Take(ctx, true); err != nil {
		return err
	}
	defer s.writer.turns.Pass()
	if s.writer.batch != nil {
		s.writer.commit(s.writer.batch)
	}
	for _, statement := range []string{"BEGIN IMMEDIATE", "", fmt.Sprintf("PRAGMA application_id = %d", movedID), "COMMIT"} {
		var err error
		if statement == "" {
			_, err = s.writer.conn.exec("INSERT INTO moves (id, move, destination) VALUES (1, ?, ?)", move, destination)
		} else {
			_, err = s.writer.conn.exec(statement)
		}
		if err != nil {
			_, _ = s.writer.conn.exec("ROLLBACK") // nothing was marked
			return s.fault("mark the database as moved", err)
		}
	}
	s.moved.Store(&MovedError{Path: s.path, Move: move, Destination: destination})
	return nil
}
