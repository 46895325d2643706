package cli_test

import (
	"context"
	"crypto/rand"
	"io"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/key"
)

// memoryLog is an audit log in memory; it implements audit.Source.
type memoryLog struct {
	signer *audit.Signer

	mu          sync.Mutex
	tail        audit.Tail
	records     [][]byte
	hashes      []audit.Hash
	checkpoints [][]byte
}

// newMemoryLog returns a log of five entries and two checkpoints.
func newMemoryLog(t testing.TB) *memoryLog {
	t.Helper()
	signing, _, err := audit.GenerateKey(rand.Reader, "test.example/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.ParseSigner(signing)
	if err != nil {
		t.Fatal(err)
	}
	l := &memoryLog{signer: signer}
	actor := audit.Actor{ID: "alice", Kind: "user"}
	l.add(t,
		audit.Entry{At: noon(), Actor: actor, Action: audit.ActionToken, Target: "tok0", Outcome: audit.OutcomeOK},
		audit.Entry{At: noon(), Actor: actor, Action: audit.ActionApply, Key: "prod/orders/db", Outcome: audit.OutcomeOK},
		audit.Entry{At: noon(), Actor: actor, Action: audit.ActionRead, Key: "prod/orders/db", Version: 2, Outcome: audit.OutcomeDenied, Reason: "role viewer"},
	)
	l.add(t,
		audit.Entry{At: noon(), Actor: audit.Actor{ID: "s1", Kind: "server"}, Action: audit.ActionPhase, Key: "prod/web/api", Rotation: key.RotationID{1}, From: "planned", To: "minting", Outcome: audit.OutcomeOK},
		audit.Entry{At: noon(), Actor: audit.Actor{ID: "s1", Kind: "server"}, Action: audit.ActionAttempt, Key: "prod/orders/db", Version: 3, Target: "primary", Outcome: audit.OutcomeFailed, Reason: "connection refused"},
	)
	return l
}

// add appends entries and signs a checkpoint.
func (l *memoryLog) add(t testing.TB, entries ...audit.Entry) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	hashes := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var list []tlog.Hash
		for _, i := range indexes {
			list = append(list, l.hashes[i])
		}
		return list, nil
	})
	batch, err := audit.Append(l.tail, hashes, entries...)
	if err != nil {
		t.Fatal(err)
	}
	l.tail, l.records, l.hashes = batch.Tail, append(l.records, batch.Records...), append(l.hashes, batch.Hashes...)
	checkpoint, err := audit.CheckpointAt("test.example/log", l.tail.Size, hashes)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := audit.SignCheckpoint(checkpoint, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	l.checkpoints = append(l.checkpoints, signed)
}

func (l *memoryLog) export(ctx context.Context, w io.Writer) error {
	_, err := audit.WriteBundle(ctx, w, l, l.signer.VerifierKey())
	return err
}

func (l *memoryLog) Records(_ context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := uint64(len(l.records))
	from = min(from, size)
	return l.records[from:min(from+uint64(limit), size)], size, nil
}

func (l *memoryLog) Hashes(_ context.Context, indexes []uint64) ([]audit.Hash, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []audit.Hash
	for _, i := range indexes {
		list = append(list, l.hashes[i])
	}
	return list, nil
}

func (l *memoryLog) Checkpoints(_ context.Context, from uint64, limit int) ([][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list [][]byte
	verifier, err := audit.ParseVerifier(l.signer.VerifierKey())
	if err != nil {
		return nil, err
	}
	for _, signed := range l.checkpoints {
		c, err := audit.OpenCheckpoint(signed, verifier)
		if err != nil {
			return nil, err
		}
		if c.Size >= from && len(list) < limit {
			list = append(list, signed)
		}
	}
	return list, nil
}
