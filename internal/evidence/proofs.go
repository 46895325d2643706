package evidence

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
)

// Checkpoint is the signed state of the log against which a pack proves its entries.
type Checkpoint struct {
	// Signed is the signed note, Keys the verifier keys of the log by its own word.
	Signed string   `json:"checkpoint"`
	Keys   []string `json:"keys"`
}

// proofLine is one line of Proofs.
type proofLine struct {
	Seq   uint64      `json:"seq"`
	Proof audit.Proof `json:"proof"`
}

// Scratch keeps the hashes of a log's tree while it is read: 64 bytes for each entry.
type Scratch interface {
	io.Writer
	io.ReaderAt
}

// Prove writes a line for each record of a bundle that concerns the subject: the proof
// that it is in the tree of the bundle's last checkpoint, which it returns. The bundle
// is not verified: a proof that proves nothing is found by CheckProofs.
func Prove(bundle io.Reader, subject *Subject, scratch Scratch, proofs io.Writer) (Checkpoint, error) {
	var last Checkpoint
	var seqs []uint64
	size := uint64(0)
	hashes := bufio.NewWriter(scratch)
	lines := bufio.NewScanner(bundle)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		var line struct {
			Keys       []string        `json:"keys"`
			Checkpoint string          `json:"checkpoint"`
			Entry      json.RawMessage `json:"entry"`
			Hashes     []tlog.Hash     `json:"hashes"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return last, fmt.Errorf("%w: %w", ErrLog, err)
		}
		if line.Keys != nil {
			last.Keys = line.Keys
		}
		if line.Checkpoint != "" {
			last.Signed = line.Checkpoint
		}
		if line.Entry == nil {
			continue
		}
		entry, err := audit.Decode(line.Entry)
		if err != nil {
			return last, fmt.Errorf("%w: %w", ErrLog, err)
		}
		for i := range line.Hashes {
			if _, err := hashes.Write(line.Hashes[i][:]); err != nil {
				return last, err
			}
		}
		if subject.Concerns(&entry) {
			seqs = append(seqs, size)
		}
		size++
	}
	if err := errors.Join(lines.Err(), hashes.Flush()); err != nil {
		return last, fmt.Errorf("%w: %w", ErrLog, err)
	}
	out := bufio.NewWriter(proofs)
	encoder := json.NewEncoder(out)
	for _, seq := range seqs {
		proof, err := audit.ProveInclusion(size, seq, readHashes(scratch))
		if err != nil {
			return last, err
		}
		if err := encoder.Encode(proofLine{Seq: seq, Proof: proof}); err != nil {
			return last, err
		}
	}
	return last, out.Flush()
}

// readHashes reads hashes by their storage index, in which order they were written.
func readHashes(from io.ReaderAt) tlog.HashReaderFunc {
	return func(indexes []int64) ([]tlog.Hash, error) {
		list := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			if _, err := from.ReadAt(list[i][:], index*tlog.HashSize); err != nil {
				return nil, fmt.Errorf("hash %d of the log: %w", index, err)
			}
		}
		return list, nil
	}
}

// maxCheckpoint bounds the file of the checkpoint, in bytes.
const maxCheckpoint = 64 << 10

// Checkpoint reads the checkpoint of a pack; its signature is not looked at.
func (p *Pack) Checkpoint() (Checkpoint, error) {
	var c Checkpoint
	r, err := p.Open(CheckpointFile)
	if err != nil {
		return c, err
	}
	defer r.Close()
	decoder := json.NewDecoder(io.LimitReader(r, maxCheckpoint))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return c, fmt.Errorf("%w: %s: %w", ErrPack, CheckpointFile, err)
	}
	return c, nil
}

var errProof = errors.New("no proof")

// CheckProofs checks that every entry is proven to be in the log whose checkpoint the
// pack has, signed by one of the verifiers, and that each concerns the subject. It
// returns the checkpoint.
func (p *Pack) CheckProofs(verifiers ...note.Verifier) (audit.Checkpoint, []Fault, error) {
	stored, err := p.Checkpoint()
	if err != nil {
		return audit.Checkpoint{}, nil, err
	}
	checkpoint, err := audit.OpenCheckpoint([]byte(stored.Signed), verifiers...)
	if err != nil {
		return checkpoint, []Fault{{File: CheckpointFile, Problem: err.Error()}}, nil
	}
	file, err := p.Open(Proofs)
	if err != nil {
		return checkpoint, nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	before := int64(-1)
	err = p.entries(func(raw []byte, entry *audit.Entry) error {
		var line proofLine
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &line) != nil || line.Seq != entry.Seq {
			return fmt.Errorf("%w: that of entry %d is not where it belongs", errProof, entry.Seq)
		}
		if int64(entry.Seq) <= before || !p.Subject.Concerns(entry) {
			return fmt.Errorf("%w: entry %d is twice in the pack, out of order, or of no concern", errProof, entry.Seq)
		}
		before = int64(entry.Seq)
		if err := audit.CheckInclusion(line.Proof, checkpoint, entry.Seq, raw); err != nil {
			return fmt.Errorf("%w: %w", errProof, err)
		}
		return nil
	})
	switch {
	case errors.Is(err, errProof), errors.Is(err, ErrLog):
		return checkpoint, []Fault{{File: Proofs, Problem: err.Error()}}, nil
	case err != nil:
		return checkpoint, nil, err
	case lines.Scan():
		return checkpoint, []Fault{{File: Proofs, Problem: "it goes on behind the last entry"}}, nil
	}
	return checkpoint, nil, nil
}

// entries calls visit for each record that the pack lists.
func (p *Pack) entries(visit func(raw []byte, entry *audit.Entry) error) error {
	listed, err := p.Open(Entries)
	if err != nil {
		return err
	}
	defer listed.Close()
	lines := bufio.NewScanner(listed)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		raw := bytes.Clone(lines.Bytes())
		entry, err := audit.Decode(raw)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrLog, Entries, err)
		}
		if err := visit(raw, &entry); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrLog, Entries, err)
	}
	return nil
}
