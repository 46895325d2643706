package audit

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// hashEncoding is the only form of a hash in a bundle.
var hashEncoding = base64.StdEncoding.Strict()

// VerifyBundle checks a bundle that WriteBundle wrote: its form, every record
// against its hashes, every signed checkpoint, and those the caller kept. It
// needs nothing but the bundle and the verifier keys, which must come to the
// auditor by another way than the bundle. It streams; memory is bounded.
//
// The error is a *Fault when something is wrong with the bundle; else it wraps
// ErrKey, or comes from r, from a kept checkpoint or from Visit.
func VerifyBundle(r io.Reader, options Options) (Report, error) {
	s := &bundleStream{r: bufio.NewReaderSize(r, maxLine)}
	header, own, err := s.header()
	if err != nil {
		return Report{}, err
	}
	verifiers := own
	if len(options.Verifiers) > 0 {
		trusted, err := originOf(options.Verifiers)
		if err != nil {
			return Report{}, err
		}
		if fault := checkTrust(header.Origin, trusted, own, options.Verifiers); fault != nil {
			return Report{Origin: header.Origin, Trusted: true}, fault
		}
		verifiers = options.Verifiers
	}
	c, err := newChecker(header.Origin, verifiers, options)
	if err != nil {
		return Report{Origin: header.Origin}, err
	}
	report, err := c.run(s)
	if err != nil {
		return report, err
	}
	return report, s.complete(own, report, c.signed)
}

// checkTrust reports a bundle of another log, or with a key that is not trusted.
func checkTrust(origin, trusted string, have, want []note.Verifier) *Fault {
	if origin != trusted {
		return &Fault{Kind: Untrusted, Line: 1, Problem: fmt.Sprintf("the bundle is of log %q, the trusted keys are of %q", origin, trusted)}
	}
	for _, v := range have {
		known := slices.ContainsFunc(want, func(w note.Verifier) bool { return w.KeyHash() == v.KeyHash() })
		if !known {
			return &Fault{Kind: Untrusted, Line: 1, Problem: fmt.Sprintf("key %s in the bundle is not among the trusted ones", keyID(v.Name(), v.KeyHash()))}
		}
	}
	return nil
}

// bundleStream reads a bundle as a stream.
type bundleStream struct {
	r      *bufio.Reader
	line   int
	counts bundleCounts
	hashes []Hash
}

// read returns the next line without its line feed.
func (s *bundleStream) read() ([]byte, error) {
	line, err := s.r.ReadSlice('\n')
	s.line++
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, s.malformed("it is longer than %d bytes", maxLine)
	case errors.Is(err, io.EOF):
		from := s.counts.Entries
		return nil, &Fault{Kind: Truncated, From: from, To: from, Line: s.line, Problem: fmt.Sprintf("the bundle ends after %d entries without its last line", from)}
	case err != nil:
		return nil, fmt.Errorf("read audit bundle: %w", err)
	}
	return line[:len(line)-1], nil
}

func (s *bundleStream) malformed(format string, args ...any) *Fault {
	n := s.counts.Entries
	return &Fault{Kind: Malformed, From: n, To: n, Line: s.line, Problem: fmt.Sprintf(format, args...)}
}

// decode reads a line of JSON into v, a pointer, and refuses any but its only form.
func (s *bundleStream) decode(line []byte, v any, what string) error {
	if err := json.Unmarshal(line, v); err != nil {
		return s.malformed("the %s does not parse: %v", what, err)
	}
	only, err := marshalLine(v)
	if err != nil || !bytes.Equal(only, line) {
		return s.malformed("the %s is not in its only form", what)
	}
	return nil
}

func (s *bundleStream) header() (bundleHeader, []note.Verifier, error) {
	var header bundleHeader
	line, err := s.read()
	if err != nil {
		return header, nil, err
	}
	if err := s.decode(line, &header, "header"); err != nil {
		return header, nil, err
	}
	if header.Version != bundleVersion {
		return header, nil, s.malformed("version %d of the format is not known, only %d; use a newer keyturn", header.Version, bundleVersion)
	}
	verifiers, _, err := parseKeys(header.Keys)
	if err != nil {
		return header, nil, s.malformed("the header's keys: %v", err)
	}
	origin, err := originOf(verifiers)
	if err != nil || origin != header.Origin {
		return header, nil, s.malformed("the header's keys are not keys of log %q", header.Origin)
	}
	return header, verifiers, nil
}

