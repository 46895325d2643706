package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
)

// maxCheckpoints bounds how many checkpoints a verification remembers.
const maxCheckpoints = 1 << 20

// Reader reads a backup once, as if it were a store.
type Reader struct {
	decoder  decoder
	begun    bool
	manifest Manifest
	seen     observer
	// visit, if set, sees every row.
	visit func(table string, row []any) error
}

var _ store.Dumper = (*Reader)(nil)

// Open opens a backup with any of the identities that it was encrypted to. It
// fails with ErrIdentity, ErrInvalid or ErrFormat.
func Open(r io.Reader, identities ...age.Identity) (*Reader, error) {
	if len(identities) == 0 {
		return nil, fmt.Errorf("%w: none was given", ErrIdentity)
	}
	plain, err := age.Decrypt(r, identities...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none):
		return nil, fmt.Errorf("%w: it was encrypted to others (name the file of one of its recipients' identities)", ErrIdentity)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return open(plain)
}

// open reads the beginning of the plaintext.
func open(plain io.Reader) (*Reader, error) {
	r := &Reader{decoder: decoder{r: bufio.NewReaderSize(plain, chunk)}}
	return r, r.decoder.begin()
}

// Manifest is that of the backup, after Dump has succeeded.
func (r *Reader) Manifest() Manifest { return r.manifest }

// Dump implements store.Dumper, once: fn must read all tables of store.Tables in
// their order. After fn has returned the manifest is compared with what was read;
// so what fn has done must be undone when Dump fails.
func (r *Reader) Dump(ctx context.Context, fn func(table func(store.Table) store.Rows) error) error {
	if r.begun {
		return fmt.Errorf("%w: it can be read only once", ErrInvalid)
	}
	r.begun = true
	mark, err := r.decoder.mark()
	if err != nil {
		return err
	}
	var tables []Table
	var failed error
	err = fn(func(table store.Table) store.Rows {
		return func(yield func([]any, error) bool) {
			if failed != nil {
				yield(nil, failed)
				return
			}
			failed = errors.New("a table of the backup was not read to its end")
			done, err := r.table(ctx, table, &mark, &tables, yield)
			if done {
				failed = nil
			}
			if err != nil {
				failed = fmt.Errorf("the table %s of the backup: %w", table.Name, err)
				yield(nil, failed)
			}
		}
	})
	if err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	if mark != markManifest || len(tables) != len(store.Tables()) {
		return fmt.Errorf("%w: it has %d tables that were read, %d are known", ErrInvalid, len(tables), len(store.Tables()))
	}
	manifest, err := r.decoder.manifest()
	if err != nil {
		return err
	}
	if err := r.compare(manifest, tables); err != nil {
		return err
	}
	r.manifest = manifest
	return nil
}

