package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
)

// The lines of the bundle of newLog: the header, entries 0 to 5, a checkpoint,
// 6 to 12, a checkpoint, 13 to 19, a checkpoint, the end.
func lineOf(entry int) int {
	switch {
	case entry < 6:
		return 1 + entry
	case entry < 13:
		return 2 + entry
	}
	return 3 + entry
}

const (
	firstCheckpoint = 7
	lastCheckpoint  = 23
	endLine         = 24
)

// wantFault checks that err is a fault of the kind for entries from ≤ seq < to.
func wantFault(t *testing.T, err error, kind audit.Kind, from, to uint64) {
	t.Helper()
	fault := new(audit.Fault)
	if !errors.As(err, &fault) {
		t.Fatalf("got %v, want a fault %v", err, kind)
	}
	if fault.Kind != kind || fault.From != from || fault.To != to {
		t.Errorf("got %v [%d,%d), want %v [%d,%d): %v", fault.Kind, fault.From, fault.To, kind, from, to, err)
	}
	if fault.Hint() == "" || !strings.Contains(err.Error(), kind.String()) {
		t.Errorf("the error %q does not name its kind or says no mend", err)
	}
}

// substitute replaces one text in a line and fails when it is not there.
func substitute(t *testing.T, line, old, with string) string {
	t.Helper()
	if !strings.Contains(line, old) {
		t.Fatalf("%q is not in %s", old, line)
	}
	return strings.Replace(line, old, with, 1)
}

// split returns the record and the hashes in the line of an entry.
func split(t *testing.T, line string) (string, []string) {
	t.Helper()
	record, rest, found := strings.Cut(strings.TrimPrefix(line, `{"entry":`), `,"hashes":["`)
	if !found {
		t.Fatalf("%s is not the line of an entry", line)
	}
	return record, strings.Split(strings.TrimSuffix(rest, `"]}`), `","`)
}

func join(record string, hashes []string) string {
	return `{"entry":` + record + `,"hashes":["` + strings.Join(hashes, `","`) + `"]}`
}

// relaxed returns the line of an entry with its record changed and the leaf hash
// made to match, as a forger would.
func relaxed(t *testing.T, line, old, with string) string {
	t.Helper()
	record, hashes := split(t, line)
	record = substitute(t, record, old, with)
	hashes[0] = tlog.RecordHash([]byte(record)).String()
	return join(record, hashes)
}

// rebuild gives l the hashes that fit its records, as a forger with access to the
// whole database, but without the key, would.
func rebuild(t testing.TB, l *memLog) *memLog {
	t.Helper()
	l.hashes = nil
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, index := range indexes {
			found = append(found, l.hashes[index])
		}
		return found, nil
	})
	for n, record := range l.records {
		stored, err := tlog.StoredHashes(int64(n), record, reader)
		if err != nil {
			t.Fatal(err)
		}
		l.hashes = append(l.hashes, stored...)
	}
	return l
}

// editRecord changes the text of record n.
func (l *memLog) editRecord(t *testing.T, n int, old, with string) *memLog {
	t.Helper()
	l.records[n] = []byte(substitute(t, string(l.records[n]), old, with))
	return l
}

// fields are changes of every field of entry 9.
var fields = map[string][2]string{
	"seq":          {`"seq":9`, `"seq":7`},
	"seq ahead":    {`"seq":9`, `"seq":11`},
	"at":           {`"at":"2026`, `"at":"2027`},
	"at earlier":   {`"at":"2026`, `"at":"2025`},
	"clock":        {`,"actor":`, `,"clock":"2026-11-23T00:00:00.000000Z","actor":`},
	"actor.id":     {`operator`, `somebody`},
	"actor.kind":   {`"kind":"user"`, `"kind":"agent"`},
	"action":       {`rotation.phase`, `rotation.pause`},
	"key":          {`prod/orders/db`, `prod/orders/dc`},
	"rotation":     {`"rotation":"0`, `"rotation":"1`},
	"event":        {`"event":10`, `"event":11`},
	"version":      {`"version":10`, `"version":1`},
	"from":         {`"from":"accepting",`, ``},
	"to":           {`"to":"presenting"`, `"to":"revoking"`},
	"target":       {`db2`, `db3`},
	"outcome":      {`"outcome":"ok"`, `"outcome":"denied"`},
	"reason":       {`all 12`, `all 13`},
	"detail":       {`"stage":"canary"`, `"stage":"rest"`},
	"detail added": {`"stage":"canary"`, `"stage":"canary","x":"y"`},
}

