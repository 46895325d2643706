// Package store is the interface to durable storage. It holds no rules: it
// reads, writes with compare-and-set, queues jobs under leases, and wakes
// readers. Package storetest is the suite that every implementation runs.
//
// Guarantees of every implementation:
//
//   - Update is atomic, durable when it returns nil, and serialisable with
//     respect to every other Update. When fn or the commit fails, nothing of it
//     is visible, ever.
//   - View sees one consistent snapshot and blocks no Update.
//   - After a crash at any point every Update that returned nil is there.
//   - Times are stored in UTC with microsecond resolution.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/keyturn/keyturn/key"
)

var (
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the record is not at the expected revision or sequence number.
	ErrConflict = errors.New("changed in the meantime")
	// ErrFenced: the lease was lost; somebody else may hold the job by now.
	ErrFenced = errors.New("lease lost")
	// ErrFull: the disk or the quota is exhausted; nothing was written.
	ErrFull = errors.New("storage is full")
)

// Store is durable storage. All methods may be called concurrently.
type Store interface {
	// View runs fn on a read-only snapshot. The Tx is invalid after fn returns.
	// Writing through it fails.
	View(ctx context.Context, fn func(Tx) error) error

	// Update runs fn and commits what it wrote. fn may run more than once and must
	// have no other effect. The Tx is invalid after fn returns.
	Update(ctx context.Context, fn func(Tx) error) error

	// Watch returns a channel that receives after commits that touched topic,
	// coalesced, until ctx ends; then it is closed. A wake-up may be spurious and,
	// after an interruption, late: readers poll slowly as well.
	Watch(ctx context.Context, topic Topic) <-chan struct{}
}

// Clock is implemented by a Store whose processes run on several machines: they
// go by its clock, not by their own.
type Clock interface {
	// Clock returns the present time of the store.
	Clock(ctx context.Context) (time.Time, error)
}

// Topic is what a watcher waits for. The zero value is invalid.
type Topic uint8

// The topics.
const (
	// TopicDocs: a document was written or deleted.
	TopicDocs Topic = iota + 1
	// TopicJobs: a job was queued or became claimable.
	TopicJobs
	// TopicLog: the audit log grew.
	TopicLog
)

// Tx is one transaction; its parts share it. A Tx is used by one goroutine.
type Tx struct {
	Docs      Docs
	Index     Index
	Events    Events
	Queue     Queue
	Leases    Leases
	Log       Log
	Materials Materials
}

// Doc is a named record whose body the store does not look into.
type Doc struct {
	// Kind and Name identify it; both are at most 512 bytes.
	Kind string
	Name string
	// Rev is unique in the store and grows with every write of any document that is
	// committed; that of a transaction that was rolled back may be given again.
	Rev uint64
	// Due is when the document wants attention; zero means never.
	Due time.Time
	// Body is at most 16 MiB.
	Body []byte
}

// Docs reads and writes documents.
type Docs interface {
	// Get fails with ErrNotFound when there is none.
	Get(ctx context.Context, kind, name string) (Doc, error)
	// Put writes doc if its present revision is doc.Rev (0: it must not exist yet)
	// and returns the new revision; else it fails with ErrConflict.
	Put(ctx context.Context, doc Doc) (uint64, error)
	// Delete removes the document if its revision is rev; else it fails with
	// ErrConflict, or ErrNotFound.
	Delete(ctx context.Context, kind, name string, rev uint64) error
}

// Revisions is implemented by Docs that can tell the revision of a document at a
// lower cost than reading it; see Revision.
type Revisions interface {
	// Revision returns what Get returns, without the body.
	Revision(ctx context.Context, kind, name string) (Doc, error)
}

// Revision returns a document without its body, in the cheapest way that docs
// knows. It fails with ErrNotFound when there is none.
func Revision(ctx context.Context, docs Docs, kind, name string) (Doc, error) {
	if cheap, ok := docs.(Revisions); ok {
		return cheap.Revision(ctx, kind, name)
	}
	doc, err := docs.Get(ctx, kind, name)
	doc.Body = nil
	return doc, err
}

// Several is implemented by Docs that can read many documents at a lower cost than
// one by one; see GetAll.
type Several interface {
	// GetAll returns those that exist of the named documents, each once, in no order.
	// There are 1 to 10,000 names.
	GetAll(ctx context.Context, kind string, names []string) ([]Doc, error)
}

// GetAll returns those that exist of the named documents, by name, in the cheapest
// way that docs knows. There are at most 10,000 names.
func GetAll(ctx context.Context, docs Docs, kind string, names []string) (map[string]Doc, error) {
	found := make(map[string]Doc, len(names))
	if len(names) == 0 {
		return found, nil
	}
	if err := CheckLimit(len(names)); err != nil {
		return nil, err
	}
	if cheap, ok := docs.(Several); ok {
		all, err := cheap.GetAll(ctx, kind, names)
		for i := range all {
			found[all[i].Name] = all[i]
		}
		return found, err
	}
	for _, name := range names {
		doc, err := docs.Get(ctx, kind, name)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[name] = doc
	}
	return found, nil
}

// Index finds documents. Results hold at most limit documents; limit is 1 to 10,000.
type Index interface {
	// List returns documents whose name begins with prefix and sorts after the
	// given name, in the byte order of names.
	List(ctx context.Context, kind, prefix, after string, limit int) ([]Doc, error)
	// Due returns documents with a non-zero Due that is not after now, earliest
	// first. Its cost grows with what is due, not with what exists.
	Due(ctx context.Context, kind string, now time.Time, limit int) ([]Doc, error)
	// Since returns documents written after revision rev, in revision order.
	// Deletions do not appear. Documents become visible in the order of their
	// revisions: whoever has seen one of revision r misses none by asking for those
	// after r, whichever process wrote them.
	Since(ctx context.Context, kind string, rev uint64, limit int) ([]Doc, error)
}

