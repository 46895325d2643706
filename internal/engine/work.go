package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/provider"
)

// How failing effects are repeated.
const (
	retryFirst = 100 * time.Millisecond
	retryMax   = 30 * time.Second
	// maxProbeTries is how often a probe may contradict what is wanted before that
	// counts as the verifier's answer.
	maxProbeTries = 6
)

// work claims effects and carries them out until ctx ends.
func (e *Engine) work(ctx context.Context) {
	woken := e.store.Watch(ctx, store.TopicJobs)
	var workers sync.WaitGroup
	defer workers.Wait()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		e.claim(ctx, &workers)
		wait := e.config.Poll
		if retry, waits := e.nextTry(e.config.Now()); waits {
			wait = min(wait, retry)
		}
		again.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-woken:
		case <-e.workers.freed:
		case <-again.C:
		}
	}
}

// retries are when effects that failed here may be claimed again, so that they
// are claimed then and not with the next poll.
type retries struct {
	mu    sync.Mutex
	times []time.Time
}

func (r *retries) add(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = append(r.times, at)
}

// next forgets the times that have come and returns how long it is to the next.
func (r *retries) next(now time.Time) (wait time.Duration, waits bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = slices.DeleteFunc(r.times, func(at time.Time) bool { return !at.After(now) })
	if len(r.times) == 0 {
		return 0, false
	}
	return slices.MinFunc(r.times, time.Time.Compare).Sub(now), true
}

// nextTry is how long it is until an effect may be claimed that may not be yet.
func (e *Engine) nextTry(now time.Time) (wait time.Duration, waits bool) {
	wait, waits = e.retries.next(now)
	if probe := e.silence.Next(now); !probe.IsZero() && (!waits || probe.Sub(now) < wait) {
		return probe.Sub(now), true
	}
	return wait, waits
}

// claim starts workers for the jobs that are due and free.
func (e *Engine) claim(ctx context.Context, workers *sync.WaitGroup) {
	busy := e.workers.busy()
	free := e.config.Workers + e.config.Reserve - busy
	if free <= 0 {
		return
	}
	var jobs []leased
	err := e.store.Update(ctx, func(tx store.Tx) error {
		var err error
		jobs, err = e.lease(ctx, tx, e.config.Now(), free, e.config.Workers-busy)
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			e.log.ErrorContext(ctx, "effects could not be claimed; trying again", "error", err)
		}
		return
	}
	for _, job := range jobs {
		w := e.workers.start()
		workers.Go(func() {
			defer w.end()
			for mine := []leased{job}; len(mine) > 0; {
				mine = e.runJob(ctx, w, mine[0])
			}
		})
	}
}

// runJob carries out one effect under its lease and records how it ended. It
// returns the job to go on with, if there is one.
func (e *Engine) runJob(ctx context.Context, w *worker, lease leased) []leased {
	job := lease.Job
	effect, queued, err := decodeEffect(&job)
	if err != nil {
		e.log.ErrorContext(ctx, "a stored effect is damaged", "job", job.ID, "error", err)
		return nil
	}
	log := e.log.With("key", job.Key, "rotation", effect.Rotation, "effect", effect.Kind, "version", effect.Version, "attempt", job.Attempt)
	if awaited, err := e.awaited(ctx, job, effect); err != nil || !awaited {
		return e.dropUnawaited(ctx, job, err, log)
	}
	started := e.config.Now()
	limited, release := e.hold(ctx, lease)
	defer release() // the lease is kept until the result is recorded
	ended := e.attempt(limited, w, job, effect, log)
	if cause := context.Cause(limited); ended.err != nil && (errors.Is(cause, errNotKept) || errors.Is(cause, errLeaseLost)) {
		ended = done{err: fmt.Errorf("%w: %w", cause, ended.err)}
	}
	if ctx.Err() != nil {
		if err := e.giveBack(ctx, job); err != nil {
			log.WarnContext(ctx, "an effect was cut short by the stop; it is repeated when its lease has run out", "error", err)
		}
		return nil
	}
	took := e.config.Now().Sub(started)
	e.hear(&job, &ended, started)
	tried := ended
	if ended.outcome == 0 {
		e.judgeTries(ctx, &job, effect, queued, &ended)
	}
	e.config.Observer.Attempted(Attempted{
		Key: job.Key, Effect: effect.EffectRef, Attempt: job.Attempt, Started: started, Took: took,
		Err: tried.err, Outcome: tried.outcome, Waits: ended.waits, Rotation: effect.Rotation,
	})
	switch {
	case ended.waits:
		log.DebugContext(ctx, "effect takes its time", "verifier", effect.Verifier, "waits", ended.err)
	case tried.err != nil:
		log.WarnContext(ctx, "effect failed", "verifier", effect.Verifier, "error", tried.err)
	}
	ended.insist = refuses(effect.Kind) && (ended.outcome == rotation.Broken || ended.outcome == rotation.Contradicted)
	next, err := e.settle(ctx, w, job, effect, ended)
	for err != nil && recordLater(limited, err) {
		next, err = e.settle(ctx, w, job, effect, ended)
	}
	if err != nil && ctx.Err() == nil {
		log.WarnContext(ctx, "the result of an effect could not be recorded; it will be repeated", "error", err)
	}
	return next
}