// TestAlteredFieldInBundle changes each field in the record alone: the entry is
// named exactly.
func TestAlteredFieldInBundle(t *testing.T) {
	signer, verifier := newKey(t, origin)
	lines := strings.SplitAfter(string(export(t, newLog(t, signer), signer.VerifierKey())), "\n")
	for name, change := range fields {
		t.Run(name, func(t *testing.T) {
			lines := slices.Clone(lines)
			lines[lineOf(9)] = substitute(t, lines[lineOf(9)], change[0], change[1])
			report, err := verifyLines(lines, audit.Options{Verifiers: []note.Verifier{verifier}})
			wantFault(t, err, audit.Altered, 9, 10)
			if report.Proven != 6 {
				t.Errorf("%d entries are proven, want 6", report.Proven)
			}
		})
	}
}

// TestRewrittenFieldInBundle changes each field together with every hash: the
// checkpoints bound the entry.
func TestRewrittenFieldInBundle(t *testing.T) {
	signer, verifier := newKey(t, origin)
	for name, change := range fields {
		if strings.HasPrefix(name, "seq") {
			continue // then the order tells; see TestTamperedBundle
		}
		t.Run(name, func(t *testing.T) {
			l := rebuild(t, newLog(t, signer).editRecord(t, 9, change[0], change[1]))
			_, err := audit.VerifyBundle(bytes.NewReader(export(t, l, signer.VerifierKey())), audit.Options{Verifiers: []note.Verifier{verifier}})
			wantFault(t, err, audit.Rewritten, 6, 13)
			_, err = audit.VerifyLog(t.Context(), l, audit.Options{Verifiers: []note.Verifier{verifier}})
			wantFault(t, err, audit.Rewritten, 6, 13)
		})
	}
}

func verifyLines(lines []string, options audit.Options) (audit.Report, error) {
	return audit.VerifyBundle(strings.NewReader(strings.Join(lines, "")), options)
}

