package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyturn/keyturn/internal/store"
)

type auditLog struct{ *tx }

// Append implements store.Log. It appends all records and hashes or none.
func (l auditLog) Append(ctx context.Context, first uint64, records [][]byte, firstHash uint64, hashes []store.Hash) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	for _, record := range records {
		if err := store.CheckBody("log record", record); err != nil {
			return fmt.Errorf("sqlite: append to the log: %w", err)
		}
	}
	size, err := l.size()
	if err != nil {
		return err
	}
	var hashCount uint64
	if _, err := l.conn.row("SELECT coalesce(max(number) + 1, 0) FROM log_hashes", nil, &hashCount); err != nil {
		return l.fail("append to the log", err)
	}
	if first != size || firstHash != hashCount {
		return fmt.Errorf("sqlite: log has %d records and %d hashes, appending begins at %d and %d: %w", size, hashCount, first, firstHash, store.ErrConflict)
	}
	for i, record := range records {
		if _, err := l.conn.exec("INSERT INTO log_records (number, record) VALUES (?, ?)", toInt(first+uint64(i)), blob(record)); err != nil {
			return l.fail("append to the log", err)
		}
	}
	for i, hash := range hashes {
		if _, err := l.conn.exec("INSERT INTO log_hashes (number, hash) VALUES (?, ?)", toInt(firstHash+uint64(i)), hash[:]); err != nil {
			return l.fail("append to the log", err)
		}
	}
	if len(records) > 0 {
		l.touched.Add(store.TopicLog)
	}
	return nil
}

// Records implements store.Log.
func (l auditLog) Records(ctx context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	if err := l.reading(ctx); err != nil {
		return nil, 0, err
	}
	if err := store.CheckLimit(limit); err != nil {
		return nil, 0, fmt.Errorf("sqlite: read the log: %w", err)
	}
	size, err := l.size()
	if err != nil {
		return nil, 0, err
	}
	scan := func(r *sql.Rows) (record []byte, more bool, err error) {
		err = r.Scan(&record)
		return record, true, err
	}
	records, err := rows(ctx, l.conn, scan, "SELECT record FROM log_records WHERE number >= ? ORDER BY number LIMIT ?", toInt(from), limit)
	if err != nil {
		return nil, 0, l.fail("read the log", err)
	}
	return records, size, nil
}

// Hashes implements store.Log.
func (l auditLog) Hashes(ctx context.Context, indexes []uint64) ([]store.Hash, error) {
	if err := l.reading(ctx); err != nil {
		return nil, err
	}
	hashes := make([]store.Hash, 0, len(indexes))
	for _, i := range indexes {
		var hash []byte
		found, err := l.conn.row("SELECT hash FROM log_hashes WHERE number = ?", []any{toInt(i)}, &hash)
		if err != nil {
			return nil, l.fail("read the log's hashes", err)
		}
		if !found {
			return nil, fmt.Errorf("sqlite: hash %d of the log: %w", i, store.ErrNotFound)
		}
		hashes = append(hashes, store.Hash(hash))
	}
	return hashes, nil
}

func (l auditLog) size() (size uint64, err error) {
	_, err = l.conn.row("SELECT coalesce(max(number) + 1, 0) FROM log_records", nil, &size)
	return size, l.fail("read the size of the log", err)
}
