package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/lkg"
	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/key"
)

// Delivery is what the agent needs of a server; *client.Client implements it.
// Its methods are called concurrently.
type Delivery interface {
	// Watch hands changes to handle, and acknowledges what it returns, until ctx ends.
	Watch(ctx context.Context, known []client.Known, handle client.HandleFunc) error
	// Ack acknowledges an outcome that handle could not return.
	Ack(ctx context.Context, outcomes []client.Outcome) error
	// Report sends samples, once.
	Report(ctx context.Context, samples []client.Sample) error
}

// store is what the agent needs of its state directory; *lkg.Store implements it.
type store interface {
	Save(binding string, assignments []client.Assignment) error
	Load(binding string) ([]client.Assignment, error)
	MarkSwitching(targets []string) error
	ClearSwitching() error
	Switching() []string
}

// pace says how soon something that failed is tried again: after first, then
// twice as long each time, at most most.
type pace struct{ first, most time.Duration }

func (p pace) after(failures int) time.Duration {
	d := p.first
	for range failures - 1 {
		d = min(2*d, p.most)
	}
	return d
}

// pacing holds the paces of one agent.
type pacing struct {
	// unchanged: nothing visible happened (a full disk, a template that does not
	// fit), so trying again disturbs nobody.
	unchanged pace
	// restored: each try makes the application reload twice.
	restored pace
	// left: the new content is in place and waits for its application.
	left pace
}

func defaultPacing() pacing {
	return pacing{
		unchanged: pace{time.Second, time.Minute},
		restored:  pace{30 * time.Second, 10 * time.Minute},
		left:      pace{2 * time.Second, time.Minute},
	}
}

// failure is a change that has to be tried again.
type failure struct {
	times int
	due   time.Time
}

// worker owns the targets. All changes run under mu, one at a time.
type worker struct {
	log      *slog.Logger
	now      func() time.Time
	store    store
	binding  string
	delivery Delivery
	pacing   pacing
	targets  []*target
	samples  *samples
	// generation grows at the beginning and at the end of each switch.
	generation atomic.Uint64
	// wake has room for one token: the times of due work have changed.
	wake chan struct{}
	// acks counts acknowledgements under way outside of Watch.
	acks sync.WaitGroup

	mu sync.Mutex
	// desired is the newest assignment of each key, applied the one in use.
	desired, applied map[key.Name]client.Assignment
	failures         map[key.Name]failure
	// unsaved: applied differs from what is on disk, since the last try at saveDue.
	unsaved bool
	saveDue time.Time
}

// handle is the client.HandleFunc: it takes assignments into use.
func (w *worker) handle(ctx context.Context, batch []client.Assignment) []client.Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	changing := w.waiting()
	asked := make(map[key.Name]bool, len(batch))
	for _, a := range batch {
		if newest, ok := w.desired[a.Key]; ok && a.Epoch < newest.Epoch || !w.uses(a.Key) {
			continue
		}
		w.desired[a.Key] = a
		delete(w.failures, a.Key)
		changing[a.Key], asked[a.Key] = true, true
	}
	var returned, extra []client.Outcome
	for _, o := range w.change(ctx, changing) {
		if asked[o.Key] {
			returned = append(returned, o)
		} else {
			extra = append(extra, o)
		}
	}
	w.acknowledge(ctx, extra)
	signalOne(w.wake)
	return returned
}

func (w *worker) uses(name key.Name) bool {
	return slices.ContainsFunc(w.targets, func(t *target) bool { return slices.Contains(t.keys, name) })
}

// waiting returns the keys that were delivered but could not be tried yet,
// because a target needs another key as well.
func (w *worker) waiting() map[key.Name]bool {
	out := make(map[key.Name]bool)
	for k, a := range w.desired {
		if _, failed := w.failures[k]; !failed && w.applied[k].Epoch != a.Epoch {
			out[k] = true
		}
	}
	return out
}

// change takes the desired versions of the given keys into use and returns
// their outcomes; a key that has to wait, or whose change was interrupted by
// the end of ctx, has none.
func (w *worker) change(ctx context.Context, keys map[key.Name]bool) []client.Outcome {
	var out []client.Outcome
	for _, comp := range components(w.targets, keys) {
		out = append(out, w.changeOne(ctx, comp)...)
	}
	w.save()
	return out
}

func (w *worker) changeOne(ctx context.Context, comp component) []client.Outcome {
	data := maps.Clone(w.desired)
	for k, a := range w.applied {
		if !slices.Contains(comp.keys, k) {
			data[k] = a
		}
	}
	begin := w.now()
	how, err := w.perform(ctx, comp, data)
	if errors.Is(err, errNotDelivered) {
		w.log.WarnContext(ctx, "a change waits for another key", "keys", names(comp.keys), "error", err)
		return nil
	}
	var out []client.Outcome
	for _, k := range comp.keys {
		a := w.desired[k]
		log := w.log.With("key", k.String(), "version", uint64(a.Version), "epoch", a.Epoch, "rotation_id", a.Rotation)
		switch how {
		case stageDone:
			w.applied[k] = a
			w.unsaved = true
			delete(w.failures, k)
			log.InfoContext(ctx, "the version is in use", "took", w.now().Sub(begin))
			out = append(out, client.Outcome{Key: k, Version: a.Version, Epoch: a.Epoch, Code: client.Applied, Using: a.Version})
		case stageUnchanged, stageRestored, stageLeft:
			if ctx.Err() != nil {
				log.InfoContext(ctx, "the change was interrupted by the agent's end; the next start takes it up", "error", err)
				continue
			}
			using := w.applied[k].Version
			if how == stageLeft {
				using = a.Version
			}
			again := w.failed(k, how)
			log.ErrorContext(ctx, "the version could not be taken into use", "using", uint64(using), "retry_in", again, "error", err)
			out = append(out, client.Outcome{Key: k, Version: a.Version, Epoch: a.Epoch, Code: client.Failed, Using: using, Detail: err.Error()})
		}
	}
	return out
}

