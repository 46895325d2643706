package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// A bundle is a log in one file, for offline verification: lines of JSON, each
// in exactly one form, each ended by a line feed.
//
//	{"keyturn_audit_bundle":1,"origin":"NAME","keys":["VERIFIER KEY",…]}
//	{"entry":RECORD,"hashes":["HASH",…]}       one per entry, in order
//	{"checkpoint":"SIGNED NOTE"}               behind the last entry it covers
//	{"end":{"entries":N,"checkpoints":M}}
//
// The keys are those that signed the checkpoints, in the order of their first
// use. The hashes are the leaf hash of the record and the roots of the subtrees
// that it completes. The last line but one is the checkpoint that covers all
// entries. docs/reference/audit-bundle.md is the reference.
const bundleVersion = 1

// maxLine bounds a line of a bundle, in bytes.
const maxLine = MaxRecordSize + 8<<10

// ErrNoCheckpoint is returned by WriteBundle when there is nothing to export yet.
var ErrNoCheckpoint = errors.New("the audit log has no signed checkpoint yet; sign one first")

// The parts of a line that are not JSON of a struct.
const (
	entryHead      = `{"entry":`
	hashesHead     = `,"hashes":["`
	hashesBetween  = `","`
	hashesTail     = `"]}`
	checkpointHead = `{"checkpoint":`
	endHead        = `{"end":`
)

type bundleHeader struct {
	Version int      `json:"keyturn_audit_bundle"`
	Origin  string   `json:"origin"`
	Keys    []string `json:"keys"`
}

type bundleCheckpoint struct {
	Checkpoint string `json:"checkpoint"`
}

type bundleEnd struct {
	End bundleCounts `json:"end"`
}

type bundleCounts struct {
	Entries     uint64 `json:"entries"`
	Checkpoints uint64 `json:"checkpoints"`
}

// marshalLine returns the only form of a line, without its line feed.
func marshalLine(v any) ([]byte, error) {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// WriteBundle exports the log in source up to its last signed checkpoint, which
// it returns. verifierKeys are the keys that may have signed, in their text form.
// It streams; memory is bounded. What is wrong with entries and hashes is
// exported as it is: that is for verification to find.
//
// The error is ErrNoCheckpoint, wraps what OpenCheckpoint returns for a
// checkpoint that does not open, or comes from the source or from w.
func WriteBundle(ctx context.Context, w io.Writer, source Source, verifierKeys ...string) (Checkpoint, error) {
	last, header, err := bundleHead(ctx, source, verifierKeys)
	if err != nil {
		return Checkpoint{}, err
	}
	out := bundleWriter{w: bufio.NewWriterSize(w, 64<<10)}
	out.json(header)
	s := newLogStream(ctx, source, last.Size, last.Size)
	for out.err == nil {
		it, err := s.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Checkpoint{}, fmt.Errorf("export audit log: %w", err)
		}
		out.item(it)
	}
	out.json(bundleEnd{End: out.counts})
	if err := errors.Join(out.err, out.w.Flush()); err != nil {
		return Checkpoint{}, fmt.Errorf("write audit bundle: %w", err)
	}
	return last, nil
}

// bundleHead reads all checkpoints of source and returns the last one, and the
// header with the keys that signed them.
func bundleHead(ctx context.Context, source Source, verifierKeys []string) (Checkpoint, bundleHeader, error) {
	verifiers, byID, err := parseKeys(verifierKeys)
	if err != nil {
		return Checkpoint{}, bundleHeader{}, err
	}
	origin, err := originOf(verifiers)
	if err != nil {
		return Checkpoint{}, bundleHeader{}, err
	}
	header := bundleHeader{Version: bundleVersion, Origin: origin, Keys: []string{}}
	known := note.VerifierList(verifiers...)
	reader := checkpointReader{ctx: ctx, source: source, until: maxSize}
	var last Checkpoint
	for {
		signed, _, err := reader.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Checkpoint{}, bundleHeader{}, err
		}
		checkpoint, id, err := openCheckpoint(signed, known)
		if err != nil {
			return Checkpoint{}, bundleHeader{}, fmt.Errorf("export audit log, checkpoint after %d entries: %w", last.Size, err)
		}
		last = checkpoint
		if !slices.Contains(header.Keys, byID[id]) {
			header.Keys = append(header.Keys, byID[id])
		}
	}
	if len(header.Keys) == 0 {
		return Checkpoint{}, bundleHeader{}, ErrNoCheckpoint
	}
	return last, header, nil
}

// parseKeys parses verifier keys and returns them also by their IDs.
func parseKeys(keys []string) ([]note.Verifier, map[string]string, error) {
	verifiers := make([]note.Verifier, 0, len(keys))
	byID := make(map[string]string, len(keys))
	for _, text := range keys {
		v, err := ParseVerifier(text)
		if err != nil {
			return nil, nil, err
		}
		id := keyID(v.Name(), v.KeyHash())
		if _, twice := byID[id]; twice {
			return nil, nil, fmt.Errorf("%w: %s is given twice", ErrKey, id)
		}
		verifiers = append(verifiers, v)
		byID[id] = text
	}
	return verifiers, byID, nil
}

// bundleWriter writes lines until the first error.
type bundleWriter struct {
	w      *bufio.Writer
	line   []byte
	counts bundleCounts
	err    error
}

func (b *bundleWriter) write(line []byte) {
	if b.err != nil {
		return
	}
	if _, b.err = b.w.Write(line); b.err == nil {
		b.err = b.w.WriteByte('\n')
	}
}

func (b *bundleWriter) json(v any) {
	line, err := marshalLine(v)
	if err != nil && b.err == nil {
		b.err = err
	}
	b.write(line)
}

func (b *bundleWriter) item(it item) {
	if it.checkpoint {
		b.counts.Checkpoints++
		b.json(bundleCheckpoint{Checkpoint: string(it.signed)})
		return
	}
	b.counts.Entries++
	line := b.line[:0]
	line = append(line, entryHead...)
	line = append(line, it.record...)
	separator := hashesHead
	for _, hash := range it.hashes {
		line = append(line, separator...)
		line = hashEncoding.AppendEncode(line, hash[:])
		separator = hashesBetween
	}
	line = append(line, hashesTail...)
	b.line = line
	b.write(line)
}