// Event is one immutable fact about a key.
type Event struct {
	Key key.Name
	// Seq numbers the events of a key from 1 without gaps.
	Seq      uint64
	Rotation key.RotationID
	Type     string
	At       time.Time
	Body     []byte
}

// Events is the append-only history of keys.
type Events interface {
	// Append adds events whose Seq follow the last one of their key. It fails with
	// ErrConflict when the first Seq is taken already or would leave a gap.
	Append(ctx context.Context, events ...Event) error
	// Load returns the events of a key with Seq > after, in order, at most limit.
	Load(ctx context.Context, name key.Name, after uint64, limit int) ([]Event, error)
	// OfRotation returns the events of one rotation in order, at most limit.
	OfRotation(ctx context.Context, id key.RotationID, limit int) ([]Event, error)
}

// Job is an effect that must be carried out.
type Job struct {
	// ID is the effect's idempotency key: queueing an ID that is queued already
	// changes nothing.
	ID string
	// Lane serialises: of the jobs with one lane at most one is leased, and queueing
	// a job drops the others of its lane that are not leased. When the lease of a
	// job ends without Settle while a newer one of the lane waits, it is dropped.
	Lane string
	// Target is the bulkhead: Claim leases at most a given number of jobs per target.
	Target string
	Key    key.Name
	// Priority: jobs with a larger one are claimed first.
	Priority int
	// RunAt is when the job may be claimed.
	RunAt time.Time
	// Attempt counts the leases so far, from 0.
	Attempt int
	// Fence grows with every lease in the store, over all jobs.
	Fence uint64
	Body  []byte
}

// Queue takes jobs.
type Queue interface {
	// Enqueue adds jobs; ID, Lane, Target and RunAt are required.
	Enqueue(ctx context.Context, jobs ...Job) error
	// Pending returns the jobs of a key, leased ones included, in queueing order.
	Pending(ctx context.Context, name key.Name) ([]Job, error)
	// Drop removes the jobs of a lane that are not leased.
	Drop(ctx context.Context, lane string) error
}

// Claim says which jobs a worker wants.
type Claim struct {
	Now time.Time
	// Lease is how long the worker keeps them without Renew.
	Lease time.Duration
	// Limit bounds the result, PerTarget the jobs leased per target, those leased
	// already included.
	Limit     int
	PerTarget int
	// Bounds take the place of PerTarget for single targets; 0 leaves the target's
	// jobs where they are. At most MaxLimit.
	Bounds map[string]int
	// Least leaves jobs of a lower priority where they are, unless it is 0.
	Least int
}

// Leases hands jobs to workers.
type Leases interface {
	// Claim leases jobs that are due and not leased (or whose lease has run out):
	// highest priority first, then the target with the fewest leases, then earliest
	// RunAt. So no backlog of one target keeps another waiting. Attempt and Fence are
	// increased.
	Claim(ctx context.Context, claim Claim) ([]Job, error)
	// Renew extends the lease; it fails with ErrFenced when it was lost.
	Renew(ctx context.Context, id string, fence uint64, until time.Time) error
	// Settle ends the lease: with a zero retryAt the job is removed, else it waits
	// for its next claim. It fails with ErrFenced when the lease was lost: then the
	// caller's transaction must not commit the job's result.
	Settle(ctx context.Context, id string, fence uint64, retryAt time.Time) error
}

// Jumper is implemented by Leases of a store that can be put back to an earlier
// state, by a backup or by copying files.
type Jumper interface {
	// Jump makes every later revision and fence larger than floor, and ends every
	// lease: whoever holds one gets ErrFenced.
	Jump(ctx context.Context, floor uint64) error
}

// Hash is a node of the Merkle tree over the log (RFC 9162, section 2.1).
type Hash [32]byte

// Log is the audit log: numbered records from 0 without gaps, and the hashes of
// its Merkle tree by their storage index as in golang.org/x/mod/sumdb/tlog.
type Log interface {
	// Append adds records from number first on, and hashes from index firstHash on.
	// It fails with ErrConflict when either does not continue what is stored.
	Append(ctx context.Context, first uint64, records [][]byte, firstHash uint64, hashes []Hash) error
	// Records returns records from number from on, at most limit, and the number of
	// records in the log.
	Records(ctx context.Context, from uint64, limit int) (records [][]byte, size uint64, err error)
	// Hashes returns the hashes at the given indexes; a missing one is ErrNotFound.
	Hashes(ctx context.Context, indexes []uint64) ([]Hash, error)
}

// Materials keeps the sealed material of versions, apart from everything else.
type Materials interface {
	// Put stores sealed bytes; it fails with ErrConflict when the version has some. They
	// are replaced by Delete and Put in one Update.
	Put(ctx context.Context, name key.Name, version key.Version, sealed []byte) error
	// Get fails with ErrNotFound when there are none.
	Get(ctx context.Context, name key.Name, version key.Version) ([]byte, error)
	// Delete removes them, and sees to it that their bytes leave the files of the
	// database soon; each implementation says how far and when. Deleting what is
	// absent succeeds.
	Delete(ctx context.Context, name key.Name, version key.Version) error
}
