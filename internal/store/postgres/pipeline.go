package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// statement is one that waits to be sent, or was sent without waiting for its
// result.
type statement struct {
	sql  string
	args []any
	// by is the Update that wrote it; nil: the batch itself.
	by *tx
	// last: it is the COMMIT.
	last bool
}

// size is how much a statement holds, in bytes, roughly.
func (s *statement) size() int {
	n := 64
	for _, arg := range s.args {
		switch arg := arg.(type) {
		case []byte:
			n += len(arg)
		case string:
			n += len(arg)
		}
	}
	return n
}

// flushAfter is how much of statements is kept back, in bytes.
const flushAfter = 1 << 20

// errRolledBack: the server has answered COMMIT with ROLLBACK.
var errRolledBack = errors.New("the server rolled the transaction back")

// send sends what is pending, and one query whose rows read takes, in one round
// trip. A statement that fails ends the transaction for all; the error is a *lost
// that names whose it was, if it was anybody's.
func (w *writer) send(b *batch, query *statement, read ...func(pgx.Rows) error) error {
	if b.closed != nil {
		return b.closed
	}
	sent := b.pending
	b.pending, b.bytes = nil, 0
	ctx, cancel := context.WithTimeout(w.store.endless, statementTimeout)
	defer cancel()
	var batch pgx.Batch
	for i := range sent {
		batch.Queue(sent[i].sql, sent[i].args...)
	}
	if query != nil {
		batch.Queue(query.sql, query.args...)
	}
	results := w.conn.SendBatch(ctx, &batch)
	err := collect(results, sent, query, read)
	if closeErr := results.Close(); err == nil && closeErr != nil {
		err = &lost{cause: fault("write", closeErr), passing: mayPass(closeErr)}
	}
	if err != nil {
		b.closed = err
	}
	return err
}

// collect reads the results in order, up to the first that failed.
func collect(results pgx.BatchResults, sent []statement, query *statement, read []func(pgx.Rows) error) error {
	for i := range sent {
		tag, err := results.Exec()
		if err == nil && sent[i].last && tag.String() != "COMMIT" {
			err = errRolledBack
		}
		if err != nil {
			return lostBy(sent[i].by, err)
		}
	}
	if query == nil {
		return nil
	}
	rows, err := results.Query()
	if err == nil {
		for _, one := range read {
			err = one(rows)
		}
		rows.Close()
		if rowsErr := rows.Err(); rowsErr != nil {
			err = rowsErr
		}
	}
	if err != nil {
		return lostBy(query.by, err)
	}
	return nil
}

// lostBy blames the author of a statement for what the server said of it, and
// nobody for what may pass.
func lostBy(author *tx, err error) error {
	l := &lost{cause: fault("write", err), passing: mayPass(err)}
	if stateOf(err) != "" && !l.passing {
		l.guilty = author
	}
	return l
}
