package backup

import (
	"errors"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/store"
)

// tree computes the Merkle tree of the records that pass by, and what the table of
// its hashes must come to. Its zero value is the empty tree.
type tree struct {
	size uint64
	// peaks are the roots of the whole subtrees of size 1, 2, 4 and so on that the
	// tree consists of.
	peaks  [64]tlog.Hash
	hashes *store.Tally
	number int64
}

func (t *tree) add(record []byte) error {
	hash := tlog.RecordHash(record)
	level := 0
	err := t.hash(hash)
	for ; t.size>>level&1 == 1; level++ {
		hash = tlog.NodeHash(t.peaks[level], hash)
		err = errors.Join(err, t.hash(hash))
	}
	t.peaks[level] = hash
	t.size++
	return err
}

// hash counts a hash in the order in which a log stores them.
func (t *tree) hash(hash tlog.Hash) error {
	if t.hashes == nil {
		t.hashes = store.NewTally()
	}
	err := t.hashes.Add([]any{t.number, hash[:]})
	t.number++
	return err
}

// head is the root of the tree.
func (t *tree) head() tlog.Hash {
	var head tlog.Hash
	begun := false
	for level := range t.peaks {
		switch {
		case t.size>>level&1 == 0:
		case begun:
			head = tlog.NodeHash(t.peaks[level], head)
		default:
			head, begun = t.peaks[level], true
		}
	}
	return head
}

// root is empty for the empty tree.
func (t *tree) root() string {
	if t.size == 0 {
		return ""
	}
	return encodeRoot(t.head())
}

// table is what the table of hashes must come to.
func (t *tree) table() Table {
	tally := t.hashes
	if tally == nil {
		tally = store.NewTally()
	}
	return describe("log_hashes", tally)
}
