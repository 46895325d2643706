package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

var (
	// ErrNotEmpty: the database holds an installation already.
	ErrNotEmpty = errors.New("the database is not empty")
	// ErrArriving: the move of an installation into the database is not finished.
	ErrArriving = errors.New("an installation is being moved into the database")
	// ErrDiffers: what has arrived is not what was sent.
	ErrDiffers = errors.New("the copy differs from the original")
)

// Move is one move of an installation into a database.
type Move struct {
	// ID names it; Source is where the installation comes from.
	ID, Source string
	// Done: servers may work on the database.
	Done bool
}

// checkArrived refuses a database that a move is under way into, unless it is
// the caller who moves.
func checkArrived(ctx context.Context, conn *pgx.Conn, mover bool) error {
	move, found, err := readMove(ctx, conn)
	if err == nil && found && !move.Done && !mover {
		err = fmt.Errorf("postgres: %w from %s (run the same keyturn migrate-store or keyturn restore again: it finishes what was begun)", ErrArriving, move.Source)
	}
	return err
}

func readMove(ctx context.Context, conn *pgx.Conn) (move Move, found bool, err error) {
	err = conn.QueryRow(ctx, "SELECT move, source, done FROM moves").Scan(&move.ID, &move.Source, &move.Done)
	if errors.Is(err, pgx.ErrNoRows) {
		return Move{}, false, nil
	}
	return move, err == nil, fault("look for a move", err)
}

// Moved returns the move that has brought an installation here, if any has.
func (s *Store) Moved(ctx context.Context) (move Move, found bool, err error) {
	err = s.onConnection(ctx, func(conn *pgx.Conn) error {
		move, found, err = readMove(ctx, conn)
		return err
	})
	return move, found, err
}

// FinishMove lets servers work on the database.
func (s *Store) FinishMove(ctx context.Context, id string) error {
	return s.onConnection(ctx, func(conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, "UPDATE moves SET done = true WHERE move = $1", id)
		if err == nil && tag.RowsAffected() != 1 {
			err = fmt.Errorf("no move %s has come here", id)
		}
		return fault("finish the move", err)
	})
}

// Receive copies everything from another store into this one, which must be
// empty, compares the copy with the original, and notes the move as not done, all
// in one transaction: after any error nothing has changed. It fails with
// ErrNotEmpty or ErrDiffers.
func (s *Store) Receive(ctx context.Context, move Move, from store.Dumper) (digest store.Digest, err error) {
	err = s.onConnection(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1::integer, $2::integer)", lockClass, commitLock); err != nil {
				return fault("wait for the database", err)
			}
			if err := checkEmpty(ctx, tx); err != nil {
				return err
			}
			if digest, err = load(ctx, tx, from); err != nil {
				return err
			}
			if err := compare(ctx, conn, digest); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO moves (id, move, source, done) VALUES (1, $1, $2, false)", move.ID, move.Source)
			return fault("note the move", err)
		})
	})
	return digest, err
}

func checkEmpty(ctx context.Context, tx pgx.Tx) error {
	for _, table := range store.Tables() {
		if table.Name == "counters" {
			continue
		}
		var used bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+pgx.Identifier{table.Name}.Sanitize()+")").Scan(&used); err != nil {
			return fault("look whether the database is empty", err)
		}
		if used {
			return fmt.Errorf("postgres: %w: there are rows in %s (name another database; one that is given up is emptied by: DROP SCHEMA %s CASCADE)", ErrNotEmpty, table.Name, schema)
		}
	}
	return nil
}

// load copies the tables and returns the digest of what was sent.
func load(ctx context.Context, tx pgx.Tx, from store.Dumper) (store.Digest, error) {
	digest := store.Digest{}
	err := from.Dump(ctx, func(rows func(store.Table) store.Rows) error {
		for _, table := range store.Tables() {
			tally := store.NewTally()
			err := loadTable(ctx, tx, table, rows(table), tally)
			if err != nil {
				return fault("copy the table "+table.Name, err)
			}
			digest[table.Name] = tally.Digest()
		}
		_, err := tx.Exec(ctx, "SELECT setval(pg_get_serial_sequence('jobs', 'seq'), (SELECT coalesce(max(seq), 0) + 1 FROM jobs), false)")
		return fault("copy the table jobs", err)
	})
	return digest, err
}

func loadTable(ctx context.Context, tx pgx.Tx, table store.Table, rows store.Rows, tally *store.Tally) error {
	if table.Name == "counters" {
		for row, err := range rows {
			if err == nil {
				err = tally.Add(row)
			}
			if err == nil {
				_, err = tx.Exec(ctx, "UPDATE counters SET rev = $1, fence = $2, writer = ''", row...)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	next, stop := iter.Pull2(iter.Seq2[[]any, error](rows))
	defer stop()
	_, err := tx.CopyFrom(ctx, pgx.Identifier{table.Name}, table.Columns, pgx.CopyFromFunc(func() ([]any, error) {
		row, err, ok := next()
		if !ok || err != nil {
			return nil, err
		}
		if err := tally.Add(row); err != nil {
			return nil, err
		}
		if table.Name == "jobs" {
			for i, column := range table.Columns {
				if column == "front" {
					row[i] = row[i] != int64(0)
				}
			}
		}
		return row, nil
	}))
	return err
}

// compare reads back what was copied.
func compare(ctx context.Context, conn *pgx.Conn, sent store.Digest) error {
	got, err := store.DigestOf(ctx, dumping(func(fn func(func(store.Table) store.Rows) error) error {
		return fn(func(table store.Table) store.Rows { return dumpTable(ctx, conn, table) })
	}))
	if err != nil {
		return err
	}
	if difference := sent.Difference(got); difference != "" {
		return fmt.Errorf("postgres: %w: %s (nothing was changed)", ErrDiffers, difference)
	}
	return nil
}

// dumping is a store.Dumper.
type dumping func(fn func(table func(store.Table) store.Rows) error) error

func (d dumping) Dump(_ context.Context, fn func(table func(store.Table) store.Rows) error) error {
	return d(fn)
}

// onConnection runs fn on a connection of its own, whose statements may take long.
func (s *Store) onConnection(ctx context.Context, fn func(*pgx.Conn) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	conn, err := s.settings.connect(ctx, s.settings.upkeep())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is pending on it
	return fn(conn)
}

// Place is where the database is, without user and password.
func (s *Store) Place() string {
	return fmt.Sprintf("PostgreSQL %s:%d/%s", s.settings.base.Host, s.settings.base.Port, s.settings.base.Database)
}