// table reads one table. done is false when the caller stopped before its end.
func (r *Reader) table(ctx context.Context, table store.Table, mark *byte, tables *[]Table, yield func([]any, error) bool) (done bool, err error) {
	all := store.Tables()
	if len(*tables) >= len(all) || all[len(*tables)].Name != table.Name || *mark != markTable {
		return false, fmt.Errorf("%w: it does not come here", ErrInvalid)
	}
	if err := r.decoder.name(table.Name); err != nil {
		return false, err
	}
	tally := store.NewTally()
	for {
		if *mark, err = r.decoder.mark(); err != nil {
			return false, err
		}
		if *mark != markRow {
			break
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		row, err := r.decoder.values(table)
		if err == nil {
			err = tally.Add(row)
		}
		if err == nil {
			err = r.seen.row(table.Name, row)
		}
		if err == nil && r.visit != nil {
			err = r.visit(table.Name, row)
		}
		if err != nil {
			return false, err
		}
		if !yield(row, nil) {
			return false, nil
		}
	}
	*tables = append(*tables, describe(table.Name, tally))
	return true, nil
}

// compare compares the manifest with what was read.
func (r *Reader) compare(manifest Manifest, tables []Table) error {
	if !slices.Equal(manifest.Tables, tables) {
		return fmt.Errorf("%w: its tables are others than its manifest says", ErrInvalid)
	}
	if manifest.Log.Size != r.seen.log.size || manifest.Log.Root != r.seen.log.root() || manifest.Keys != r.seen.keys {
		return fmt.Errorf("%w: its audit log or its keys are others than its manifest says", ErrInvalid)
	}
	return nil
}

// Report is what a verification has proved.
type Report struct {
	// Entries is the number of entries of the audit log; they make the Merkle tree of
	// its stored hashes. Proven is how many of them a checkpoint covers that a
	// trusted key has signed.
	Entries uint64 `json:"entries"`
	Proven  uint64 `json:"proven"`
	// Trusted says that signatures were checked.
	Trusted bool `json:"trusted"`
}

// Verify reads a whole backup and checks it: its tables against its manifest, the
// stored hashes of its audit log against the records, and, if verifiers are given,
// every checkpoint against them and the records. It fails with ErrIdentity,
// ErrInvalid or ErrFormat. A log with entries must then have a checkpoint.
func Verify(ctx context.Context, r io.Reader, identities []age.Identity, verifiers ...note.Verifier) (Manifest, Report, error) {
	reader, err := Open(r, identities...)
	if err != nil {
		return Manifest{}, Report{}, err
	}
	return verify(ctx, reader, verifiers)
}

func verify(ctx context.Context, reader *Reader, verifiers []note.Verifier) (Manifest, Report, error) {
	v := verification{reader: reader, verifiers: verifiers}
	reader.visit = v.row
	err := reader.Dump(ctx, func(rows func(store.Table) store.Rows) error {
		for _, table := range store.Tables() {
			for _, err := range rows(table) {
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return Manifest{}, Report{}, err
	}
	report, err := v.end()
	if err != nil {
		return Manifest{}, Report{}, err
	}
	return reader.manifest, report, nil
}

// verification checks the audit log while it passes by.
type verification struct {
	reader    *Reader
	verifiers []note.Verifier
	// signed are the checkpoints that are still ahead, by size.
	signed []checkpoint
	proven uint64
}

type checkpoint struct {
	size uint64
	root tlog.Hash
}

// kindCheckpoint is the kind of the documents that hold signed checkpoints; their
// names sort by size.
const kindCheckpoint = "checkpoint"

func (v *verification) row(table string, row []any) error {
	switch {
	case table == "docs" && row[0] == kindCheckpoint && len(v.verifiers) > 0:
		body, _ := row[4].([]byte)
		opened, err := audit.OpenCheckpoint(body, v.verifiers...)
		switch {
		case err != nil:
			return fmt.Errorf("%w: the checkpoint %v of its audit log: %w", ErrInvalid, row[1], err)
		case len(v.signed) == maxCheckpoints:
			return fmt.Errorf("%w: it has more than %d checkpoints", ErrInvalid, maxCheckpoints)
		case len(v.signed) > 0 && v.signed[len(v.signed)-1].size >= opened.Size:
			return fmt.Errorf("%w: the checkpoint %v of its audit log is out of order", ErrInvalid, row[1])
		}
		v.signed = append(v.signed, checkpoint{size: opened.Size, root: opened.Root})
	case table == "log_records":
		log := &v.reader.seen.log
		if number, _ := row[0].(int64); uint64(number) != log.size-1 {
			return fmt.Errorf("%w: entry %d of its audit log is missing", ErrInvalid, log.size-1)
		}
		if len(v.signed) == 0 || v.signed[0].size != log.size {
			return nil
		}
		if v.signed[0].root != log.head() {
			return fmt.Errorf("%w: the first %d entries of its audit log are others than were signed", ErrInvalid, log.size)
		}
		v.proven, v.signed = log.size, v.signed[1:]
	}
	return nil
}

func (v *verification) end() (Report, error) {
	log := &v.reader.seen.log
	if hashes := log.table(); !slices.Contains(v.reader.manifest.Tables, hashes) {
		return Report{}, fmt.Errorf("%w: the stored hashes of its audit log are others than its entries make", ErrInvalid)
	}
	if len(v.signed) > 0 {
		return Report{}, fmt.Errorf("%w: its audit log has %d entries, and %d were signed", ErrInvalid, log.size, v.signed[len(v.signed)-1].size)
	}
	if len(v.verifiers) > 0 && v.proven == 0 && log.size > 0 {
		return Report{}, fmt.Errorf("%w: nothing of its audit log is signed", ErrInvalid)
	}
	return Report{Entries: log.size, Proven: v.proven, Trusted: len(v.verifiers) > 0}, nil
}
