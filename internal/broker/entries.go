package broker

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

const (
	// maxWaiting bounds the tokens that wait for their entries, maxBatch how many are
	// entered at once.
	maxWaiting = 10_000
	maxBatch   = 500
	// maxCovered bounds the clients that are covered by an entry of the span.
	maxCovered = 65_536
	// enterTime bounds one transaction.
	enterTime = 5 * time.Second
)

// refusal is what is summed up.
type refusal struct {
	key    key.Name
	source grant.Source
	reason string
}

// waiting is a token whose entry, or whose marks, are not written yet.
type waiting struct {
	entry *audit.Entry
	// covered: an entry that was written before covers it; only the marks are written.
	covered bool
	marks   []mark
	done    chan error
}

// covered is a client whose tokens an entry of this span covers.
type covered struct {
	until time.Time
	more  int
}

// entries gathers what is to be entered, so that many tokens share a transaction.
type entries struct {
	mu       sync.Mutex
	queue    []waiting
	covered  map[string]*covered
	refusals map[refusal]int
	// more counts tokens of clients that came no more, by key.
	more map[key.Name]int
	wake chan struct{}
}

func (e *entries) init() {
	e.covered, e.refusals, e.more, e.wake = map[string]*covered{}, map[refusal]int{}, map[key.Name]int{}, make(chan struct{}, 1)
}

// cover returns once an entry covers a token, and what may be used once for it is
// marked. shared: an entry that was written for the same client and rule within the span
// covers it as well.
func (e *entries) cover(ctx context.Context, shared bool, entry *audit.Entry, marks []mark, now time.Time, span time.Duration) error {
	id := string(entry.Key) + "\x00" + entry.Target + "\x00" + entry.Actor.ID
	w := waiting{entry: entry, marks: marks, done: make(chan error, 1)}
	e.mu.Lock()
	told := 0
	if shared {
		if c := e.covered[id]; c != nil {
			if w.covered = now.Before(c.until) && c.until.Sub(now) <= span; w.covered && len(marks) == 0 {
				c.more++
				e.mu.Unlock()
				return nil
			}
			if !w.covered {
				if c.more > 0 {
					entry.Detail["more"] = strconv.Itoa(c.more)
				}
				told, c.more = c.more, 0 // by this entry, and no other
			}
		}
	}
	if len(e.queue) >= maxWaiting {
		e.mu.Unlock()
		return fmt.Errorf("%w: too many tokens wait for the audit log", ErrAway)
	}
	e.queue = append(e.queue, w)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-w.done:
		if shared {
			e.mu.Lock()
			defer e.mu.Unlock()
			c := e.covered[id]
			switch {
			case err != nil && c != nil:
				c.more += told
			case w.covered && c != nil:
				c.more++
			case w.covered && (e.more[entry.Key] > 0 || len(e.more) < maxBatch):
				e.more[entry.Key]++ // the span is over meanwhile, and was summed up
			case err == nil && c != nil && now.Before(c.until):
				// Another request was faster; this one has an entry of its own.
			case err == nil && (c != nil || len(e.covered) < maxCovered):
				e.covered[id] = &covered{until: now.Add(span)}
			}
		}
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: the audit log: %w", ErrAway, ctx.Err())
	}
}

// refused counts; reasons are a few.
func (e *entries) refused(r refusal) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.refusals[r]; ok || len(e.refusals) < maxBatch {
		e.refusals[r]++
	}
}

// record enters what waits, until ctx ends.
func (b *Broker) record(ctx context.Context) {
	sums := time.NewTicker(b.config.AuditSpan)
	defer sums.Stop()
	for {
		withSums := false
		select {
		case <-ctx.Done():
			return
		case <-b.entries.wake:
		case <-sums.C:
			withSums = true
		}
		if err := b.enter(ctx, withSums); err != nil && ctx.Err() == nil {
			b.config.Logger.WarnContext(ctx, "tokens could not be entered into the audit log; they are refused meanwhile", "error", err)
		}
	}
}

// enter writes what waits; sums writes counts as well.
func (b *Broker) enter(ctx context.Context, sums bool) error {
	for {
		b.entries.mu.Lock()
		n := min(len(b.entries.queue), maxBatch)
		batch := b.entries.queue[:n:n]
		b.entries.queue = b.entries.queue[n:]
		b.entries.mu.Unlock()
		var counts []audit.Entry
		told := func() {}
		if sums {
			counts, told = b.entries.sums(b.config.Now())
			sums = false
		}
		if len(batch)+len(counts) == 0 {
			return nil
		}
		bounded, cancel := context.WithTimeout(ctx, enterTime)
		refused := make([]error, len(batch))
		err := b.config.Journal.Transact(bounded, audit.Actor{ID: "keyturn", Kind: "server"}, func(tx store.Tx, enter func(audit.Entry)) error {
			for i := range batch {
				w := &batch[i]
				again, entry, err := w.take(bounded, tx)
				if err != nil {
					return err
				}
				if refused[i] = again; again == nil && !w.covered {
					entry = w.entry
				}
				if entry != nil {
					enter(*entry)
				}
			}
			for _, c := range counts {
				enter(c)
			}
			return nil
		})
		cancel()
		if err != nil {
			err = fmt.Errorf("%w: the audit log: %w", ErrAway, err)
			// Before anybody is answered: who asks again is not refused for what was.
			b.entries.fail(err)
		}
		for i, w := range batch {
			if refused[i] != nil && err == nil {
				w.done <- refused[i]
				continue
			}
			w.done <- err
		}
		if err != nil {
			return err
		}
		told()
	}
}

// fail refuses all that wait.
func (e *entries) fail(err error) {
	e.mu.Lock()
	queue := e.queue
	e.queue = nil
	e.mu.Unlock()
	for _, w := range queue {
		w.done <- err
	}
}

// sums returns what was counted, and forgets clients that came no more. What was
// entered is forgotten with told, so that an outage of the log loses no count.
func (e *entries) sums(now time.Time) (list []audit.Entry, told func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, c := range e.covered {
		if now.Before(c.until) {
			continue
		}
		if name, _, _ := cutKey(id); c.more > 0 && (e.more[name] > 0 || len(e.more) < maxBatch) {
			e.more[name] += c.more
		}
		delete(e.covered, id)
	}
	refusals, more := maps.Clone(e.refusals), maps.Clone(e.more)
	for r, n := range refusals {
		list = append(list, audit.Entry{
			Actor: audit.Actor{ID: "anonymous", Kind: "workload"}, Action: "token.refuse", Key: r.key, Outcome: audit.OutcomeDenied,
			Detail: map[string]string{"by": r.source.String(), "cause": r.reason, "times": strconv.Itoa(n)},
		})
	}
	for name, n := range more {
		list = append(list, audit.Entry{
			Actor: audit.Actor{ID: "keyturn", Kind: "server"}, Action: "token.issue-more", Key: name, Outcome: audit.OutcomeOK,
			Detail: map[string]string{"times": strconv.Itoa(n)},
		})
	}
	return list, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		subtract(e.refusals, refusals)
		subtract(e.more, more)
	}
}

func subtract[K comparable](from, what map[K]int) {
	for k, n := range what {
		if from[k] -= n; from[k] <= 0 {
			delete(from, k)
		}
	}
}
