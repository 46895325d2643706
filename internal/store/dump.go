package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"iter"
)

// Table is one table of a dump. Every store can be dumped as the same tables, so
// that two stores hold the same if their dumps are equal.
type Table struct {
	Name    string
	Columns []string
}

// Tables are the tables of a dump, in its order. Rows are in the order of the
// first columns that identify them. Times are microseconds since 1970, absent ones
// nil. Of jobs, state and front are those of the schemas.
func Tables() []Table {
	return []Table{
		{"counters", []string{"rev", "fence"}},
		{"docs", []string{"kind", "name", "rev", "due", "body"}},
		{"events", []string{"key", "seq", "rotation", "type", "at", "body"}},
		{"jobs", []string{"seq", "id", "lane", "target", "key", "priority", "run_at", "attempt", "fence", "state", "front", "until", "body"}},
		{"log_records", []string{"number", "record"}},
		{"log_hashes", []string{"number", "hash"}},
		{"materials", []string{"key", "version", "sealed"}},
	}
}

// Rows are the rows of a table. Values are int64, string, []byte or nil, in the
// order of the table's columns, and valid until the next row.
type Rows iter.Seq2[[]any, error]

// Dumper is implemented by stores that can be read as a whole.
type Dumper interface {
	// Dump runs fn on one snapshot; table returns the rows of one table at a time.
	Dump(ctx context.Context, fn func(table func(Table) Rows) error) error
}

// Digest is what a dump comes to: for each table the number of rows and the
// SHA-256 of all of them in order.
type Digest map[string]TableDigest

// TableDigest is the digest of one table.
type TableDigest struct {
	Rows int64
	Hash [sha256.Size]byte
}

// Tally computes a TableDigest.
type Tally struct {
	rows int64
	sum  hash.Hash
}

// NewTally returns a tally of no rows.
func NewTally() *Tally { return &Tally{sum: sha256.New()} }

// Add adds a row. It fails on a value of a type that no dump holds.
func (t *Tally) Add(row []any) error {
	t.rows++
	var head [9]byte
	for _, value := range row {
		var content []byte
		switch value := value.(type) {
		case nil:
			head[0] = 'n'
		case int64:
			head[0], content = 'i', binary.BigEndian.AppendUint64(nil, uint64(value))
		case string:
			head[0], content = 't', []byte(value)
		case []byte:
			head[0], content = 'b', value
		default:
			return fmt.Errorf("%w: a dump holds no %T", ErrInvalid, value)
		}
		// The length goes first, so that no two rows are hashed alike.
		binary.BigEndian.PutUint64(head[1:], uint64(len(content)))
		t.sum.Write(head[:])
		t.sum.Write(content)
	}
	return nil
}

// Digest returns the digest of the rows so far.
func (t *Tally) Digest() TableDigest {
	return TableDigest{Rows: t.rows, Hash: [sha256.Size]byte(t.sum.Sum(nil))}
}

// DigestOf reads a whole store.
func DigestOf(ctx context.Context, s Dumper) (Digest, error) {
	digest := Digest{}
	err := s.Dump(ctx, func(rows func(Table) Rows) error {
		for _, table := range Tables() {
			tally := NewTally()
			for row, err := range rows(table) {
				if err == nil {
					err = tally.Add(row)
				}
				if err != nil {
					return fmt.Errorf("read the table %s: %w", table.Name, err)
				}
			}
			digest[table.Name] = tally.Digest()
		}
		return nil
	})
	return digest, err
}

// Difference names the first table that differs, or is empty.
func (d Digest) Difference(other Digest) string {
	for _, table := range Tables() {
		if a, b := d[table.Name], other[table.Name]; a != b {
			return fmt.Sprintf("table %s: %d rows (SHA-256 %x) and %d rows (SHA-256 %x)", table.Name, a.Rows, a.Hash[:8], b.Rows, b.Hash[:8])
		}
	}
	return ""
}
