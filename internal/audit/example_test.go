package audit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
)

// A server appends entries and signs a checkpoint; an auditor verifies the
// exported bundle with nothing but the verifier key.
func Example() {
	ctx := context.Background()
	signing, verifierKey, err := audit.GenerateKey(rand.Reader, "keyturn.example.org/audit")
	if err != nil {
		panic(err)
	}
	signer, err := audit.ParseSigner(signing)
	if err != nil {
		panic(err)
	}

	// The server, in the transaction that makes the step. l stands for the store.
	l := &memLog{}
	tail, err := audit.ReadTail(ctx, l)
	if err != nil {
		panic(err)
	}
	batch, err := audit.Append(tail, audit.HashReader(ctx, l), audit.Entry{
		At:      time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC),
		Actor:   audit.Actor{ID: "alice", Kind: "user"},
		Action:  audit.ActionApply,
		Key:     "prod/orders/db",
		Outcome: audit.OutcomeOK,
	})
	if err != nil {
		panic(err)
	}
	l.records, l.hashes = batch.Records, batch.Hashes

	// From time to time.
	checkpoint, err := audit.CheckpointAt("keyturn.example.org/audit", batch.Tail.Size, audit.HashReader(ctx, l))
	if err != nil {
		panic(err)
	}
	signed, err := audit.SignCheckpoint(checkpoint, signer)
	if err != nil {
		panic(err)
	}
	l.checkpoints = append(l.checkpoints, signed)

	var bundle bytes.Buffer
	if _, err := audit.WriteBundle(ctx, &bundle, l, verifierKey); err != nil {
		panic(err)
	}

	// The auditor.
	verifier, err := audit.ParseVerifier(verifierKey)
	if err != nil {
		panic(err)
	}
	options := audit.Options{Verifiers: []note.Verifier{verifier}}
	report, err := audit.VerifyBundle(bytes.NewReader(bundle.Bytes()), options)
	fmt.Println(report.Proven, "of", report.Entries, "proven:", err)

	_, err = audit.VerifyBundle(strings.NewReader(strings.Replace(bundle.String(), "alice", "mallory", 1)), options)
	fmt.Println(err)
	// Output:
	// 1 of 1 proven: <nil>
	// audit log is altered at entry 0, line 2: the record does not match its leaf hash; no entry is proven; keep the log as evidence and compare the entry with a backup or an earlier bundle
}
