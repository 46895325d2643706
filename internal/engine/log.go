package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Record enters something that is decided outside the engine, such as a denied
// request, into the audit log.
func (e *Engine) Record(ctx context.Context, actor audit.Actor, entry audit.Entry) error {
	return e.update(ctx, actor, func(c *change) error {
		c.audit(entry)
		return nil
	})
}

// Checkpoint signs the audit log as it stands and keeps the signature. It
// returns the signed note; an empty log has none.
func (e *Engine) Checkpoint(ctx context.Context) ([]byte, error) {
	var signed []byte
	err := e.store.Update(ctx, func(tx store.Tx) error {
		_, size, err := tx.Log.Records(ctx, 0, 1)
		if err != nil || size == 0 {
			return err
		}
		doc, err := tx.Docs.Get(ctx, kindCheckpoint, checkpointName(size))
		if err == nil {
			signed = doc.Body
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if signed, err = e.sign(ctx, tx, size); err != nil {
			return err
		}
		_, err = tx.Docs.Put(ctx, store.Doc{
			Kind: kindCheckpoint, Name: checkpointName(size), Body: signed, Due: e.config.Now().UTC().Add(checkpointsDense),
		})
		return err
	})
	return signed, err
}

// sign returns a signed checkpoint of the log after so many entries.
func (e *Engine) sign(ctx context.Context, tx store.Tx, size uint64) ([]byte, error) {
	checkpoint, err := audit.CheckpointAt(e.config.Signer.Name(), size, audit.HashReader(ctx, logSource{tx: tx}))
	if err != nil {
		return nil, err
	}
	return audit.SignCheckpoint(checkpoint, e.config.Signer)
}

// logView reads the log in a view of its own for every call, so that a long
// export holds no snapshot open.
type logView struct{ store store.Store }

func (v logView) Records(ctx context.Context, from uint64, limit int) (records [][]byte, size uint64, err error) {
	err = v.store.View(ctx, func(tx store.Tx) error {
		records, size, err = logSource{tx: tx}.Records(ctx, from, limit)
		return err
	})
	return records, size, err
}

func (v logView) Hashes(ctx context.Context, indexes []uint64) (hashes []tlog.Hash, err error) {
	err = v.store.View(ctx, func(tx store.Tx) error {
		hashes, err = logSource{tx: tx}.Hashes(ctx, indexes)
		return err
	})
	return hashes, err
}

func (v logView) Checkpoints(ctx context.Context, from uint64, limit int) (signed [][]byte, err error) {
	err = v.store.View(ctx, func(tx store.Tx) error {
		signed, err = logSource{tx: tx}.Checkpoints(ctx, from, limit)
		return err
	})
	return signed, err
}

// signedLog signs the audit log and returns it with all that is in it. Reading what
// is there must not need room: on a store that is full the signature is kept
// nowhere, and covers what was committed.
func (e *Engine) signedLog(ctx context.Context) (audit.Source, error) {
	view := logView{store: e.store}
	_, err := e.Checkpoint(ctx)
	if !errors.Is(err, store.ErrFull) {
		return view, err
	}
	last := signedView{logView: view}
	err = e.store.View(ctx, func(tx store.Tx) error {
		var err error
		if _, last.size, err = tx.Log.Records(ctx, 0, 1); err == nil {
			last.signed, err = e.sign(ctx, tx, last.size)
		}
		return err
	})
	return last, err
}

// signedView is the log with a checkpoint that is not stored.
type signedView struct {
	logView
	size   uint64
	signed []byte
}

// Checkpoints implements audit.Source.
func (v signedView) Checkpoints(ctx context.Context, from uint64, limit int) (signed [][]byte, err error) {
	err = v.store.View(ctx, func(tx store.Tx) error {
		if signed, err = (logSource{tx: tx}).Checkpoints(ctx, from, limit); err != nil || len(signed) == limit || from > v.size {
			return err
		}
		later, err := (logSource{tx: tx}).Checkpoints(ctx, v.size, 1)
		if err == nil && len(later) == 0 {
			signed = append(signed, v.signed)
		}
		return err
	})
	return signed, err
}

// ExportLog signs the audit log and writes it as a bundle that can be verified
// offline, also from a store that is full. verifierKeys are the keys that signed it.
func (e *Engine) ExportLog(ctx context.Context, w io.Writer, verifierKeys ...string) error {
	log, err := e.signedLog(ctx)
	if err != nil {
		return err
	}
	_, err = audit.WriteBundle(ctx, w, log, verifierKeys...)
	return err
}

// SignEvidence signs with the log's key that an actor has brought a document with that
// SHA-256 about a subject, which it enters into the log before.
func (e *Engine) SignEvidence(ctx context.Context, actor audit.Actor, kind, id string, digest [sha256.Size]byte) ([]byte, error) {
	statement := audit.Statement{Origin: e.config.Signer.Name(), Subject: kind + " " + id, Digest: digest, Actor: actor}
	err := e.update(ctx, actor, func(c *change) error {
		statement.At = c.now
		c.audit(audit.Entry{Action: "evidence.sign", Target: id, Detail: map[string]string{"sha256": hex.EncodeToString(digest[:])}})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return audit.SignStatement(&statement, e.config.Signer)
}

// VerifyLog checks the whole audit log against its signatures.
func (e *Engine) VerifyLog(ctx context.Context, verifiers ...note.Verifier) (audit.Report, error) {
	log, err := e.signedLog(ctx)
	if err != nil {
		return audit.Report{}, err
	}
	return audit.VerifyLog(ctx, log, audit.Options{Verifiers: verifiers})
}

// VerifyLogOf checks the audit log in a store that no engine works on, as far as
// its last checkpoint.
func VerifyLogOf(ctx context.Context, s store.Store, verifiers ...note.Verifier) (audit.Report, error) {
	return audit.VerifyLog(ctx, logView{store: s}, audit.Options{Verifiers: verifiers})
}

// LogPage is part of the audit log.
type LogPage struct {
	// Entries that match, one JSON object each.
	Entries []string
	// Next is where to read on; Size the number of entries in the log.
	Next uint64
	Size uint64
}

// maxScanned bounds how many entries one call of ReadLog looks at.
const maxScanned = 10_000

// LogFilter says which entries are wanted; its zero value wants all.
type LogFilter struct {
	// Key and Rotation are those that the entry names, if set.
	Key      key.Name
	Rotation key.RotationID
	// Visible leaves out all entries but those of keys for which it returns true;
	// nil leaves out none.
	Visible func(key.Name) bool
}

func (f *LogFilter) wants(entry *audit.Entry) bool {
	switch {
	case f.Key != "" && entry.Key != f.Key, !f.Rotation.IsZero() && entry.Rotation != f.Rotation:
		return false
	case f.Visible == nil:
		return true
	}
	return entry.Key != "" && f.Visible(entry.Key)
}

// scanBatch is how many entries are read at once, from a snapshot of their own.
const scanBatch = 1000

// ReadLog returns the entries that the filter wants, from number from on, at
// most limit. It looks at a bounded number of entries: a page may be empty
// although more follow, until Next has reached Size.
func (e *Engine) ReadLog(ctx context.Context, from uint64, limit int, filter LogFilter) (LogPage, error) {
	page := LogPage{Next: from}
	batch := min(limit, scanBatch)
	if filter.Key != "" || !filter.Rotation.IsZero() || filter.Visible != nil {
		batch = scanBatch
	}
	if from > math.MaxInt64 {
		_, size, err := logView{store: e.store}.Records(ctx, 0, 1)
		page.Size = size
		return page, err
	}
	for scanned := 0; len(page.Entries) < limit && scanned < maxScanned; {
		records, size, err := logView{store: e.store}.Records(ctx, page.Next, batch)
		page.Size = size
		if err != nil || len(records) == 0 {
			return page, err
		}
		for _, record := range records {
			page.Next++
			scanned++
			entry, err := audit.Decode(record)
			if err != nil {
				return page, fmt.Errorf("entry %d: %w", page.Next-1, err)
			}
			if !filter.wants(&entry) {
				continue
			}
			page.Entries = append(page.Entries, string(record))
			if len(page.Entries) == limit {
				break
			}
		}
	}
	return page, nil
}
