package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/audit"
)

func TestVerifyLog(t *testing.T) {
	signer, verifier := newKey(t, origin)
	second, secondVerifier := newKey(t, origin)
	l := newLog(t, signer)
	l.grow(t, entry(20))
	l.sign(t, second)
	l.grow(t, entry(21), entry(22))
	report, err := audit.VerifyLog(t.Context(), l, audit.Options{Verifiers: []note.Verifier{verifier, secondVerifier}})
	if err != nil {
		t.Fatal(err)
	}
	if report.Origin != origin || !report.Trusted || report.Entries != 23 || report.Proven != 21 || report.Checkpoints != 4 ||
		len(report.Keys) != 2 || report.ClockSteps != 1 || !report.First.Equal(start) || !report.Last.Equal(start.Add(22*time.Second)) {
		t.Errorf("got %+v", report)
	}
	if _, err := audit.VerifyLog(t.Context(), l, audit.Options{}); !errors.Is(err, audit.ErrKey) {
		t.Errorf("without a verifier: got %v, want ErrKey", err)
	}
	if _, err := audit.VerifyLog(t.Context(), &memLog{}, audit.Options{Verifiers: []note.Verifier{verifier}}); err != nil {
		t.Errorf("an empty log: %v", err)
	}
	boom := errors.New("boom")
	_, err = audit.VerifyLog(t.Context(), l, audit.Options{
		Verifiers: []note.Verifier{verifier, secondVerifier},
		Visit:     func(audit.Entry) error { return boom },
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v, want the error of Visit", err)
	}
}

func TestTamperedLog(t *testing.T) {
	signer, verifier := newKey(t, origin)
	other, _ := newKey(t, origin)
	whole := newLog(t, signer)
	whole.grow(t, entry(20), entry(21))
	leaf := func(n int64) int { return int(tlog.StoredHashIndex(0, n)) }
	for _, row := range []struct {
		name     string
		damage   func(l *memLog)
		kind     audit.Kind
		from, to uint64
	}{
		{"altered", func(l *memLog) { l.editRecord(t, 9, "all 12", "all 13") }, audit.Altered, 9, 10},
		{"altered number", func(l *memLog) { l.editRecord(t, 9, `"seq":9`, `"seq":10`) }, audit.Altered, 9, 10},
		{"altered to a huge number", func(l *memLog) { l.editRecord(t, 9, `"seq":9`, `"seq":9000000000000000`) }, audit.Altered, 9, 10},
		{"altered beyond repair", func(l *memLog) { l.records[9] = nil }, audit.Altered, 9, 10},
		{"altered behind the last checkpoint", func(l *memLog) { l.editRecord(t, 21, "all 12", "all 13") }, audit.Altered, 21, 22},
		{"rewritten with its leaf", func(l *memLog) {
			l.editRecord(t, 9, "all 12", "all 13")
			l.hashes[leaf(9)] = tlog.RecordHash(l.records[9])
		}, audit.Rewritten, 8, 10},
		{"rewritten with all hashes", func(l *memLog) { rebuild(t, l.editRecord(t, 9, "all 12", "all 13")) }, audit.Rewritten, 6, 13},
		{"leaf hash altered", func(l *memLog) { l.hashes[leaf(9)][0] ^= 1 }, audit.HashAltered, 9, 10},
		{"inner hash altered", func(l *memLog) { l.hashes[leaf(9)+1][0] ^= 1 }, audit.HashAltered, 8, 10},
		{"hash missing", func(l *memLog) { l.missing[uint64(leaf(9))] = true }, audit.HashAltered, 9, 10},
		{"row deleted", func(l *memLog) { l.records = slices.Delete(l.records, 9, 10) }, audit.Missing, 9, 10},
		{"rows deleted", func(l *memLog) { l.records = slices.Delete(l.records, 9, 12) }, audit.Missing, 9, 12},
		{"rows swapped", func(l *memLog) { l.records[9], l.records[10] = l.records[10], l.records[9] }, audit.Reordered, 9, 10},
		{"row repeated", func(l *memLog) { l.records = slices.Insert(l.records, 10, l.records[9]) }, audit.Inserted, 9, 10},
		{"end deleted", func(l *memLog) { l.records = l.records[:17] }, audit.Truncated, 17, 20},
		{"end and its hashes deleted", func(l *memLog) { l.records = l.records[:17]; rebuild(t, l) }, audit.Truncated, 17, 20},
		{"everything but checkpoints deleted", func(l *memLog) { l.records, l.hashes = nil, nil }, audit.Truncated, 0, 6},
		{"checkpoints deleted", func(l *memLog) { l.checkpoints = nil }, audit.Unsigned, 0, 22},
		{"checkpoint forged", func(l *memLog) {
			l.checkpoints[1] = bytes.Replace(l.checkpoints[1], []byte("\n13\n"), []byte("\n14\n"), 1)
		}, audit.BadSignature, 6, 14},
		{"checkpoint not a note", func(l *memLog) { l.checkpoints[1] = []byte("x\n99\n") }, audit.Malformed, 6, 6},
		{"checkpoint of another key", func(l *memLog) {
			l.records, l.checkpoints = l.records[:20], l.checkpoints[:2]
			l.sign(t, other)
		}, audit.Untrusted, 13, 20},
		{"checkpoints out of order", func(l *memLog) { l.checkpoints[0], l.checkpoints[1] = l.checkpoints[1], l.checkpoints[0] }, audit.Misplaced, 6, 13},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := whole.clone()
			row.damage(l)
			_, err := audit.VerifyLog(t.Context(), l, audit.Options{Verifiers: []note.Verifier{verifier}})
			wantFault(t, err, row.kind, row.from, row.to)
		})
	}
	if _, err := audit.VerifyLog(t.Context(), whole, audit.Options{Verifiers: []note.Verifier{verifier}}); err != nil {
		t.Errorf("the untouched log fails: %v", err)
	}
}

