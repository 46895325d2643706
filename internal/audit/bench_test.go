package audit_test

import (
	"bytes"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
)

// bigLog returns a log of n entries with a checkpoint after every thousand.
func bigLog(b *testing.B, n int) (*memLog, *audit.Signer, audit.Options) {
	b.Helper()
	signer, verifier := newKey(b, origin)
	l := &memLog{}
	for len(l.records) < n {
		var batch []audit.Entry
		for i := range 1000 {
			batch = append(batch, entry(len(l.records)+i))
		}
		l.grow(b, batch...)
		l.sign(b, signer)
	}
	return l, signer, audit.Options{Verifiers: []note.Verifier{verifier}}
}

func BenchmarkVerifyBundle(b *testing.B) {
	const n = 100_000
	l, signer, options := bigLog(b, n)
	bundle := export(b, l, signer.VerifierKey())
	b.SetBytes(int64(len(bundle)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := audit.VerifyBundle(bytes.NewReader(bundle), options); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkVerifyLog(b *testing.B) {
	const n = 100_000
	l, _, options := bigLog(b, n)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := audit.VerifyLog(b.Context(), l, options); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkAppend(b *testing.B) {
	l, _, _ := bigLog(b, 10_000)
	tail, err := audit.ReadTail(b.Context(), l)
	if err != nil {
		b.Fatal(err)
	}
	reader := audit.HashReader(b.Context(), l)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := audit.Append(tail, reader, entry(1), entry(2), entry(3)); err != nil {
			b.Fatal(err)
		}
	}
}