func TestTamperedBundle(t *testing.T) {
	signer, verifier := newKey(t, origin)
	other, _ := newKey(t, origin)
	third, thirdVerifier := newKey(t, origin)
	l := newLog(t, signer)
	foreign := newLog(t, other)
	foreign = rebuild(t, foreign.editRecord(t, 3, "all 12", "all 99"))
	lines := strings.SplitAfter(string(export(t, l, signer.VerifierKey())), "\n")
	foreignLines := strings.SplitAfter(string(export(t, foreign, other.VerifierKey())), "\n")
	if len(lines) != endLine+2 {
		t.Fatalf("the bundle has %d lines", len(lines)-1)
	}
	at := func(entry int) *string { return &lines[lineOf(entry)] }
	type row struct {
		name     string
		change   func(lines []string) []string
		kind     audit.Kind
		from, to uint64
	}
	drop := func(from, to int) func([]string) []string {
		return func(l []string) []string { return slices.Delete(l, from, to) }
	}
	set := func(line int, text string) func([]string) []string {
		return func(l []string) []string {
			l[line] = strings.TrimSuffix(text, "\n") + "\n"
			return l
		}
	}
	recordOf9, hashesOf9 := split(t, strings.TrimSuffix(*at(9), "\n"))
	_, hashesOf10 := split(t, strings.TrimSuffix(*at(10), "\n"))
	for _, row := range []row{
		{"leaf hash altered", set(lineOf(9), join(recordOf9, []string{hashesOf10[0], hashesOf9[1]})), audit.HashAltered, 9, 10},
		{"inner hash altered", set(lineOf(9), join(recordOf9, []string{hashesOf9[0], hashesOf10[0]})), audit.HashAltered, 8, 10},
		{"inner hash dropped", set(lineOf(9), join(recordOf9, hashesOf9[:1])), audit.Malformed, 9, 10},
		{"record and leaf rewritten", set(lineOf(9), relaxed(t, strings.TrimSuffix(*at(9), "\n"), "all 12", "all 13")), audit.Rewritten, 8, 10},
		{"left of the pair rewritten", set(lineOf(8), relaxed(t, strings.TrimSuffix(*at(8), "\n"), "all 12", "all 13")), audit.Rewritten, 8, 10},
		{"after a checkpoint rewritten", set(lineOf(6), relaxed(t, strings.TrimSuffix(*at(6), "\n"), "all 12", "all 13")), audit.Rewritten, 6, 8},
		{"last of a checkpoint rewritten", set(lineOf(12), relaxed(t, strings.TrimSuffix(*at(12), "\n"), "all 12", "all 13")), audit.Rewritten, 6, 13},
		{"record does not parse", set(lineOf(9), relaxed(t, strings.TrimSuffix(*at(9), "\n"), `"seq":9`, `"seq": 9`)), audit.Malformed, 9, 10},
		{"seq and leaf rewritten", set(lineOf(9), relaxed(t, strings.TrimSuffix(*at(9), "\n"), `"seq":9`, `"seq":11`)), audit.Missing, 9, 10},
		{"one dropped", drop(lineOf(9), lineOf(9)+1), audit.Missing, 9, 10},
		{"several dropped", drop(lineOf(8), lineOf(11)), audit.Missing, 8, 11},
		{"first dropped", drop(lineOf(0), lineOf(1)), audit.Missing, 0, 1},
		{"last before a checkpoint dropped", drop(lineOf(12), lineOf(12)+1), audit.Missing, 12, 13},
		{"dropped across a checkpoint", drop(lineOf(12), lineOf(14)), audit.Missing, 12, 14},
		{"swapped", func(l []string) []string {
			l[lineOf(9)], l[lineOf(10)] = l[lineOf(10)], l[lineOf(9)]
			return l
		}, audit.Reordered, 9, 10},
		{"swapped across a checkpoint", func(l []string) []string {
			l[lineOf(12)], l[lineOf(13)] = l[lineOf(13)], l[lineOf(12)]
			return l
		}, audit.Reordered, 12, 13},
		{"moved to the end", func(l []string) []string {
			moved := l[lineOf(9)]
			l = slices.Insert(l, lastCheckpoint, moved)
			return slices.Delete(l, lineOf(9), lineOf(10))
		}, audit.Reordered, 9, 10},
		{"repeated", func(l []string) []string { return slices.Insert(l, lineOf(10), l[lineOf(9)]) }, audit.Inserted, 9, 10},
		{"old one inserted", func(l []string) []string { return slices.Insert(l, lineOf(10), l[lineOf(2)]) }, audit.Inserted, 2, 3},
		{"forged one inserted", func(l []string) []string {
			return slices.Insert(l, lineOf(9), relaxed(t, strings.TrimSuffix(l[lineOf(9)], "\n"), "all 12", "all 13")+"\n")
		}, audit.Inserted, 9, 10},
		{"appended behind the last checkpoint", func(l []string) []string {
			forged := substitute(t, recordOf9, `"seq":9`, `"seq":20`)
			forged = substitute(t, forged, "2026-11", "2026-12")
			l[endLine] = substitute(t, l[endLine], `"entries":20`, `"entries":21`)
			return slices.Insert(l, endLine, join(forged, []string{tlog.RecordHash([]byte(forged)).String()})+"\n")
		}, audit.Unsigned, 20, 21},
		{"cut at a line", func(l []string) []string { return l[:lineOf(9)] }, audit.Truncated, 9, 9},
		{"cut in a line", func(l []string) []string { return append(l[:lineOf(9)], l[lineOf(9)][:40]) }, audit.Truncated, 9, 9},
		{"cut before the end", func(l []string) []string { return l[:endLine] }, audit.Truncated, 20, 20},
		{"last line feed cut", func(l []string) []string { l[endLine] = strings.TrimSpace(l[endLine]); return l }, audit.Truncated, 20, 20},
		{"last entries dropped", drop(lineOf(17), lineOf(19)+1), audit.Truncated, 17, 20},
		{"last entries and checkpoint dropped", drop(lineOf(13), lastCheckpoint+1), audit.Truncated, 13, 20},
		{"empty", func([]string) []string { return nil }, audit.Truncated, 0, 0},
		{"old checkpoint at the end", func(l []string) []string { l[lastCheckpoint] = l[firstCheckpoint]; return l }, audit.Misplaced, 6, 20},
		{"checkpoint repeated", func(l []string) []string { return slices.Insert(l, lastCheckpoint, l[lastCheckpoint]) }, audit.Misplaced, 20, 20},
		{"checkpoint too early", func(l []string) []string {
			l[lineOf(5)], l[firstCheckpoint] = l[firstCheckpoint], l[lineOf(5)]
			return l
		}, audit.Misplaced, 5, 5},
		{"checkpoint too late", func(l []string) []string {
			l[lineOf(13)], l[lineOf(13)-1] = l[lineOf(13)-1], l[lineOf(13)]
			return l
		}, audit.Misplaced, 13, 14},
		{"last checkpoint dropped", func(l []string) []string {
			l[endLine] = substitute(t, l[endLine], `"checkpoints":3`, `"checkpoints":2`)
			return slices.Delete(l, lastCheckpoint, lastCheckpoint+1)
		}, audit.Unsigned, 13, 20},
		{"all checkpoints dropped", func(l []string) []string {
			l[endLine] = substitute(t, l[endLine], `"checkpoints":3`, `"checkpoints":0`)
			return slices.DeleteFunc(l, func(line string) bool { return strings.HasPrefix(line, `{"checkpoint"`) })
		}, audit.Unsigned, 0, 20},
		{"checkpoint dropped", drop(firstCheckpoint, firstCheckpoint+1), audit.Malformed, 20, 20},
		{"signed size altered", func(l []string) []string {
			l[lineOf(13)-1] = substitute(t, l[lineOf(13)-1], `\n13\n`, `\n12\n`)
			return l
		}, audit.BadSignature, 6, 13},
		{"signature of another checkpoint", func(l []string) []string {
			head, _, _ := strings.Cut(l[lastCheckpoint], `\n\n`)
			_, tail, _ := strings.Cut(l[firstCheckpoint], `\n\n`)
			l[lastCheckpoint] = head + `\n\n` + tail
			return l
		}, audit.BadSignature, 13, 20},
		{"checkpoint of another key", func(l []string) []string { l[lastCheckpoint] = foreignLines[lastCheckpoint]; return l }, audit.Untrusted, 13, 20},
		{"another log, signed by another key", func([]string) []string { return foreignLines }, audit.Untrusted, 0, 0},
		{"spliced with another log", func(l []string) []string {
			return append(l[:lineOf(13)], foreignLines[lineOf(13):]...)
		}, audit.Rewritten, 13, 16},
		{"entries of another log, checkpoints of this", func(l []string) []string {
			for i := range l {
				if strings.HasPrefix(l[i], `{"entry"`) {
					l[i] = foreignLines[i]
				}
			}
			return l
		}, audit.Rewritten, 0, 6},
		{"count of entries", set(endLine, `{"end":{"entries":19,"checkpoints":3}}`), audit.Malformed, 20, 20},
		{"count too large", set(endLine, `{"end":{"entries":25,"checkpoints":3}}`), audit.Truncated, 20, 25},
		{"data behind the end", func(l []string) []string { return append(l, "\n") }, audit.Malformed, 20, 20},
		{"unknown line", func(l []string) []string { return slices.Insert(l, lineOf(9), "{}\n") }, audit.Malformed, 9, 9},
		{"empty line", func(l []string) []string { return slices.Insert(l, lineOf(9), "\n") }, audit.Malformed, 9, 9},
		{"endless line", func(l []string) []string {
			return slices.Insert(l, lineOf(9), strings.Repeat("x", 2*audit.MaxRecordSize))
		}, audit.Malformed, 9, 9},
		{"space in the header", func(l []string) []string { l[0] = substitute(t, l[0], `:1,`, `: 1,`); return l }, audit.Malformed, 0, 0},
		{"version", func(l []string) []string { l[0] = substitute(t, l[0], `:1,`, `:2,`); return l }, audit.Malformed, 0, 0},
		{"origin", func(l []string) []string { l[0] = substitute(t, l[0], `"origin":"k`, `"origin":"K`); return l }, audit.Malformed, 0, 0},
		{"key that signed nothing", func(l []string) []string {
			l[0] = substitute(t, l[0], `"]`, `","`+third.VerifierKey()+`"]`)
			return l
		}, audit.Malformed, 20, 20},
		{"no keys", func(l []string) []string {
			l[0] = substitute(t, l[0], `"`+signer.VerifierKey()+`"`, ``)
			return l
		}, audit.Malformed, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			changed := row.change(slices.Clone(lines))
			_, err := verifyLines(changed, audit.Options{Verifiers: []note.Verifier{verifier, thirdVerifier}})
			wantFault(t, err, row.kind, row.from, row.to)
		})
	}
	if _, err := verifyLines(lines, audit.Options{Verifiers: []note.Verifier{verifier}}); err != nil {
		t.Errorf("the untouched bundle fails: %v", err)
	}
}

