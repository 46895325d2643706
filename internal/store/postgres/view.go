package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// view is the transaction of a View. It begins in one round trip with its first
// statement.
type view struct {
	store *Store
	conn  *pgxpool.Conn
	begun bool
}

func (v *view) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	conn, err := v.store.pool.Acquire(ctx)
	if err != nil {
		return v.store.settings.connectFault("read", err)
	}
	v.conn = conn
	return nil
}

// end gives the connection back. There is nothing to lose; one that fails is closed.
func (v *view) end() {
	if v.conn == nil {
		return
	}
	if v.begun {
		ctx, cancel := context.WithTimeout(v.store.endless, statementTimeout)
		defer cancel()
		_, _ = v.conn.Exec(ctx, "ROLLBACK")
	}
	v.conn.Release()
}

// query reads rows.
func (v *view) query(read func(pgx.Rows) error, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(v.store.endless, statementTimeout)
	defer cancel()
	if !v.begun {
		return v.begin(ctx, read, sql, args...)
	}
	rows, err := v.conn.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	return readAll(rows, read)
}

// begin is the first query. A connection that the server or the network has cut
// meanwhile is replaced.
func (v *view) begin(ctx context.Context, read func(pgx.Rows) error, sql string, args ...any) error {
	for try := 0; ; try++ {
		var opening pgx.Batch
		opening.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
		opening.Queue(sql, args...)
		results := v.conn.SendBatch(ctx, &opening)
		_, err := results.Exec()
		if err == nil {
			v.begun = true
			var rows pgx.Rows
			if rows, err = results.Query(); err == nil {
				err = readAll(rows, read)
			}
			if closeErr := results.Close(); err == nil {
				err = closeErr
			}
			return err
		}
		_ = results.Close() // it says the same
		if !isCut(err) || try > v.store.settings.connections {
			return err
		}
		v.conn.Release()
		v.conn = nil
		if err := v.acquire(ctx); err != nil {
			return err
		}
	}
}

func readAll(rows pgx.Rows, read func(pgx.Rows) error) error {
	defer rows.Close()
	if err := read(rows); err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}