// TestTimeReversed: a log that is signed, but was not written by Append.
func TestTimeReversed(t *testing.T) {
	signer, verifier := newKey(t, origin)
	l := newLog(t, signer)
	l.checkpoints = nil
	rebuild(t, l.editRecord(t, 9, `"at":"2026`, `"at":"2025`))
	l.sign(t, signer)
	_, err := audit.VerifyLog(t.Context(), l, audit.Options{Verifiers: []note.Verifier{verifier}})
	wantFault(t, err, audit.TimeReversed, 8, 10)
}

// lyingLog says that it has more records than it returns.
type lyingLog struct{ *memLog }

func (l lyingLog) Records(ctx context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	records, size, err := l.memLog.Records(ctx, from, limit)
	return records, size + 5, err
}

func TestLogLosesItsEnd(t *testing.T) {
	signer, verifier := newKey(t, origin)
	_, err := audit.VerifyLog(t.Context(), lyingLog{newLog(t, signer)}, audit.Options{Verifiers: []note.Verifier{verifier}})
	wantFault(t, err, audit.Truncated, 20, 25)
}

// growingLog grows, and signs, whenever it is read.
type growingLog struct {
	*memLog
	t      *testing.T
	signer note.Signer
	busy   bool
}

func (l *growingLog) step() {
	if l.busy {
		return
	}
	l.busy = true
	l.grow(l.t, entry(len(l.records)), entry(len(l.records)+1))
	l.sign(l.t, l.signer)
	l.busy = false
}

func (l *growingLog) Records(ctx context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	l.step()
	return l.memLog.Records(ctx, from, limit)
}

func (l *growingLog) Checkpoints(ctx context.Context, from uint64, limit int) ([][]byte, error) {
	l.step()
	return l.memLog.Checkpoints(ctx, from, limit)
}

func TestLogGrowsMeanwhile(t *testing.T) {
	signer, verifier := newKey(t, origin)
	l := &growingLog{memLog: newLog(t, signer), t: t, signer: signer}
	report, err := audit.VerifyLog(t.Context(), l, audit.Options{Verifiers: []note.Verifier{verifier}})
	if err != nil || report.Entries < 22 || report.Proven < 20 {
		t.Errorf("got %+v, %v", report, err)
	}
}

