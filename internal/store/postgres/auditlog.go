package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

type auditLog struct{ *tx }

// Append implements store.Log. It appends all records and hashes or none: how far
// the log goes is known since the transaction holds the commit lock.
func (l auditLog) Append(ctx context.Context, first uint64, records [][]byte, firstHash uint64, hashes []store.Hash) error {
	if err := l.writing(ctx); err != nil {
		return err
	}
	for _, record := range records {
		if err := store.CheckBody("log record", record); err != nil {
			return fmt.Errorf("postgres: append to the log: %w", err)
		}
	}
	if first != l.log.records || firstHash != l.log.hashes {
		return fmt.Errorf("postgres: log has %d records and %d hashes, appending begins at %d and %d: %w",
			l.log.records, l.log.hashes, first, firstHash, store.ErrConflict)
	}
	for i, record := range records {
		if err := l.add("INSERT INTO log_records (number, record) VALUES ($1, $2)", first+uint64(i), blob(record)); err != nil {
			return err
		}
	}
	for i, hash := range hashes {
		if err := l.add("INSERT INTO log_hashes (number, hash) VALUES ($1, $2)", firstHash+uint64(i), hash[:]); err != nil {
			return err
		}
	}
	l.log.records += uint64(len(records))
	l.log.hashes += uint64(len(hashes))
	if len(records) > 0 {
		l.touched.Add(store.TopicLog)
	}
	return nil
}

func (l auditLog) add(statement string, number uint64, content []byte) error {
	return l.fail("append to the log", l.exec(statement, toInt(number), content))
}

// Records implements store.Log.
func (l auditLog) Records(ctx context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	if err := l.reading(ctx); err != nil {
		return nil, 0, err
	}
	if err := store.CheckLimit(limit); err != nil {
		return nil, 0, fmt.Errorf("postgres: read the log: %w", err)
	}
	size := l.log.records
	if l.batch == nil {
		if _, err := l.row([]any{&size}, "SELECT coalesce(max(number) + 1, 0) FROM log_records"); err != nil {
			return nil, 0, l.fail("read the size of the log", err)
		}
	}
	if from >= size {
		return nil, size, nil
	}
	scan := func(rows pgx.Rows) (record []byte, err error) {
		err = rows.Scan(&record)
		return record, err
	}
	records, err := collectRows(l.tx, scan, "SELECT record FROM log_records WHERE number >= $1 ORDER BY number LIMIT $2", toInt(from), limit)
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
	if len(indexes) == 0 {
		return nil, nil
	}
	numbers := make([]int64, len(indexes))
	for i, index := range indexes {
		numbers[i] = toInt(index)
	}
	found := make(map[int64]store.Hash, len(indexes))
	err := l.query(func(rows pgx.Rows) error {
		for rows.Next() {
			var number int64
			var hash []byte
			if err := rows.Scan(&number, &hash); err != nil {
				return err
			}
			found[number] = store.Hash(hash)
		}
		return nil
	}, "SELECT number, hash FROM log_hashes WHERE number = ANY($1::bigint[])", numbers)
	if err != nil {
		return nil, l.fail("read the log's hashes", err)
	}
	hashes := make([]store.Hash, len(indexes))
	for i, number := range numbers {
		hash, ok := found[number]
		if !ok {
			return nil, fmt.Errorf("postgres: hash %d of the log: %w", indexes[i], store.ErrNotFound)
		}
		hashes[i] = hash
	}
	return hashes, nil
}
