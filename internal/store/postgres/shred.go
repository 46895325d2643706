package postgres

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// shredMax is the largest part that is rewritten, in bytes.
	shredMax = 256 << 20
	// shredPause is the pause between two rounds, and shredPerMiB what is added for
	// each MiB that was rewritten, so that rewriting takes a small share of the time.
	shredPause  = time.Second
	shredPerMiB = 50 * time.Millisecond
	// shredLock is how long a rewriting waits for those at work; they wait behind it.
	shredLock = 200 * time.Millisecond
	// shredTime bounds one rewriting.
	shredTime = time.Minute
	// shredTurn is the advisory lock (lockClass, shredTurn) of whoever rewrites.
	shredTurn = 3
)

// shredSoon wakes the shredder.
func (s *Store) shredSoon() {
	select {
	case s.shred <- struct{}{}:
	default:
	}
}

// shredder rewrites the parts of materials that something was deleted from, until
// ctx ends. What fails is tried again: it stays noted in the database, and any
// node may do it.
func (s *Store) shredder(ctx context.Context) {
	s.shredSoon() // a process may have died before its shredding
	for {
		select {
		case <-s.shred:
		case <-ctx.Done():
			return
		}
		rewritten, left, err := s.shredAll(ctx)
		if err != nil || left {
			s.shredSoon()
		}
		timer := time.NewTimer(shredPause + time.Duration(rewritten>>20)*shredPerMiB)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// Shred rewrites the parts of materials that something was deleted from, so that
// after the next checkpoint the files of the tables no longer contain it. It runs
// by itself soon after a deletion. It waits for transactions that began earlier,
// those of other programs included, until ctx ends.
func (s *Store) Shred(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	for {
		_, left, err := s.shredAll(ctx)
		if err != nil || !left {
			return err
		}
		timer := time.NewTimer(shredLock)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// shredAll makes one attempt at each part. left says that a part could not be
// rewritten yet, or still holds what an older transaction may want to see.
func (s *Store) shredAll(ctx context.Context) (rewritten int64, left bool, err error) {
	parts, err := s.shredParts(ctx)
	if err != nil || len(parts) == 0 {
		return 0, false, err
	}
	conn, kept, err := s.connectShredder(ctx)
	if err != nil {
		return 0, true, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // its locks end with it
	var turn bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1::integer, $2::integer)", lockClass, shredTurn).Scan(&turn); err != nil {
		return 0, true, fault("rewrite material", err)
	}
	if !turn {
		return 0, true, nil // another node is at it
	}
	for _, p := range parts {
		command := "VACUUM (FULL, VERBOSE) "
		if p.size > shredMax {
			command = "VACUUM (VERBOSE) " // its space is used again, which is all that can be had
		}
		kept.Store(-1)
		_, err := conn.Exec(ctx, command+pgx.Identifier{schema, p.name}.Sanitize(), pgx.QueryExecModeSimpleProtocol)
		switch {
		case stateOf(err) == lockNotAvailable || stateOf(err) == queryCanceled:
			left = true
			continue
		case err != nil:
			return rewritten, true, fault("rewrite material", err)
		}
		rewritten += p.size
		if kept.Load() != 0 {
			left = true
			continue
		}
		if _, err := conn.Exec(ctx, "DELETE FROM shreds WHERE part = $1 AND number = $2", p.name, p.number); err != nil {
			return rewritten, true, fault("rewrite material", err)
		}
	}
	return rewritten, left, nil
}

// part is a part of materials to be rewritten.
type part struct {
	name         string
	number, size int64
}

func (s *Store) shredParts(ctx context.Context) ([]part, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, "SELECT part, number, pg_table_size(part::regclass) FROM shreds ORDER BY part")
	if err != nil {
		return nil, fault("look for material to rewrite", err)
	}
	parts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p part, err error) {
		err = row.Scan(&p.name, &p.number, &p.size)
		return p, err
	})
	return parts, fault("look for material to rewrite", err)
}

// connectShredder returns a connection on which VACUUM says, in kept, how many
// deleted rows it had to leave; -1: it has not said.
func (s *Store) connectShredder(ctx context.Context) (_ *pgx.Conn, kept *atomic.Int64, err error) {
	config, err := s.settings.config(s.settings.upkeep())
	if err != nil {
		return nil, nil, err
	}
	kept = new(atomic.Int64)
	// In every language of the server's messages the number comes first.
	number := regexp.MustCompile(`^\D*(\d+)`)
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
		if match := number.FindStringSubmatch(notice.Detail); match != nil {
			if n, err := strconv.ParseInt(match[1], 10, 64); err == nil {
				kept.Store(max(kept.Load(), 0) + n)
			}
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, nil, s.settings.connectFault("rewrite material", err)
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf("SET lock_timeout = %d; SET statement_timeout = %d", shredLock.Milliseconds(), shredTime.Milliseconds())); err != nil {
		_ = conn.Close(ctx) // it is given up
		return nil, nil, fault("rewrite material", err)
	}
	return conn, kept, nil
}
