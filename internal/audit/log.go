package audit

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrMissingHash is wrapped by a Source's error when it does not have a hash that
// it was asked for.
var ErrMissingHash = errors.New("hash of the audit log is missing")

// Source reads a stored log. It is used by one goroutine at a time. The log may
// grow meanwhile.
type Source interface {
	// Records returns records from number from on, at most limit, and the number of
	// records in the log.
	Records(ctx context.Context, from uint64, limit int) (records [][]byte, size uint64, err error)
	// Hashes returns the hashes at the given storage indexes (tlog.StoredHashIndex).
	// When one is missing the error wraps ErrMissingHash.
	Hashes(ctx context.Context, indexes []uint64) ([]Hash, error)
	// Checkpoints returns the signed checkpoints of size from or more, ordered by
	// size, at most limit. No two have the same size.
	Checkpoints(ctx context.Context, from uint64, limit int) ([][]byte, error)
}

// How much is read from a Source at once.
const (
	recordPage     = 256
	checkpointPage = 64
)

// HashReader returns the hashes of source as Append, CheckpointAt and the proofs
// read them. It is valid as long as ctx.
func HashReader(ctx context.Context, source Source) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]Hash, error) {
		if len(indexes) == 0 {
			return nil, nil
		}
		wanted := make([]uint64, len(indexes))
		for i, index := range indexes {
			wanted[i] = uint64(index)
		}
		hashes, err := source.Hashes(ctx, wanted)
		if err == nil && len(hashes) != len(indexes) {
			err = fmt.Errorf("%w: %d were asked for, %d came", ErrMissingHash, len(indexes), len(hashes))
		}
		return hashes, err
	})
}

// ReadTail returns the tail of the log in source.
func ReadTail(ctx context.Context, source Source) (Tail, error) {
	records, size, err := source.Records(ctx, 0, 1)
	if err != nil || size == 0 {
		return Tail{}, err
	}
	if size > 1 {
		if records, _, err = source.Records(ctx, size-1, 1); err != nil {
			return Tail{}, err
		}
	}
	if len(records) == 0 {
		return Tail{}, fmt.Errorf("%w: record %d of the audit log is missing; run `keyturn audit verify`", ErrEntry, size-1)
	}
	return TailOf(size, records[0])
}

// VerifyLog checks a stored log: every record against its stored hashes, and
// every signed checkpoint, and those the caller kept. Entries behind the last
// checkpoint are checked against the stored hashes only; Report.Proven tells.
// It finishes although the log grows meanwhile. Memory is bounded.
//
// The error is a *Fault when something is wrong with the log; else it wraps
// ErrKey, or comes from the source, from a kept checkpoint or from Visit.
func VerifyLog(ctx context.Context, source Source, options Options) (Report, error) {
	origin, err := originOf(options.Verifiers)
	if err != nil {
		return Report{}, err
	}
	c, err := newChecker(origin, options.Verifiers, options)
	if err != nil {
		return Report{Origin: origin}, err
	}
	_, size, err := source.Records(ctx, 0, 1)
	if err != nil {
		return c.report, err
	}
	return c.run(newLogStream(ctx, source, size, maxSize))
}

// logStream reads a Source as a stream.
type logStream struct {
	ctx    context.Context //nolint:containedctx // a stream lives as long as one call of VerifyLog or WriteBundle
	source Source
	// at is the number of the next record. The stream ends at limit, or at the last
	// checkpoint if that is larger.
	at, limit uint64
	// records are those read and not returned yet, hashes theirs.
	records [][]byte
	hashes  []Hash
	// signed is the next checkpoint, of size ahead, if waiting is set.
	checkpoints *checkpointReader
	signed      []byte
	ahead       uint64
	waiting     bool
}

// newLogStream returns a stream of limit records and of the checkpoints of at
// most size until.
func newLogStream(ctx context.Context, source Source, limit, until uint64) *logStream {
	return &logStream{
		ctx: ctx, source: source, limit: limit,
		checkpoints: &checkpointReader{ctx: ctx, source: source, until: until},
	}
}