// next implements stream.
func (s *bundleStream) next() (item, error) {
	line, err := s.read()
	if err != nil {
		return item{}, err
	}
	switch {
	case bytes.HasPrefix(line, []byte(entryHead)):
		return s.entry(line)
	case bytes.HasPrefix(line, []byte(checkpointHead)):
		var c bundleCheckpoint
		if err := s.decode(line, &c, "checkpoint"); err != nil {
			return item{}, err
		}
		s.counts.Checkpoints++
		return item{checkpoint: true, signed: []byte(c.Checkpoint), line: s.line}, nil
	case bytes.HasPrefix(line, []byte(endHead)):
		return item{}, s.end(line)
	}
	return item{}, s.malformed("it is neither an entry nor a checkpoint nor the end")
}

// entry splits a line into the record and its hashes.
func (s *bundleStream) entry(line []byte) (item, error) {
	// No hash contains a quotation mark: the last place where hashes begin is the one.
	at := bytes.LastIndex(line, []byte(hashesHead))
	if at < 0 || !bytes.HasSuffix(line, []byte(hashesTail)) {
		return item{}, s.malformed("the entry has no hashes")
	}
	record := line[len(entryHead):at]
	text := line[at+len(hashesHead) : len(line)-len(hashesTail)]
	s.hashes = s.hashes[:0]
	for {
		var hash Hash
		one, rest, more := bytes.Cut(text, []byte(hashesBetween))
		if !decodeHash(&hash, one) {
			return item{}, s.malformed("hash %d of the entry is not a hash", len(s.hashes)+1)
		}
		s.hashes = append(s.hashes, hash)
		if !more {
			break
		}
		text = rest
	}
	s.counts.Entries++
	return item{record: record, hashes: s.hashes, line: s.line}, nil
}

// decodeHash reads the only form of a hash.
func decodeHash(hash *Hash, text []byte) bool {
	var buf [tlog.HashSize + 1]byte // the decoder writes whole groups of three bytes
	if len(text) != hashEncoding.EncodedLen(tlog.HashSize) {
		return false
	}
	n, err := hashEncoding.Decode(buf[:], text)
	copy(hash[:], buf[:])
	return err == nil && n == tlog.HashSize
}

// end checks the last line and that nothing follows. It returns io.EOF when all is well.
func (s *bundleStream) end(line []byte) error {
	var end bundleEnd
	if err := s.decode(line, &end, "end"); err != nil {
		return err
	}
	if have := s.counts; end.End != have {
		kind := Malformed
		to := have.Entries
		if end.End.Entries > have.Entries && end.End.Entries <= maxSize {
			kind, to = Truncated, end.End.Entries
		}
		return &Fault{
			Kind: kind, From: have.Entries, To: to, Line: s.line,
			Problem: fmt.Sprintf("the end counts %d entries and %d checkpoints, the bundle has %d and %d", end.End.Entries, end.End.Checkpoints, have.Entries, have.Checkpoints),
		}
	}
	if _, err := s.r.Peek(1); err == nil {
		s.line++
		return s.malformed("data after the end")
	} else if !errors.Is(err, io.EOF) {
		return fmt.Errorf("read audit bundle: %w", err)
	}
	return io.EOF
}

// leaf implements stream: a record in a bundle carries its hashes with it.
func (*bundleStream) leaf(it item, _ uint64) (Hash, error) { return it.hashes[0], nil }

// complete checks what must hold for a whole bundle that is well otherwise.
func (s *bundleStream) complete(keys []note.Verifier, report Report, signed uint64) error {
	if report.Checkpoints == 0 || signed < report.Entries {
		return &Fault{
			Kind: Unsigned, From: signed, To: report.Entries, Line: s.line, Proven: report.Proven,
			Problem: fmt.Sprintf("the last signed checkpoint covers %d of %d entries", signed, report.Entries),
		}
	}
	listed := make([]string, 0, len(keys))
	for _, v := range keys {
		listed = append(listed, keyID(v.Name(), v.KeyHash()))
	}
	if !slices.Equal(listed, report.Keys) {
		return &Fault{
			Kind: Malformed, From: report.Entries, To: report.Entries, Line: 1, Proven: report.Proven,
			Problem: fmt.Sprintf("the header lists the keys %s, the checkpoints are signed by %s", strings.Join(listed, ", "), strings.Join(report.Keys, ", ")),
		}
	}
	return nil
}