// failed plans the next try for a key and returns the time until then.
func (w *worker) failed(name key.Name, how stage) time.Duration {
	p := w.pacing.unchanged
	switch how {
	case stageRestored:
		p = w.pacing.restored
	case stageLeft:
		p = w.pacing.left
	case stageUnchanged, stageDone:
	}
	f := w.failures[name]
	f.times++
	wait := p.after(f.times)
	f.due = w.now().Add(wait)
	w.failures[name] = f
	return wait
}

// save writes the applied versions, if they have changed, and clears the note of
// the switch when there is nothing left to settle.
func (w *worker) save() {
	if w.unsaved {
		if err := w.store.Save(w.binding, slices.Collect(maps.Values(w.applied))); err != nil {
			w.saveDue = w.now().Add(w.pacing.unchanged.most)
			w.log.Error("after a restart without the server an older version would be served", "retry_in", w.pacing.unchanged.most, "error", err)
			return
		}
		w.unsaved = false
	}
	if slices.ContainsFunc(w.targets, func(t *target) bool { return t.unsettled }) {
		return
	}
	if err := w.store.ClearSwitching(); err != nil {
		w.log.Warn("applications are told once more after a restart", "error", err)
	}
}

// acknowledge sends outcomes in the background.
func (w *worker) acknowledge(ctx context.Context, outcomes []client.Outcome) {
	if len(outcomes) == 0 {
		return
	}
	w.acks.Go(func() {
		if err := w.delivery.Ack(ctx, outcomes); err != nil && ctx.Err() == nil {
			w.log.ErrorContext(ctx, "outcomes are not acknowledged", "error", err)
		}
	})
}

// retry tries again what failed, when it is due, until ctx ends.
func (w *worker) retry(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		timer.Stop()
		if wait, more := w.retryDue(ctx); more {
			timer.Reset(wait)
		}
	}
}

// retryDue tries what is due and returns the time until the next is.
func (w *worker) retryDue(ctx context.Context) (wait time.Duration, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	due := make(map[key.Name]bool)
	for k, f := range w.failures {
		if !f.due.After(now) {
			due[k] = true
		}
	}
	if len(due) > 0 {
		var news []client.Outcome
		for _, o := range w.change(ctx, due) {
			if o.Code == client.Applied {
				news = append(news, o)
			}
		}
		w.acknowledge(ctx, news)
	} else if w.unsaved && !w.saveDue.After(now) {
		w.save()
	}
	var next time.Time
	for _, f := range w.failures {
		if next.IsZero() || f.due.Before(next) {
			next = f.due
		}
	}
	if w.unsaved && (next.IsZero() || w.saveDue.Before(next)) {
		next = w.saveDue
	}
	if next.IsZero() {
		return 0, false
	}
	return max(next.Sub(w.now()), time.Millisecond), true
}

// start brings the files to the last known good versions, if there are any, and
// returns what the server should know.
func (w *worker) start(ctx context.Context) []client.Known {
	w.mu.Lock()
	defer w.mu.Unlock()
	interrupted := w.store.Switching()
	for _, t := range w.targets {
		t.unsettled = slices.Contains(interrupted, t.cfg.Name)
		if t.unsettled {
			w.log.WarnContext(ctx, "the last run ended in the middle of a switch; the application will be told again", "target", t.cfg.Name)
		}
		if err := place.Clean(t.place()); err != nil {
			w.log.ErrorContext(ctx, "the place of a target is not right yet", "target", t.cfg.Name, "error", err)
		}
	}
	saved, err := w.store.Load(w.binding)
	switch {
	case errors.Is(err, lkg.ErrNone):
	case err != nil:
		w.log.WarnContext(ctx, "the last known good versions are ignored; everything is asked of the server anew", "error", err)
	}
	changing := make(map[key.Name]bool)
	for _, a := range saved {
		if w.uses(a.Key) {
			w.applied[a.Key], w.desired[a.Key] = a, a
			changing[a.Key] = true
		}
	}
	w.change(ctx, changing)
	return w.known()
}

// known lists every key of the targets with what is in use of it.
func (w *worker) known() []client.Known {
	all := make(map[key.Name]bool)
	for _, t := range w.targets {
		for _, k := range t.keys {
			all[k] = true
		}
	}
	out := make([]client.Known, 0, len(all))
	for _, k := range sortedKeys(all) {
		a := w.applied[k]
		out = append(out, client.Known{Key: k, Version: a.Version, Epoch: a.Epoch})
	}
	return out
}

func names(keys []key.Name) string { return fmt.Sprint(keys) }
