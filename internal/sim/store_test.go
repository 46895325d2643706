package sim

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// lifeStore is the store as one server reaches it: every Update waits for the
// scheduler. A View does not: between two steps it sees the same whenever it runs.
type lifeStore struct{ l *life }

var (
	errSync    = errors.New("fsync: input/output error")
	errUnknown = errors.New("the connection was lost during the commit")
)

func (s lifeStore) View(ctx context.Context, fn func(store.Tx) error) error {
	if s.l.dead.Load() {
		return store.ErrClosed
	}
	return s.l.w.store.View(ctx, fn)
}

func (s lifeStore) Watch(ctx context.Context, topic store.Topic) <-chan struct{} {
	return s.l.w.store.Watch(ctx, topic)
}

func (s lifeStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	w := s.l.w
	caller := w.caller()
	r := &request{
		kind: kindUpdate, of: s.l, label: s.l.name + " " + caller + ": " + w.firstAccess(fn),
		faults: []fault{diskFull, syncError, syncUnknown, serverCrash},
		dull:   strings.HasPrefix(caller, "claim") || strings.HasPrefix(caller, "sweep") || strings.HasPrefix(caller, "Checkpoint"),
	}
	met, err := w.wait(ctx, r)
	if err != nil {
		return err
	}
	var failure error
	switch met { //nolint:exhaustive // the others do not happen to commits
	case diskFull:
		failure = store.ErrFull
	case syncError:
		failure = errSync
	case serverCrash:
		s.l.restartLater(w.some(20 * time.Second))
		if w.coin() {
			_ = w.commit(ctx, fn)
		}
		s.l.crash()
		return errGone
	case syncUnknown:
		if err := w.commit(ctx, fn); err != nil {
			return err
		}
		return errUnknown
	}
	if failure != nil {
		return w.store.Update(ctx, func(tx store.Tx) error {
			if err := fn(tx); err != nil {
				return err
			}
			return failure
		})
	}
	return w.commit(ctx, fn)
}

// coin draws one of two; it is called by the one goroutine that goes on.
func (w *world) coin() bool { return w.rng.IntN(2) == 0 }

// commit runs a transaction and compares what it wrote with the rules.
func (w *world) commit(ctx context.Context, fn func(store.Tx) error) error {
	var t *witness
	err := w.store.Update(ctx, func(tx store.Tx) error {
		t = &witness{w: w}
		return fn(t.over(tx))
	})
	if err == nil {
		last := &w.tale[len(w.tale)-1]
		last.idle = last.fault == 0 && len(t.events) == 0 && t.entries == 0 && len(t.claimed) == 0
		w.committed(t)
	} else if len(w.tale) > 0 {
		w.tale[len(w.tale)-1].what += ": " + err.Error()
	}
	return err
}

// witness notes what one transaction writes.
type witness struct {
	w       *world
	events  []store.Event
	entries int
	claimed []store.Job
	fenced  error
}

func (t *witness) over(tx store.Tx) store.Tx {
	tx.Events = witnessEvents{tx.Events, t}
	tx.Log = witnessLog{tx.Log, t}
	tx.Leases = witnessLeases{tx.Leases, t}
	return tx
}

type witnessEvents struct {
	store.Events
	t *witness
}

func (e witnessEvents) Append(ctx context.Context, events ...store.Event) error {
	err := e.Events.Append(ctx, events...)
	if err == nil {
		e.t.events = append(e.t.events, events...)
	}
	return err
}

type witnessLog struct {
	store.Log
	t *witness
}

func (l witnessLog) Append(ctx context.Context, first uint64, records [][]byte, firstHash uint64, hashes []store.Hash) error {
	err := l.Log.Append(ctx, first, records, firstHash, hashes)
	if err == nil {
		l.t.entries += len(records)
	}
	return err
}

type witnessLeases struct {
	store.Leases
	t *witness
}

func (l witnessLeases) Claim(ctx context.Context, claim store.Claim) ([]store.Job, error) {
	jobs, err := l.Leases.Claim(ctx, claim)
	l.t.claimed = append(l.t.claimed, jobs...)
	return jobs, err
}

func (l witnessLeases) Settle(ctx context.Context, id string, fence uint64, retryAt time.Time) error {
	err := l.Leases.Settle(ctx, id, fence, retryAt)
	if errors.Is(err, store.ErrFenced) {
		l.t.fenced = err
	}
	return err
}

// Jump implements store.Jumper, if the store does.
func (l witnessLeases) Jump(ctx context.Context, floor uint64) error {
	if jumper, ok := l.Leases.(store.Jumper); ok {
		return jumper.Jump(ctx, floor)
	}
	return nil
}

// labels names callers by their program counters.
type labels map[[16]uintptr]string