// TestWrongTrust: the bundle is whole, the trusted keys are others.
func TestWrongTrust(t *testing.T) {
	signer, _ := newKey(t, origin)
	_, other := newKey(t, origin)
	_, elsewhere := newKey(t, "elsewhere.example.org/audit")
	b := export(t, newLog(t, signer), signer.VerifierKey())
	for _, v := range []note.Verifier{other, elsewhere} {
		_, err := audit.VerifyBundle(bytes.NewReader(b), audit.Options{Verifiers: []note.Verifier{v}})
		wantFault(t, err, audit.Untrusted, 0, 0)
	}
	_, err := audit.VerifyBundle(bytes.NewReader(b), audit.Options{Verifiers: []note.Verifier{other, elsewhere}})
	if !errors.Is(err, audit.ErrKey) {
		t.Errorf("keys of two logs: got %v, want ErrKey", err)
	}
}

// TestKindsAreNamed: every kind has a name of its own and a hint.
func TestKindsAreNamed(t *testing.T) {
	seen := map[string]bool{audit.Kind(0).String(): true}
	for kind := audit.Malformed; kind <= audit.TimeReversed; kind++ {
		name, err := kind.MarshalText()
		if err != nil || seen[string(name)] || (&audit.Fault{Kind: kind}).Hint() == "" {
			t.Errorf("kind %d is called %q, %v", kind, name, err)
		}
		seen[string(name)] = true
	}
	if beyond := audit.TimeReversed + 1; beyond.String() != "invalid" {
		t.Errorf("a kind beyond the last is called %q", beyond)
	}
}