// brokenLog fails after some reads.
type brokenLog struct {
	*memLog
	left int
	err  error
}

func (l *brokenLog) Records(ctx context.Context, from uint64, limit int) ([][]byte, uint64, error) {
	if l.left--; l.left < 0 {
		return nil, 0, l.err
	}
	return l.memLog.Records(ctx, from, limit)
}

func TestOutageIsNoFault(t *testing.T) {
	signer, verifier := newKey(t, origin)
	outage := errors.New("disk unplugged")
	for left := range 2 {
		_, err := audit.VerifyLog(t.Context(), &brokenLog{newLog(t, signer), left, outage}, audit.Options{Verifiers: []note.Verifier{verifier}})
		if fault := new(audit.Fault); !errors.Is(err, outage) || errors.As(err, &fault) {
			t.Errorf("after %d reads: got %v, want the outage", left, err)
		}
	}
}

// mth is the Merkle tree hash as RFC 9162, section 2.1.1, defines it.
func mth(records [][]byte) audit.Hash {
	switch len(records) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, records[0]...))
	}
	k := 1
	for 2*k < len(records) {
		k *= 2
	}
	left, right := mth(records[:k]), mth(records[k:])
	return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
}

// TestLogProperties grows random logs in random batches: roots follow the RFC,
// proofs check and do not check for anything else, both verifications pass, and
// each finds a random alteration.
func TestLogProperties(t *testing.T) {
	signer, verifier := newKey(t, origin)
	options := audit.Options{Verifiers: []note.Verifier{verifier}}
	rapid.Check(t, func(rt *rapid.T) {
		l := &memLog{}
		var signed []audit.Checkpoint
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 12), 1, 12).Draw(rt, "batches") {
			var batch []audit.Entry
			for range n {
				batch = append(batch, entries().Draw(rt, "entry"))
			}
			l.grow(t, batch...)
			if len(signed) == 0 || int(signed[len(signed)-1].Size) < len(l.records) {
				signed = append(signed, l.sign(t, signer))
			}
		}
		for _, c := range signed {
			if want := mth(l.records[:c.Size]); c.Root != want {
				rt.Fatalf("the root of %d entries is %s, want %s", c.Size, c.Root, want)
			}
		}
		checkProofs(rt, l, signed)
		report, err := audit.VerifyLog(t.Context(), l, options)
		if err != nil || int(report.Proven) != len(l.records) || report.Checkpoints != len(signed) {
			rt.Fatalf("got %+v, %v", report, err)
		}
		b := export(t, l, signer.VerifierKey())
		if offline, err := audit.VerifyBundle(bytes.NewReader(b), options); err != nil || fmt.Sprint(offline) != fmt.Sprint(report) {
			rt.Fatalf("online  %+v\noffline %+v, %v", report, offline, err)
		}
		if len(l.records) == 0 {
			return
		}
		checkAlteration(rt, t, l, options)
	})
}

func checkProofs(rt *rapid.T, l *memLog, signed []audit.Checkpoint) {
	reader := audit.HashReader(context.Background(), l)
	newest := signed[len(signed)-1]
	for _, older := range signed {
		proof, err := audit.ProveConsistency(older.Size, newest.Size, reader)
		if err != nil {
			rt.Fatal(err)
		}
		if err := audit.CheckConsistency(proof, older, newest); err != nil {
			rt.Fatal(err)
		}
		older.Root[3] ^= 1
		if err := audit.CheckConsistency(proof, older, newest); !errors.Is(err, audit.ErrProof) {
			rt.Fatalf("another root of %d entries: got %v, want ErrProof", older.Size, err)
		}
	}
	for seq := range newest.Size {
		proof, err := audit.ProveInclusion(newest.Size, seq, reader)
		if err != nil {
			rt.Fatal(err)
		}
		if err := audit.CheckInclusion(proof, newest, seq, l.records[seq]); err != nil {
			rt.Fatal(err)
		}
		if err := audit.CheckInclusion(proof, newest, seq, append(bytes.Clone(l.records[seq]), ' ')); !errors.Is(err, audit.ErrProof) {
			rt.Fatalf("another record %d: got %v, want ErrProof", seq, err)
		}
	}
}