// recordAgain is how long after a failure a result is tried to be recorded again.
const recordAgain = 250 * time.Millisecond

// recordLater waits until a result that could not be recorded may be tried to be
// recorded again, as long as the lease is held: what was done outside need not be
// done again only because the store was away for a moment.
func recordLater(held context.Context, err error) bool {
	if errors.Is(err, store.ErrFenced) || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrInvalid) {
		return false
	}
	timer := time.NewTimer(recordAgain)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-held.Done():
		return false
	}
}

// awaited reports whether the machine still waits for the effect. Under the lease
// of its lane that cannot change to an effect that contradicts it.
func (e *Engine) awaited(ctx context.Context, job store.Job, effect rotation.Effect) (bool, error) {
	var awaited bool
	err := e.store.View(ctx, func(tx store.Tx) error {
		state, err := e.readState(ctx, tx, job.Key)
		awaited = state.Awaits(effect.EffectRef)
		return err
	})
	return awaited, err
}

// dropUnawaited removes a job that nobody waits for any more; after an error the
// job is repeated when its lease has run out.
func (e *Engine) dropUnawaited(ctx context.Context, job store.Job, err error, log *slog.Logger) []leased {
	if err == nil {
		err = e.store.Update(ctx, func(tx store.Tx) error { return tx.Leases.Settle(ctx, job.ID, job.Fence, time.Time{}) })
	}
	if err != nil && ctx.Err() == nil {
		log.WarnContext(ctx, "an effect could not be started; it is tried again when its lease has run out", "error", err)
	}
	return nil
}

// giveBackWithin bounds how long a stop waits for the end of a lease.
const giveBackWithin = 5 * time.Second

// giveBack ends the lease of an effect that was cut short, so that the next start
// repeats it at once.
func (e *Engine) giveBack(ctx context.Context, job store.Job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackWithin)
	defer cancel()
	return e.store.Update(ctx, func(tx store.Tx) error { return tx.Leases.Settle(ctx, job.ID, job.Fence, e.config.Now()) })
}

// done is how an effect ended.
type done struct {
	// outcome is 0 when the effect is to be tried again because of err.
	outcome rotation.Outcome
	uses    int
	err     error
	// asked: the system was called, so that err and its absence say something of it.
	asked bool
	// insist: it refuses a version; if that is compromised it is repeated although a
	// human is asked.
	insist bool
	// pause takes the place of the usual pause before the next try.
	pause time.Duration
	// waits: the effect takes its time, for the reason in err; nothing failed.
	waits bool
	// body, if not nil, is the event that tells of the good end.
	body rotation.Body
	// write stores what came with the result, in the transaction that records it.
	write func(*change) error
}

