package audit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/key"
)

const origin = "keyturn.example.org/audit"

var start = time.Date(2026, 11, 23, 1, 2, 3, 456789e3, time.UTC)

// memLog is a log in memory whose parts a test may damage.
type memLog struct {
	records     [][]byte
	hashes      []audit.Hash
	missing     map[uint64]bool
	checkpoints [][]byte
}

func (l *memLog) Records(_ context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	size := uint64(len(l.records))
	if from >= size {
		return nil, size, nil
	}
	return l.records[from:min(size, from+uint64(limit))], size, nil
}

func (l *memLog) Hashes(_ context.Context, indexes []uint64) ([]audit.Hash, error) {
	var found []audit.Hash
	for _, index := range indexes {
		if index >= uint64(len(l.hashes)) || l.missing[index] {
			return nil, fmt.Errorf("%w: index %d", audit.ErrMissingHash, index)
		}
		found = append(found, l.hashes[index])
	}
	return found, nil
}

func (l *memLog) Checkpoints(_ context.Context, from uint64, limit int) ([][]byte, error) {
	var found [][]byte
	for _, signed := range l.checkpoints {
		var size uint64
		if _, err := fmt.Sscanf(string(bytes.SplitN(signed, []byte("\n"), 3)[1]), "%d", &size); err == nil && size < from {
			continue
		}
		if found = append(found, signed); len(found) == limit {
			break
		}
	}
	return found, nil
}

func (l *memLog) clone() *memLog {
	c := &memLog{hashes: slices.Clone(l.hashes), checkpoints: slices.Clone(l.checkpoints), missing: map[uint64]bool{}}
	for _, record := range l.records {
		c.records = append(c.records, bytes.Clone(record))
	}
	return c
}

// hashReader reads the hashes of l as the engine does.
func hashReader(t testing.TB, l *memLog) tlog.HashReader { return audit.HashReader(t.Context(), l) }

// grow appends entries as the engine does.
func (l *memLog) grow(t testing.TB, entries ...audit.Entry) audit.Batch {
	t.Helper()
	tail, err := audit.ReadTail(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := audit.Append(tail, hashReader(t, l), entries...)
	if err != nil {
		t.Fatal(err)
	}
	if batch.First != uint64(len(l.records)) || batch.FirstHash != uint64(len(l.hashes)) {
		t.Fatalf("the batch continues at record %d and hash %d, the log at %d and %d", batch.First, batch.FirstHash, len(l.records), len(l.hashes))
	}
	l.records = append(l.records, batch.Records...)
	l.hashes = append(l.hashes, batch.Hashes...)
	return batch
}

// sign signs a checkpoint of the log as it is.
func (l *memLog) sign(t testing.TB, signer note.Signer) audit.Checkpoint {
	t.Helper()
	checkpoint, err := audit.CheckpointAt(signer.Name(), uint64(len(l.records)), hashReader(t, l))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := audit.SignCheckpoint(checkpoint, signer)
	if err != nil {
		t.Fatal(err)
	}
	l.checkpoints = append(l.checkpoints, signed)
	return checkpoint
}

// newKey returns a signer and its verifier.
func newKey(t testing.TB, name string) (*audit.Signer, note.Verifier) {
	t.Helper()
	private, public, err := audit.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.ParseSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := audit.ParseVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	if signer.VerifierKey() != public {
		t.Fatalf("the verifier key is %q, want %q", signer.VerifierKey(), public)
	}
	return signer, verifier
}

// entry returns the i-th entry of the tests' logs, with every field set.
func entry(i int) audit.Entry {
	at := start.Add(time.Duration(i) * time.Second)
	return audit.Entry{
		At:       at,
		Actor:    audit.Actor{ID: `operator "x"\y`, Kind: "user"},
		Action:   audit.ActionPhase,
		Key:      "prod/orders/db",
		Rotation: key.NewRotationID(at, [10]byte{byte(i)}),
		Event:    uint64(i + 1),
		Version:  key.Version(i + 1),
		From:     "accepting",
		To:       "presenting",
		Target:   "replica db2:5432",
		Outcome:  audit.OutcomeOK,
		Reason:   "all 12 verifiers acknowledged – ✓",
		Detail:   map[string]string{"stage": "canary", "region": "eu"},
	}
}

// newLog returns a log of 20 entries, in which clocks step back once, with
// checkpoints after 6, 13 and 20.
func newLog(t testing.TB, signer note.Signer) *memLog {
	t.Helper()
	l := &memLog{}
	for i := range 20 {
		e := entry(i)
		if i == 8 {
			e.At = e.At.Add(-time.Hour)
		}
		l.grow(t, e)
		if i == 5 || i == 12 || i == 19 {
			l.sign(t, signer)
		}
	}
	return l
}

// export returns the bundle of l.
func export(t testing.TB, l *memLog, verifierKeys ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := audit.WriteBundle(t.Context(), &b, l, verifierKeys...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// emptyLog reads the hashes of a log that has none.
func emptyLog() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		return make([]tlog.Hash, len(indexes)), nil
	})
}
