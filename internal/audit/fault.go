package audit

import (
	"fmt"
	"strings"
	"time"
)

// Kind says what is wrong with a log. The zero value is invalid.
type Kind uint8

// The kinds of fault.
const (
	// Malformed: a record, a checkpoint or a line of the bundle does not parse.
	Malformed Kind = iota + 1
	// Altered: a record does not match the leaf hash stored beside it.
	Altered
	// Rewritten: records and their leaf hashes agree, but not with the hashes above
	// them or with the signed root.
	Rewritten
	// HashAltered: the records are those that were signed, a stored hash is not.
	HashAltered
	// Missing: entries are absent, later ones are there.
	Missing
	// Truncated: the last entries are absent.
	Truncated
	// Reordered: an entry stands before one that precedes it.
	Reordered
	// Inserted: there is a second entry with a number that was taken.
	Inserted
	// Misplaced: a checkpoint stands where its size does not belong, for example
	// an old one at the end.
	Misplaced
	// Unsigned: no signed checkpoint covers the entries.
	Unsigned
	// BadSignature: the signature of a checkpoint does not verify.
	BadSignature
	// Untrusted: a checkpoint or a bundle names a key or a log that is not trusted.
	Untrusted
	// TimeReversed: the entries are those that were signed, but a time is earlier
	// than that of the entry before.
	TimeReversed
)

var kinds = [...]struct{ name, hint string }{
	0:            {"invalid", ""},
	Malformed:    {"malformed", "obtain the log again; if it stays so, compare with a backup"},
	Altered:      {"altered", "keep the log as evidence and compare the entry with a backup or an earlier bundle"},
	Rewritten:    {"rewritten", "keep the log as evidence and compare the range with a backup or an earlier bundle"},
	HashAltered:  {"hash-altered", "the entries are genuine; restore the hashes from a backup"},
	Missing:      {"missing", "keep the log as evidence and restore the entries from a backup or an earlier bundle"},
	Truncated:    {"truncated", "obtain the rest of the bundle, or restore the entries from a backup"},
	Reordered:    {"reordered", "obtain the log again; if it stays so, keep it as evidence"},
	Inserted:     {"inserted", "keep the log as evidence; the entry that a checkpoint covers is the genuine one"},
	Misplaced:    {"misplaced-checkpoint", "obtain the log again; if it stays so, keep it as evidence"},
	Unsigned:     {"unsigned", "let the server sign a checkpoint, then verify or export again"},
	BadSignature: {"bad-signature", "obtain the log again; if it stays so, keep it as evidence: somebody forged or damaged a checkpoint"},
	Untrusted:    {"untrusted", "make sure that you verify the right log, and give all its verifier keys, old ones included"},
	TimeReversed: {"time-reversed", "another program wrote to the log; find out which"},
}

// String returns the kind's name in lower case, "invalid" for the zero value.
func (k Kind) String() string {
	if int(k) >= len(kinds) {
		k = 0
	}
	return kinds[k].name
}

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Fault is the first thing wrong with a log. It implements error.
type Fault struct {
	Kind Kind `json:"kind"`
	// From and To bound the entries concerned: From ≤ Seq < To. They are equal when
	// no entry is.
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	// Line is the line of the bundle, from 1; 0 online.
	Line int `json:"line,omitempty"`
	// Proven is how many entries, from the first on, a signed checkpoint proves to
	// be as they were when it was signed.
	Proven uint64 `json:"proven"`
	// Problem says what was found.
	Problem string `json:"problem"`
}

// Hint says what to do next.
func (f *Fault) Hint() string {
	if int(f.Kind) >= len(kinds) {
		return ""
	}
	return kinds[f.Kind].hint
}

// Error says what is wrong and where, what is safe, and what to do next.
func (f *Fault) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "audit log is %s", f.Kind)
	if f.To > f.From {
		fmt.Fprintf(&b, " at %s", entriesText(f.From, f.To))
	}
	if f.Line > 0 {
		fmt.Fprintf(&b, ", line %d", f.Line)
	}
	fmt.Fprintf(&b, ": %s; ", f.Problem)
	if f.Proven > 0 {
		fmt.Fprintf(&b, "%s proven by a signed checkpoint", entriesText(0, f.Proven))
	} else {
		b.WriteString("no entry is proven")
	}
	if hint := f.Hint(); hint != "" {
		fmt.Fprintf(&b, "; %s", hint)
	}
	return b.String()
}

// entriesText names the entries from ≤ Seq < to.
func entriesText(from, to uint64) string {
	if to == from+1 {
		return fmt.Sprintf("entry %d", from)
	}
	return fmt.Sprintf("entries %d to %d", from, to-1)
}

// Report is what verification found out. When it failed, the report says how far
// it came.
type Report struct {
	Origin string `json:"origin"`
	// Keys are the IDs of the keys that signed, in the order of their first use.
	Keys []string `json:"keys"`
	// Trusted says that the verifiers came from the caller. Else they came from the
	// bundle itself, which then proves only that it was not altered afterwards by
	// somebody without the key, nor by accident.
	Trusted bool `json:"trusted"`
	// Entries is the number of entries checked, Proven how many of them a signed
	// checkpoint covers.
	Entries uint64 `json:"entries"`
	Proven  uint64 `json:"proven"`
	// Checkpoints is the number of signed checkpoints of the log that agree with its
	// entries, Kept that of the caller's own.
	Checkpoints int `json:"checkpoints"`
	Kept        int `json:"kept"`
	// Root is the root of the tree over the Proven entries.
	Root Hash `json:"root"`
	// First and Last are the times of the first and the last entry; zero when there
	// is none.
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	// ClockSteps counts entries whose writer's clock was behind (Entry.Clock).
	ClockSteps uint64 `json:"clock_steps"`
}