// failed is the end of an effect by an error: for good, or to be tried again.
func failed(err error) done {
	if provider.IsPermanent(err) {
		return done{outcome: rotation.Broken, err: err}
	}
	return done{err: err}
}

// asked notes that the system was called.
func asked(d done) done {
	d.asked = true
	return d
}

// settle ends the lease and records the outcome in one transaction, which also
// claims the job that the worker goes on with: a rotation is a chain of effects,
// and a claim of its own would cost each of them another flush to disk.
func (e *Engine) settle(ctx context.Context, w *worker, job store.Job, effect rotation.Effect, done done) (next []leased, err error) {
	detail := ""
	if done.err != nil {
		detail = done.err.Error()
	}
	pause := done.pause
	if pause == 0 {
		pause = e.backoff(job.Attempt)
	}
	var retryAt time.Time
	err = e.update(ctx, Server(), func(c *change) error {
		next, retryAt = nil, time.Time{}
		if done.outcome == 0 {
			retryAt = c.now.Add(pause)
		}
		if err := c.tx.Leases.Settle(ctx, job.ID, job.Fence, retryAt); err != nil {
			return err
		}
		if err := c.result(job, effect, done, detail); err != nil {
			return err
		}
		if w.parked {
			return nil // another worker has taken its place
		}
		var err error
		next, err = e.lease(ctx, c.tx, c.now, 1, e.config.Workers+1-e.workers.busy())
		return err
	})
	if err == nil {
		if !retryAt.IsZero() {
			e.retries.add(retryAt)
		}
		return next, nil
	}
	if !errors.Is(err, rotation.ErrStale) {
		return nil, err
	}
	// Nobody waits for this effect any more: its result, and what came with it,
	// are dropped, and so is the job.
	return nil, e.store.Update(ctx, func(tx store.Tx) error { return tx.Leases.Settle(ctx, job.ID, job.Fence, time.Time{}) })
}

// result tells the machine how an effect ended, and stores what came with it.
func (c *change) result(job store.Job, effect rotation.Effect, done done, detail string) error {
	var at []string
	if effect.Verifier == "" {
		at = provider.Endpoints(done.err)
	}
	var body rotation.Body = rotation.Result{Effect: effect.EffectRef, Outcome: done.outcome, Uses: done.uses, Detail: detail, Verifiers: at, Insist: done.insist}
	if done.outcome == rotation.OK && done.body != nil {
		body = done.body
	}
	if done.outcome == 0 {
		if tell, err := c.worthTelling(job, effect, done.waits); err != nil || !tell {
			return err
		}
		body = rotation.Trouble{Effect: effect.EffectRef, Attempt: job.Attempt, Detail: detail, Waits: done.waits, Verifiers: at}
	}
	if _, err := c.step(job.Key, effect.Rotation, body); err != nil {
		return err
	}
	if done.outcome != 0 && done.write != nil {
		return done.write(c)
	}
	return nil
}

// worthTelling keeps the history short: the first tries and then every doubling of
// their number, and whenever what took its time begins to fail, or the reverse.
func (c *change) worthTelling(job store.Job, effect rotation.Effect, waits bool) (bool, error) {
	if n := job.Attempt; n <= 3 || n&(n-1) == 0 {
		return true, nil
	}
	state, _, err := c.state(job.Key)
	if err != nil {
		return false, err
	}
	w, ok := state.Verifier(effect.Verifier)
	if !ok {
		return false, nil
	}
	slot, _ := w.Slot(effect.Version)
	return waits && slot.Waits == "" || !waits && slot.Trouble == "", nil
}

// backoff is how long to wait after the given attempt, counted from 1: doubling,
// bounded, and spread so that what failed together is not repeated together.
func (e *Engine) backoff(attempt int) time.Duration {
	wait := retryMax
	if attempt < 10 {
		wait = min(retryMax, retryFirst<<max(attempt-1, 0))
	}
	return wait/2 + e.config.Jitter(wait/2)
}