// TestKeptCheckpoints: what only an auditor's own checkpoints reveal.
func TestKeptCheckpoints(t *testing.T) {
	signer, verifier := newKey(t, origin)
	l := newLog(t, signer)
	kept := slices.Clone(l.checkpoints)
	options := audit.Options{Verifiers: []note.Verifier{verifier}, Kept: [][]byte{kept[2], kept[0]}}

	report, err := audit.VerifyBundle(bytes.NewReader(export(t, l, signer.VerifierKey())), options)
	if err != nil || report.Kept != 2 {
		t.Errorf("got %+v, %v, want two kept checkpoints to agree", report, err)
	}

	empty := &memLog{}
	empty.sign(t, signer)
	first := audit.Options{Verifiers: options.Verifiers, Kept: append(empty.checkpoints, kept...)}
	if report, err := audit.VerifyLog(t.Context(), l, first); err != nil || report.Kept != 4 {
		t.Errorf("kept from the empty log on: got %+v, %v", report, err)
	}

	// The holder of the key rewrites history and signs it anew.
	forged := rebuild(t, l.clone().editRecord(t, 9, "all 12", "all 13"))
	forged.checkpoints = nil
	forged.sign(t, signer)
	b := export(t, forged, signer.VerifierKey())
	if _, err := audit.VerifyBundle(bytes.NewReader(b), audit.Options{Verifiers: options.Verifiers}); err != nil {
		t.Errorf("without kept checkpoints the forgery cannot be seen, yet: %v", err)
	}
	_, err = audit.VerifyBundle(bytes.NewReader(b), options)
	wantFault(t, err, audit.Rewritten, 6, 20)
	_, err = audit.VerifyLog(t.Context(), forged, options)
	wantFault(t, err, audit.Rewritten, 6, 20)

	// The holder of the key cuts the end off and signs it anew.
	cut := l.clone()
	cut.records = cut.records[:15]
	cut = rebuild(t, cut)
	cut.checkpoints = cut.checkpoints[:1]
	cut.sign(t, signer)
	_, err = audit.VerifyBundle(bytes.NewReader(export(t, cut, signer.VerifierKey())), options)
	wantFault(t, err, audit.Truncated, 15, 20)
	_, err = audit.VerifyLog(t.Context(), cut, options)
	wantFault(t, err, audit.Truncated, 15, 20)

	// Everything is deleted.
	_, err = audit.VerifyLog(t.Context(), &memLog{}, options)
	wantFault(t, err, audit.Truncated, 0, 20)

	other, _ := newKey(t, origin)
	foreign := newLog(t, other)
	_, err = audit.VerifyLog(t.Context(), l, audit.Options{Verifiers: options.Verifiers, Kept: foreign.checkpoints})
	if !errors.Is(err, audit.ErrUntrusted) {
		t.Errorf("a kept checkpoint of an unknown key: got %v, want ErrUntrusted", err)
	}
}