// caller names the functions of the engine and the hub that ask for an Update.
func (w *world) caller() string {
	var counters [16]uintptr
	n := runtime.Callers(3, counters[:])
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, ok := w.labels[counters]; ok {
		return known
	}
	var names []string
	frames := runtime.CallersFrames(counters[:n])
	for more := true; more && len(names) < 3; {
		var frame runtime.Frame
		frame, more = frames.Next()
		_, name, ours := strings.Cut(frame.Function, "/internal/engine.")
		if !ours {
			_, name, ours = strings.Cut(frame.Function, "/internal/hub.")
		}
		name = name[strings.LastIndex(name, ")")+1:]
		name = strings.TrimPrefix(name, ".")
		name, _, _ = strings.Cut(name, ".func")
		if ours && !strings.EqualFold(name, "update") && (len(names) == 0 || names[len(names)-1] != name) {
			names = append(names, name)
		}
	}
	label := strings.Join(names, " < ")
	w.labels[counters] = label
	return label
}

var errLooked = errors.New("only looked at")

// firstAccess is what a transaction asks for first. It depends on the caller
// alone, not on what is stored.
func (w *world) firstAccess(fn func(store.Tx) error) string {
	l := &look{}
	_ = fn(store.Tx{Docs: l, Index: lookIndex{l}, Events: lookEvents{l}, Queue: lookQueue{l}, Leases: lookLeases{l}, Log: lookLog{l}, Materials: lookMaterials{l}})
	return l.first
}

// look answers everything with an error and remembers the first question.
type look struct{ first string }

func (l *look) at(parts ...any) error {
	if l.first == "" {
		l.first = strings.TrimSuffix(fmt.Sprintln(parts...), "\n")
	}
	return errLooked
}

func (l *look) Get(_ context.Context, kind, name string) (store.Doc, error) {
	return store.Doc{}, l.at(kind, name)
}

func (l *look) Put(_ context.Context, d store.Doc) (uint64, error) {
	return 0, l.at("put", d.Kind, d.Name)
}

func (l *look) Delete(_ context.Context, kind, name string, _ uint64) error {
	return l.at("delete", kind, name)
}

type lookIndex struct{ l *look }

func (x lookIndex) List(_ context.Context, kind, prefix, _ string, _ int) ([]store.Doc, error) {
	return nil, x.l.at("list", kind, prefix)
}

func (x lookIndex) Due(_ context.Context, kind string, _ time.Time, _ int) ([]store.Doc, error) {
	return nil, x.l.at("due", kind)
}

func (x lookIndex) Since(_ context.Context, kind string, _ uint64, _ int) ([]store.Doc, error) {
	return nil, x.l.at("since", kind)
}

type lookEvents struct{ l *look }

func (e lookEvents) Append(_ context.Context, events ...store.Event) error {
	return e.l.at("append", len(events))
}

func (e lookEvents) Load(_ context.Context, name key.Name, _ uint64, _ int) ([]store.Event, error) {
	return nil, e.l.at("load", name)
}

func (e lookEvents) OfRotation(_ context.Context, id key.RotationID, _ int) ([]store.Event, error) {
	return nil, e.l.at("events of", id)
}

type lookQueue struct{ l *look }

func (q lookQueue) Enqueue(_ context.Context, jobs ...store.Job) error {
	return q.l.at("queue", len(jobs))
}

func (q lookQueue) Pending(_ context.Context, name key.Name) ([]store.Job, error) {
	return nil, q.l.at("pending", name)
}
func (q lookQueue) Drop(_ context.Context, lane string) error { return q.l.at("drop", lane) }

type lookLeases struct{ l *look }

func (x lookLeases) Claim(context.Context, store.Claim) ([]store.Job, error) {
	return nil, x.l.at("leases")
}

func (x lookLeases) Renew(_ context.Context, id string, fence uint64, _ time.Time) error {
	return x.l.at("renew", id, fence)
}

func (x lookLeases) Settle(_ context.Context, id string, fence uint64, _ time.Time) error {
	return x.l.at(id, fence)
}

type lookLog struct{ l *look }

func (x lookLog) Append(context.Context, uint64, [][]byte, uint64, []store.Hash) error {
	return x.l.at("log")
}

func (x lookLog) Records(context.Context, uint64, int) ([][]byte, uint64, error) {
	return nil, 0, x.l.at("records")
}

func (x lookLog) Hashes(context.Context, []uint64) ([]store.Hash, error) {
	return nil, x.l.at("hashes")
}

type lookMaterials struct{ l *look }

func (m lookMaterials) Put(_ context.Context, name key.Name, v key.Version, _ []byte) error {
	return m.l.at("put material", name, v)
}

func (m lookMaterials) Get(_ context.Context, name key.Name, v key.Version) ([]byte, error) {
	return nil, m.l.at("material", name, v)
}

func (m lookMaterials) Delete(_ context.Context, name key.Name, v key.Version) error {
	return m.l.at("delete material", name, v)
}