// checkAlteration alters one record, with as many of its hashes as a forger likes:
// the fault's range contains it.
func checkAlteration(rt *rapid.T, t *testing.T, l *memLog, options audit.Options) {
	forged := l.clone()
	n := rapid.IntRange(0, len(l.records)-1).Draw(rt, "altered")
	forged.records[n] = []byte(strings.Replace(string(forged.records[n]), `"outcome":"ok"`, `"outcome":"denied"`, 1))
	switch rapid.IntRange(0, 2).Draw(rt, "hashes") {
	case 1:
		forged.hashes[tlog.StoredHashIndex(0, int64(n))] = tlog.RecordHash(forged.records[n])
	case 2:
		rebuild(t, forged)
	}
	fault := new(audit.Fault)
	if _, err := audit.VerifyLog(t.Context(), forged, options); !errors.As(err, &fault) || fault.From > uint64(n) || fault.To <= uint64(n) {
		rt.Fatalf("entry %d was altered, got %v", n, err)
	}
}

// TestAppendReadsFewHashes: n entries cost at most 1+log₂(size) reads in one call.
func TestAppendReadsFewHashes(t *testing.T) {
	l := &memLog{}
	for size := 1; size < 2000; size += 97 {
		calls, reads := 0, 0
		counting := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			calls++
			reads += len(indexes)
			return hashReader(t, l).ReadHashes(indexes)
		})
		tail, err := audit.ReadTail(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		var batch []audit.Entry
		for range 97 {
			batch = append(batch, entry(0))
		}
		if _, err := audit.Append(tail, counting, batch...); err != nil {
			t.Fatal(err)
		}
		if calls > 1 || reads > 12 {
			t.Errorf("appending to %d entries took %d calls and %d hashes", tail.Size, calls, reads)
		}
		l.grow(t, batch...)
	}
}

func TestAppendRefuses(t *testing.T) {
	numbered, clocked, nameless := entry(0), entry(0), entry(0)
	numbered.Seq = 1
	clocked.Clock = start
	nameless.Action = ""
	for _, e := range []audit.Entry{numbered, clocked, nameless} {
		if _, err := audit.Append(audit.Tail{}, emptyLog(), entry(0), e); !errors.Is(err, audit.ErrEntry) || !strings.Contains(err.Error(), "entry 2 of 2") {
			t.Errorf("got %v, want ErrEntry for entry 2 of 2", err)
		}
	}
	boom := errors.New("boom")
	broken := tlog.HashReaderFunc(func([]int64) ([]tlog.Hash, error) { return nil, boom })
	if _, err := audit.Append(audit.Tail{Size: 5, At: start}, broken, entry(0)); !errors.Is(err, boom) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

// TestClockStepsBack: the time never runs backwards, and the clock's reading stays.
func TestClockStepsBack(t *testing.T) {
	l := &memLog{}
	late, early := entry(0), entry(0)
	late.At = start.Add(time.Hour)
	l.grow(t, late, early)
	l.grow(t, early)
	for n := 1; n < 3; n++ {
		e, err := audit.Decode(l.records[n])
		if err != nil || !e.At.Equal(late.At) || !e.Reading().Equal(start) {
			t.Errorf("entry %d has time %v and reading %v, %v", n, e.At, e.Reading(), err)
		}
	}
}

func TestReadTailOfADamagedLog(t *testing.T) {
	l := &memLog{}
	l.grow(t, entry(0), entry(1), entry(2))
	l.records = slices.Delete(l.records, 1, 2)
	if _, err := audit.ReadTail(t.Context(), l); !errors.Is(err, audit.ErrEntry) {
		t.Errorf("got %v, want ErrEntry", err)
	}
}