// TestUntrustedBundle: without keys of the auditor's own, a bundle proves itself
// only, and the report says so.
func TestUntrustedBundle(t *testing.T) {
	signer, _ := newKey(t, origin)
	report, err := audit.VerifyBundle(bytes.NewReader(export(t, newLog(t, signer), signer.VerifierKey())), audit.Options{})
	if err != nil || report.Trusted {
		t.Errorf("got %+v, %v", report, err)
	}
}

// TestEveryByteCounts changes every byte of a bundle in several ways, and removes
// and doubles it: each is a fault.
func TestEveryByteCounts(t *testing.T) {
	signer, verifier := newKey(t, origin)
	second, secondVerifier := newKey(t, origin)
	small := func(i int) audit.Entry {
		e := entry(i)
		return audit.Entry{At: e.At, Actor: e.Actor, Action: e.Action, Outcome: e.Outcome, Detail: map[string]string{"n": "1"}}
	}
	l := &memLog{}
	l.grow(t, small(0), small(2))
	l.sign(t, signer)
	l.grow(t, small(1))
	l.sign(t, second)
	b := export(t, l, signer.VerifierKey(), second.VerifierKey())
	trusted := audit.Options{Verifiers: []note.Verifier{verifier, secondVerifier}}
	if _, err := audit.VerifyBundle(bytes.NewReader(b), trusted); err != nil {
		t.Fatal(err)
	}
	check := func(options audit.Options, changed []byte, what string, i int) {
		if bytes.Equal(changed, b) {
			return
		}
		fault := new(audit.Fault)
		if _, err := audit.VerifyBundle(bytes.NewReader(changed), options); !errors.As(err, &fault) {
			t.Fatalf("byte %d %q %s: got %v, want a fault", i, b[i], what, err)
		}
	}
	for i := range b {
		for _, c := range []byte{b[i] ^ 0x20, b[i] + 1, ' ', '\n'} {
			changed := bytes.Clone(b)
			changed[i] = c
			check(trusted, changed, fmt.Sprintf("becomes %q", c), i)
		}
		check(trusted, slices.Delete(bytes.Clone(b), i, i+1), "is removed", i)
		check(trusted, slices.Insert(bytes.Clone(b), i, b[i]), "is doubled", i)
		check(trusted, b[:i], "ends it", i)
		changed := bytes.Clone(b)
		changed[i] ^= 1
		check(audit.Options{}, changed, "changes, without trusted keys,", i)
	}
}

// FuzzVerifyBundle: a bundle that is accepted under a trusted key, and against the
// last checkpoint, contains exactly the entries of the log.
func FuzzVerifyBundle(f *testing.F) {
	signer, verifier := newKey(f, origin)
	l := newLog(f, signer)
	b := export(f, l, signer.VerifierKey())
	f.Add(b, uint(0), []byte{})
	f.Add(b, uint(200), []byte("x"))
	f.Add(b[:len(b)/2], uint(0), []byte{})
	f.Add([]byte{}, uint(0), b)
	options := audit.Options{Verifiers: []note.Verifier{verifier}, Kept: l.checkpoints[2:]}
	f.Fuzz(func(t *testing.T, input []byte, at uint, patch []byte) {
		// Keys are new in every process: start from today's bundle as well as from the input.
		for _, base := range [][]byte{input, b} {
			changed := bytes.Clone(base)
			if len(changed) > 0 {
				i := int(at % uint(len(changed)))
				changed = append(changed[:i:i], append(bytes.Clone(patch), changed[min(len(changed), i+len(patch)):]...)...)
			}
			var seen [][]byte
			options := options
			options.Visit = func(e audit.Entry) error {
				record, err := audit.Encode(e)
				seen = append(seen, record)
				return err
			}
			_, err := audit.VerifyBundle(bytes.NewReader(changed), options)
			if fault := new(audit.Fault); err != nil && !errors.As(err, &fault) && !errors.Is(err, audit.ErrKey) {
				t.Errorf("the error %v is no fault", err)
			}
			if err == nil && !slices.EqualFunc(seen, l.records, bytes.Equal) {
				t.Errorf("a bundle with other entries was accepted:\n%s", changed)
			}
		}
	})
}
