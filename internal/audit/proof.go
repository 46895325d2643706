package audit

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrProof is wrapped by every error of a proof that does not prove its claim,
// or that was asked for entries that do not exist.
var ErrProof = errors.New("invalid audit proof")

// Proof is a list of hashes, at most 1+log₂(size) of them (RFC 9162, sections
// 2.1.3 and 2.1.4).
type Proof []Hash

// ProveInclusion returns the proof that entry seq is in the tree of the first
// size entries.
func ProveInclusion(size, seq uint64, hashes tlog.HashReader) (Proof, error) {
	if size > maxSize || seq >= size {
		return nil, fmt.Errorf("%w: there is no entry %d among the first %d", ErrProof, seq, size)
	}
	proof, err := tlog.ProveRecord(int64(size), int64(seq), hashes)
	if err != nil {
		return nil, fmt.Errorf("prove audit entry %d: %w", seq, err)
	}
	return Proof(proof), nil
}

// CheckInclusion reports whether proof shows that record is entry seq of the log
// that checkpoint describes. The error wraps ErrProof.
func CheckInclusion(proof Proof, checkpoint Checkpoint, seq uint64, record []byte) error {
	if checkpoint.Size > maxSize || seq >= checkpoint.Size {
		return fmt.Errorf("%w: checkpoint %d does not cover entry %d", ErrProof, checkpoint.Size, seq)
	}
	err := tlog.CheckRecord(tlog.RecordProof(proof), int64(checkpoint.Size), checkpoint.Root, int64(seq), tlog.RecordHash(record))
	if err != nil {
		return fmt.Errorf("%w: the record is not entry %d of checkpoint %d: %w", ErrProof, seq, checkpoint.Size, err)
	}
	return nil
}

// ProveConsistency returns the proof that the tree of the first older entries is
// a prefix of the tree of the first newer entries. It is empty when older is 0 or
// equals newer.
func ProveConsistency(older, newer uint64, hashes tlog.HashReader) (Proof, error) {
	if newer > maxSize || older > newer {
		return nil, fmt.Errorf("%w: a log of %d entries does not grow into one of %d", ErrProof, older, newer)
	}
	if older == 0 {
		return Proof{}, nil
	}
	proof, err := tlog.ProveTree(int64(newer), int64(older), hashes)
	if err != nil {
		return nil, fmt.Errorf("prove that audit log %d extends %d: %w", newer, older, err)
	}
	return Proof(proof), nil
}

// CheckConsistency reports whether proof shows that the log of newer begins with
// the log of older. The error wraps ErrProof.
func CheckConsistency(proof Proof, older, newer Checkpoint) error {
	if older.Origin != newer.Origin {
		return fmt.Errorf("%w: the checkpoints belong to two logs, %q and %q", ErrProof, older.Origin, newer.Origin)
	}
	if newer.Size > maxSize || older.Size > newer.Size {
		return fmt.Errorf("%w: a log of %d entries does not grow into one of %d", ErrProof, older.Size, newer.Size)
	}
	if older.Size == 0 {
		empty, err := (&frontier{}).root()
		if err != nil {
			return err
		}
		if len(proof) > 0 || older.Root != empty {
			return fmt.Errorf("%w: the empty log has another root, and needs no proof", ErrProof)
		}
		return nil
	}
	err := tlog.CheckTree(tlog.TreeProof(proof), int64(newer.Size), newer.Root, int64(older.Size), older.Root)
	if err != nil {
		return fmt.Errorf("%w: checkpoint %d does not extend checkpoint %d: %w", ErrProof, newer.Size, older.Size, err)
	}
	return nil
}