// next implements stream.
func (s *logStream) next() (item, error) {
	if !s.waiting {
		if err := s.readCheckpoint(); err != nil {
			return item{}, err
		}
	}
	if s.waiting && s.ahead <= s.at {
		return s.takeCheckpoint(), nil
	}
	if len(s.records) == 0 {
		found, err := s.readRecords()
		switch {
		case err != nil:
			return item{}, err
		case !found && s.waiting:
			return s.takeCheckpoint(), nil // one that covers more than the log has
		case !found && s.at < s.limit:
			return item{}, &Fault{Kind: Truncated, From: s.at, To: s.limit, Problem: fmt.Sprintf("the log says that it has %d entries, of which %s cannot be found", s.limit, entriesText(s.at, s.limit))}
		case !found:
			return item{}, io.EOF
		}
	}
	count := tlog.StoredHashCount(int64(s.at)+1) - tlog.StoredHashCount(int64(s.at))
	it := item{record: s.records[0], hashes: s.hashes[:count]}
	s.records, s.hashes = s.records[1:], s.hashes[count:]
	s.at++
	return it, nil
}

func (s *logStream) readCheckpoint() (err error) {
	s.signed, s.ahead, err = s.checkpoints.next()
	s.waiting = err == nil
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *logStream) takeCheckpoint() item {
	s.waiting = false
	return item{checkpoint: true, signed: s.signed}
}

// readRecords reads the next records and their hashes; false means that there are none.
func (s *logStream) readRecords() (bool, error) {
	stop := s.limit
	if s.waiting {
		stop = max(stop, s.ahead)
	}
	if s.at >= stop {
		return false, nil
	}
	limit := int(min(recordPage, stop-s.at))
	records, _, err := s.source.Records(s.ctx, s.at, limit)
	if err != nil || len(records) == 0 {
		return false, err
	}
	records = records[:min(len(records), limit)]
	first := tlog.StoredHashCount(int64(s.at))
	end := tlog.StoredHashCount(int64(s.at) + int64(len(records)))
	s.hashes, err = s.readHashes(first, end)
	s.records = records
	return true, err
}

// readHashes reads the hashes at the indexes from first to before end. A missing
// one reads as zero, which no hash of a record equals.
func (s *logStream) readHashes(first, end int64) ([]Hash, error) {
	reader := HashReader(s.ctx, s.source)
	indexes := make([]int64, 0, end-first)
	for index := first; index < end; index++ {
		indexes = append(indexes, index)
	}
	hashes, err := reader.ReadHashes(indexes)
	if !errors.Is(err, ErrMissingHash) {
		return hashes, err
	}
	hashes = make([]Hash, len(indexes))
	for i := range indexes {
		switch one, err := reader.ReadHashes(indexes[i : i+1]); {
		case err == nil:
			hashes[i] = one[0]
		case !errors.Is(err, ErrMissingHash):
			return nil, err
		}
	}
	return hashes, nil
}

// leaf implements stream: online the hashes are found by the number of an entry.
func (s *logStream) leaf(_ item, seq uint64) (Hash, error) {
	hashes, err := HashReader(s.ctx, s.source).ReadHashes([]int64{tlog.StoredHashIndex(0, int64(seq))})
	if err != nil {
		return Hash{}, err
	}
	return hashes[0], nil
}

// checkpointReader reads the checkpoints of a Source one by one.
type checkpointReader struct {
	ctx    context.Context //nolint:containedctx // see logStream
	source Source
	// from is the smallest size to ask for next, until the largest one to return.
	from, until uint64
	page        [][]byte
	done        bool
}

// next returns a signed checkpoint and its size, which is 0 when it does not
// parse. It returns io.EOF at the end.
func (r *checkpointReader) next() ([]byte, uint64, error) {
	if len(r.page) == 0 && !r.done {
		page, err := r.source.Checkpoints(r.ctx, r.from, checkpointPage)
		if err != nil {
			return nil, 0, err
		}
		r.page = page
		r.done = len(page) < checkpointPage
	}
	if len(r.page) == 0 {
		return nil, 0, io.EOF
	}
	signed := r.page[0]
	r.page = r.page[1:]
	size, err := sizeOf(signed)
	if err != nil || size < r.from {
		r.done = true // the source is out of order: what it returned is the last to be looked at
	}
	if size > r.until {
		r.page, r.done = nil, true
		return nil, 0, io.EOF
	}
	r.from = size + 1
	return signed, size, nil
}
