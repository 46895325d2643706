package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Options says what verification may rely on.
type Options struct {
	// Verifiers are the trusted keys of one log: the present one and those that
	// signed earlier checkpoints. VerifyLog needs at least one. VerifyBundle without
	// any takes those in the bundle; see Report.Trusted.
	Verifiers []note.Verifier
	// Kept are signed checkpoints that the caller kept from earlier, in any order.
	// The log must still agree with every one.
	Kept [][]byte
	// Visit, if not nil, is called with every entry in order, before a checkpoint
	// proves it. An error ends the verification and is returned as it is.
	Visit func(Entry) error
}

// item is what a log consists of, in order: records with their stored hashes, and
// signed checkpoints behind the last record they cover.
type item struct {
	// hashes begin with the leaf hash.
	record []byte
	hashes []Hash
	// checkpoint says that the item is one: then signed counts, else record and hashes.
	checkpoint bool
	signed     []byte
	// line is the line of the bundle; 0 online.
	line int
}

// stream reads a log. What an item holds is valid until the following call.
type stream interface {
	// next returns io.EOF at the end, and a *Fault for what does not parse.
	next() (item, error)
	// leaf returns the leaf hash that the log holds for entry seq, which the present
	// item claims to be.
	leaf(it item, seq uint64) (Hash, error)
}

// checker verifies a stream. Its fields are what it must remember between items.
type checker struct {
	visit     func(Entry) error
	verifiers note.Verifiers
	// kept are the caller's checkpoints that are still ahead, by size.
	kept []Checkpoint
	tree frontier
	last time.Time
	// signed is the size of the last checkpoint of the log; valid if any was seen.
	signed uint64
	report Report
	// hash and clock are the first faults of their sort since the last checkpoint;
	// the following checkpoint decides what they mean.
	hash, clock *Fault
}

