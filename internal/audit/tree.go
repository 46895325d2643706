package audit

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a node of the Merkle tree: SHA-256 as in RFC 9162, section 2.1. Its
// text form is base64.
type Hash = tlog.Hash

// Tail is the end of a log, as far as appending needs to know it. The zero
// value is the end of an empty log.
type Tail struct {
	// Size is the number of entries.
	Size uint64
	// At is the time of the last one.
	At time.Time
}

// TailOf returns the tail of a log with size entries whose last record is last;
// last is ignored when size is 0.
func TailOf(size uint64, last []byte) (Tail, error) {
	if size == 0 {
		return Tail{}, nil
	}
	e, err := Decode(last)
	if err != nil {
		return Tail{}, fmt.Errorf("last record of the audit log: %w", err)
	}
	if e.Seq != size-1 {
		return Tail{}, fmt.Errorf("%w: the last record of the audit log is numbered %d, but the log has %d; run `keyturn audit verify`", ErrEntry, e.Seq, size)
	}
	return Tail{Size: size, At: e.At}, nil
}

// Batch is what appending entries adds to a log. It must be stored completely,
// in one transaction.
type Batch struct {
	// First is the number of the first record.
	First uint64
	// Records are the encoded entries.
	Records [][]byte
	// FirstHash is the storage index of the first hash (tlog.StoredHashIndex).
	FirstHash uint64
	// Hashes are the leaf hashes and the roots of the subtrees they complete.
	Hashes []Hash
	// Tail is the end of the log afterwards.
	Tail Tail
}

// Append numbers entries and encodes them behind tail. Their Seq and Clock must
// be zero. An At before that of the preceding entry is raised to it and kept in
// Clock. Target, Reason and the values of Detail are cleaned and shortened.
//
// It asks hashes once, for at most 1+log₂(tail.Size) of them. The error wraps
// ErrEntry, or what hashes returned.
func Append(tail Tail, hashes tlog.HashReader, entries ...Entry) (Batch, error) {
	tree, _, err := loadFrontier(tail.Size, hashes)
	if err != nil {
		return Batch{}, err
	}
	batch := Batch{
		First:     tail.Size,
		Records:   make([][]byte, 0, len(entries)),
		FirstHash: uint64(tlog.StoredHashCount(tree.size)),
		Hashes:    make([]Hash, 0, 2*len(entries)),
		Tail:      tail,
	}
	for i, e := range entries {
		if e.Seq != 0 || !e.Clock.IsZero() {
			return Batch{}, fmt.Errorf("entry %d of %d: %w", i+1, len(entries), fieldError("seq", "it and clock are assigned by Append; leave them zero"))
		}
		e = e.normal()
		e.Seq = batch.Tail.Size
		if e.At.Before(batch.Tail.At) {
			e.Clock, e.At = e.At, batch.Tail.At
		}
		record, err := Encode(e)
		if err != nil {
			return Batch{}, fmt.Errorf("entry %d of %d: %w", i+1, len(entries), err)
		}
		stored, err := tree.add(tlog.RecordHash(record))
		if err != nil {
			return Batch{}, err
		}
		batch.Records = append(batch.Records, record)
		batch.Hashes = append(batch.Hashes, stored...)
		batch.Tail = Tail{Size: e.Seq + 1, At: e.At}
	}
	return batch, nil
}

// frontier is the right edge of a tree: the roots of the perfect subtrees into
// which size splits by its binary digits, by level. It is all that appending to
// the tree and computing its root need.
type frontier struct {
	size  int64
	nodes [64]Hash
}

// loadFrontier reads the frontier of the tree with size leaves, and its root.
func loadFrontier(size uint64, hashes tlog.HashReader) (*frontier, Hash, error) {
	if size > maxSize {
		return nil, Hash{}, fmt.Errorf("an audit log of %d entries is beyond the limit of %d", size, uint64(maxSize))
	}
	f := &frontier{size: int64(size)}
	// TreeHash asks for exactly the nodes of the frontier.
	root, err := tlog.TreeHash(f.size, tlog.HashReaderFunc(func(indexes []int64) ([]Hash, error) {
		nodes, err := hashes.ReadHashes(indexes)
		if err != nil {
			return nil, err
		}
		if len(nodes) != len(indexes) {
			return nil, fmt.Errorf("%d hashes were asked for, %d came", len(indexes), len(nodes))
		}
		for i, index := range indexes {
			level, _ := tlog.SplitStoredHashIndex(index)
			f.nodes[level] = nodes[i]
		}
		return nodes, nil
	}))
	if err != nil {
		return nil, Hash{}, fmt.Errorf("read the hashes of an audit log with %d entries: %w", size, err)
	}
	return f, root, nil
}

// ReadHashes implements tlog.HashReader for the indexes of the frontier's nodes.
func (f *frontier) ReadHashes(indexes []int64) ([]Hash, error) {
	nodes := make([]Hash, len(indexes))
	for i, index := range indexes {
		level, _ := tlog.SplitStoredHashIndex(index)
		nodes[i] = f.nodes[level]
	}
	return nodes, nil
}

// add appends a leaf and returns the hashes to store for it: the leaf, and the
// roots of the subtrees that it completes, from the smallest to the largest.
func (f *frontier) add(leaf Hash) ([]Hash, error) {
	if f.size >= maxSize {
		return nil, errors.New("the audit log is full; begin a new one")
	}
	stored, err := tlog.StoredHashesForRecordHash(f.size, leaf, f)
	if err != nil {
		return nil, err
	}
	top := len(stored) - 1
	f.nodes[top] = stored[top]
	f.size++
	return stored, nil
}

// root returns the root of the tree.
func (f *frontier) root() (Hash, error) { return tlog.TreeHash(f.size, f) }