// newChecker returns a checker that relies on verifiers, all of the log origin.
func newChecker(origin string, verifiers []note.Verifier, options Options) (*checker, error) {
	c := &checker{
		visit:     options.Visit,
		verifiers: note.VerifierList(verifiers...),
		report:    Report{Origin: origin, Keys: []string{}, Trusted: len(options.Verifiers) > 0},
	}
	for i, signed := range options.Kept {
		kept, _, err := openCheckpoint(signed, c.verifiers)
		if err != nil {
			return nil, fmt.Errorf("kept checkpoint %d of %d: %w", i+1, len(options.Kept), err)
		}
		c.kept = append(c.kept, kept)
	}
	slices.SortFunc(c.kept, func(a, b Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	return c, nil
}

// originOf returns the name of the log that all verifiers belong to.
func originOf(verifiers []note.Verifier) (string, error) {
	if len(verifiers) == 0 {
		return "", fmt.Errorf("%w: no verifier key is given", ErrKey)
	}
	origin := verifiers[0].Name()
	for _, v := range verifiers[1:] {
		if v.Name() != origin {
			return "", fmt.Errorf("%w: the verifier keys belong to two logs, %q and %q", ErrKey, origin, v.Name())
		}
	}
	return origin, checkOrigin(origin)
}

// size returns the number of records checked.
func (c *checker) size() uint64 { return uint64(c.tree.size) }

// run checks the whole stream. The error is a *Fault, or that of the stream or of
// Visit.
func (c *checker) run(s stream) (Report, error) {
	err := c.keptHere()
	for err == nil {
		var it item
		it, err = s.next()
		switch {
		case errors.Is(err, io.EOF):
			return c.end(c.finish())
		case err != nil:
		case it.checkpoint:
			err = c.checkpoint(it, s)
		default:
			err = c.record(it, s)
		}
	}
	return c.end(err)
}

// end completes the report and chooses the first fault.
func (c *checker) end(err error) (Report, error) {
	c.report.Entries = c.size()
	c.report.Last = c.last
	fault := new(Fault)
	if !errors.As(err, &fault) {
		return c.report, err
	}
	if earlier := c.pending(); earlier != nil && !explains(fault, earlier) {
		fault = earlier
	}
	fault.Proven = c.report.Proven
	return c.report, fault
}

// explains reports whether later, a fault in the order of entries, is about the
// entries of earlier, a fault in their hashes or times, and so says more.
func explains(later, earlier *Fault) bool {
	switch later.Kind {
	case Missing, Truncated, Reordered, Inserted:
		return later.From < earlier.To
	case Malformed, Altered, Rewritten, HashAltered, Misplaced, Unsigned, BadSignature, Untrusted, TimeReversed:
		return false
	}
	return false
}

// pending returns the fault that no checkpoint has decided yet; nil when there is none.
func (c *checker) pending() *Fault {
	if c.hash != nil {
		return c.hash
	}
	return c.clock
}

// record checks the next record.
func (c *checker) record(it item, s stream) error {
	n := c.size()
	leaf := tlog.RecordHash(it.record)
	entry, err := Decode(it.record)
	if err != nil {
		kind, problem := Malformed, err.Error()
		if leaf != it.hashes[0] {
			kind, problem = Altered, "it does not match its leaf hash, and does not parse: "+problem
		}
		return &Fault{Kind: kind, From: n, To: n + 1, Line: it.line, Problem: problem}
	}
	if entry.Seq != n {
		return c.outOfOrder(it, leaf, entry, s)
	}
	stored, err := c.tree.add(leaf)
	if err != nil {
		return err
	}
	if fault := compareHashes(n, it, stored); fault != nil && c.hash == nil {
		if fault.Kind == Malformed {
			return fault
		}
		fault.From = max(fault.From, min(c.report.Proven, n))
		c.hash = fault
	}
	c.times(it, entry)
	if c.visit != nil {
		if err := c.visit(entry); err != nil {
			return err
		}
	}
	return c.keptHere()
}

// compareHashes compares the hashes stored with record n with those computed.
func compareHashes(n uint64, it item, stored []Hash) *Fault {
	if len(it.hashes) != len(stored) {
		return &Fault{
			Kind: Malformed, From: n, To: n + 1, Line: it.line,
			Problem: fmt.Sprintf("the record comes with %d hashes, %d belong to it", len(it.hashes), len(stored)),
		}
	}
	for level, hash := range stored {
		switch {
		case hash == it.hashes[level]:
		case level == 0:
			return &Fault{Kind: Altered, From: n, To: n + 1, Line: it.line, Problem: "the record does not match its leaf hash"}
		default:
			return &Fault{
				Kind: Rewritten, From: n + 1 - 1<<level, To: n + 1, Line: it.line,
				Problem: fmt.Sprintf("the records do not match the stored hash of level %d above them", level),
			}
		}
	}
	return nil
}

// times checks and remembers the time of an entry.
func (c *checker) times(it item, entry Entry) {
	if entry.Seq == 0 {
		c.report.First = entry.At
	}
	if entry.At.Before(c.last) && c.clock == nil {
		c.clock = &Fault{
			Kind: TimeReversed, From: entry.Seq - 1, To: entry.Seq + 1, Line: it.line,
			Problem: fmt.Sprintf("the time %s comes after %s", entry.At.Format(timeLayout), c.last.Format(timeLayout)),
		}
	}
	if !entry.Clock.IsZero() {
		c.report.ClockSteps++
	}
	c.last = entry.At
}

// outOfOrder finds out why the next record has another number than it should.
func (c *checker) outOfOrder(it item, leaf Hash, entry Entry, s stream) error {
	n := c.size()
	stored, err := s.leaf(it, entry.Seq)
	if err != nil && !errors.Is(err, ErrMissingHash) {
		return err
	}
	switch {
	case stored != leaf:
		return &Fault{
			Kind: Altered, From: n, To: n + 1, Line: it.line,
			Problem: fmt.Sprintf("the record does not match its leaf hash, and is numbered %d", entry.Seq),
		}
	case entry.Seq < n:
		return &Fault{
			Kind: Inserted, From: entry.Seq, To: entry.Seq + 1, Line: it.line,
			Problem: fmt.Sprintf("a second entry is numbered %d; it stands behind entry %d", entry.Seq, n-1),
		}
	}
	next, err := c.lookAhead(s)
	if err != nil {
		return err
	}
	if next == n {
		return &Fault{
			Kind: Reordered, From: n, To: n + 1, Line: it.line,
			Problem: fmt.Sprintf("entry %d stands before entry %d", entry.Seq, n),
		}
	}
	to := min(entry.Seq, next)
	return &Fault{Kind: Missing, From: n, To: to, Line: it.line, Problem: entriesText(n, to) + " cannot be found"}
}

// lookAhead reads the rest of the stream and returns the smallest number, not
// below size, of the entries that parse; MaxUint64 when there is none.
func (c *checker) lookAhead(s stream) (uint64, error) {
	smallest := uint64(math.MaxUint64)
	for smallest > c.size() {
		it, err := s.next()
		if fault := new(Fault); errors.Is(err, io.EOF) || errors.As(err, &fault) {
			break
		}
		if err != nil {
			return 0, err
		}
		if entry, err := Decode(it.record); err == nil && entry.Seq >= c.size() {
			smallest = min(smallest, entry.Seq)
		}
	}
	return smallest, nil
}

// checkpoint checks the next signed checkpoint of the log.
func (c *checker) checkpoint(it item, s stream) error {
	n := c.size()
	checkpoint, key, err := openCheckpoint(it.signed, c.verifiers)
	if err != nil {
		fault := &Fault{Kind: Malformed, From: c.report.Proven, To: n, Line: it.line}
		switch {
		case errors.Is(err, ErrSignature):
			fault.Kind = BadSignature
		case errors.Is(err, ErrUntrusted):
			fault.Kind = Untrusted
		}
		fault.Problem = err.Error()
		return fault
	}
	if checkpoint.Size < n || c.report.Checkpoints > 0 && checkpoint.Size <= c.signed {
		return &Fault{
			Kind: Misplaced, From: min(checkpoint.Size, n), To: n, Line: it.line,
			Problem: fmt.Sprintf("a checkpoint of size %d stands behind %d entries and the checkpoint of size %d", checkpoint.Size, n, c.signed),
		}
	}
	if checkpoint.Size > n {
		return c.tooLarge(it, checkpoint, s)
	}
	if err := c.agree(checkpoint, it.line); err != nil {
		return err
	}
	c.report.Checkpoints++
	c.signed = checkpoint.Size
	if !slices.Contains(c.report.Keys, key) {
		c.report.Keys = append(c.report.Keys, key)
	}
	return nil
}

// tooLarge finds out why a checkpoint covers more entries than stand before it.
func (c *checker) tooLarge(it item, checkpoint Checkpoint, s stream) error {
	n := c.size()
	fault := &Fault{Kind: Missing, From: n, To: checkpoint.Size, Line: it.line}
	next, err := c.lookAhead(s)
	if err != nil {
		return err
	}
	switch {
	case next == n:
		fault.Kind, fault.To = Misplaced, n
		fault.Problem = fmt.Sprintf("a checkpoint of size %d stands behind %d entries", checkpoint.Size, n)
		return fault
	case next == math.MaxUint64:
		fault.Kind = Truncated
	default:
		fault.To = min(fault.To, next)
	}
	fault.Problem = fmt.Sprintf("a signed checkpoint covers %d entries, of which %s cannot be found", checkpoint.Size, entriesText(n, fault.To))
	return fault
}

// keptHere compares the records so far with the caller's checkpoints of this size.
func (c *checker) keptHere() error {
	for len(c.kept) > 0 && c.kept[0].Size == c.size() {
		if err := c.agree(c.kept[0], 0); err != nil {
			return err
		}
		c.kept = c.kept[1:]
		c.report.Kept++
	}
	return nil
}

// agree compares the tree over the records so far with a checkpoint of that size,
// and decides what the pending faults mean.
func (c *checker) agree(checkpoint Checkpoint, line int) error {
	root, err := c.tree.root()
	if err != nil {
		return err
	}
	n, proven := c.size(), c.report.Proven
	hash, clock := c.hash, c.clock
	c.hash, c.clock = nil, nil
	if root == checkpoint.Root {
		c.report.Proven, c.report.Root = n, root
		if hash != nil {
			hash.Kind = HashAltered
			hash.Problem = "a stored hash does not match the records, which a signed checkpoint proves"
			return hash
		}
		if clock != nil {
			return clock
		}
		return nil
	}
	if hash != nil {
		return hash
	}
	problem := fmt.Sprintf("the records do not have the root that was signed for %d entries", n)
	if proven == n {
		problem = fmt.Sprintf("two different roots were signed for %d entries: the holder of the key shows two histories", n)
	}
	return &Fault{Kind: Rewritten, From: proven, To: n, Line: line, Problem: problem}
}

// finish checks what must hold at the end of every log.
func (c *checker) finish() error {
	n := c.size()
	if len(c.kept) > 0 {
		size := c.kept[len(c.kept)-1].Size
		return &Fault{
			Kind: Truncated, From: n, To: size,
			Problem: fmt.Sprintf("a checkpoint that was kept covers %d entries, the log has %d", size, n),
		}
	}
	if fault := c.pending(); fault != nil {
		return fault
	}
	if n > 0 && c.report.Checkpoints == 0 {
		return &Fault{Kind: Unsigned, From: 0, To: n, Problem: "the log has no signed checkpoint"}
	}
	return nil
}
