package engine

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/provider"
)

// How failing effects are repeated.
const (
	retryFirst = 100 * time.Millisecond
	retryMax   = 30 * time.Second
	// maxMintTries and maxPreflightTries bound effects that change nothing outside:
	// after them a rotation stops before it has begun.
	maxMintTries = 5
	// maxProbeTries is how often a probe may contradict what is wanted before that
	// counts as the verifier's answer.
	maxProbeTries = 6
)

// work claims effects and carries them out until ctx ends.
func (e *Engine) work(ctx context.Context) {
	woken := e.store.Watch(ctx, store.TopicJobs)
	slots := make(chan struct{}, e.config.Workers)
	finished := make(chan struct{}, 1)
	poll := time.NewTicker(e.config.Poll)
	defer poll.Stop()
	defer func() {
		for range e.config.Workers {
			slots <- struct{}{} // every worker has ended when all slots are ours
		}
	}()
	for {
		next := e.claim(ctx, slots, finished)
		var due <-chan time.Time
		if next > 0 {
			due = time.After(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-woken:
		case <-finished:
		case <-poll.C:
		case <-due:
		}
	}
}

// claim starts workers for the jobs that are due and free. It returns after how
// long it should be called again without being woken, 0 for the next poll.
func (e *Engine) claim(ctx context.Context, slots, finished chan struct{}) time.Duration {
	free := cap(slots) - len(slots)
	if free == 0 {
		return 0
	}
	var jobs []store.Job
	err := e.store.Update(ctx, func(tx store.Tx) error {
		var err error
		jobs, err = tx.Leases.Claim(ctx, store.Claim{Now: e.config.Now(), Lease: e.config.Lease, Limit: free, PerTarget: e.config.PerHost})
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			e.log.ErrorContext(ctx, "effects could not be claimed; trying again", "error", err)
		}
		return e.config.Poll
	}
	for _, job := range jobs {
		slots <- struct{}{}
		go func() {
			defer func() {
				<-slots
				select {
				case finished <- struct{}{}:
				default:
				}
			}()
			e.runJob(ctx, job)
		}()
	}
	return 0
}

// runJob carries out one effect under its lease and records how it ended.
func (e *Engine) runJob(ctx context.Context, job store.Job) {
	var effect rotation.Effect
	if err := json.Unmarshal(job.Body, &effect); err != nil {
		e.log.ErrorContext(ctx, "a stored effect is damaged", "job", job.ID, "error", err)
		return
	}
	log := e.log.With("key", job.Key, "rotation", effect.Rotation, "effect", effect.Kind, "version", effect.Version, "attempt", job.Attempt)
	started := e.config.Now()
	limited, cancel := context.WithTimeout(ctx, e.config.Lease*2/3)
	done := e.carryOut(limited, job, effect)
	cancel()
	if ctx.Err() != nil {
		return // stopping: the lease runs out, and the effect is repeated
	}
	e.config.Observer.Attempted(Attempted{
		Key: job.Key, Effect: effect.EffectRef, Attempt: job.Attempt, Started: started, Took: e.config.Now().Sub(started),
		Err: done.err, Outcome: done.outcome, Rotation: effect.Rotation,
	})
	if done.err != nil {
		log.WarnContext(ctx, "effect failed", "verifier", effect.Verifier, "error", done.err)
	}
	if err := e.settle(ctx, job, effect, done); err != nil && ctx.Err() == nil {
		log.WarnContext(ctx, "the result of an effect could not be recorded; it will be repeated", "error", err)
	}
}

// done is how an effect ended.
type done struct {
	// outcome is 0 when the effect is to be tried again because of err.
	outcome rotation.Outcome
	uses    int
	err     error
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

// settle ends the lease and records the outcome in one transaction.
func (e *Engine) settle(ctx context.Context, job store.Job, effect rotation.Effect, done done) error {
	if done.outcome == 0 && effect.Kind == rotation.Mint && job.Attempt >= maxMintTries {
		done.outcome = rotation.Broken
	}
	detail := ""
	if done.err != nil {
		detail = done.err.Error()
	}
	err := e.update(ctx, Server(), func(c *change) error {
		retryAt := time.Time{}
		if done.outcome == 0 {
			retryAt = c.now.Add(backoff(job.Attempt))
		}
		if err := c.tx.Leases.Settle(ctx, job.ID, job.Fence, retryAt); err != nil {
			return err
		}
		var body rotation.Body = rotation.Result{Effect: effect.EffectRef, Outcome: done.outcome, Uses: done.uses, Detail: detail}
		if done.outcome == 0 {
			if !worthTelling(job.Attempt) {
				return nil
			}
			body = rotation.Trouble{Effect: effect.EffectRef, Attempt: job.Attempt, Detail: detail}
		}
		if _, _, err := c.step(job.Key, effect.Rotation, body); err != nil {
			return err
		}
		if done.write != nil {
			return done.write(c)
		}
		return nil
	})
	if !errors.Is(err, rotation.ErrStale) {
		return err
	}
	// Nobody waits for this effect any more: its result, and what came with it,
	// are dropped, and so is the job.
	return e.store.Update(ctx, func(tx store.Tx) error { return tx.Leases.Settle(ctx, job.ID, job.Fence, time.Time{}) })
}

// worthTelling keeps the history short: the first failures and then every
// doubling of their number.
func worthTelling(attempt int) bool { return attempt <= 3 || attempt&(attempt-1) == 0 }

// backoff is how long to wait after the given attempt, counted from 1: doubling,
// bounded, and spread so that what failed together is not repeated together.
func backoff(attempt int) time.Duration {
	wait := retryMax
	if attempt < 10 {
		wait = min(retryMax, retryFirst<<max(attempt-1, 0))
	}
	return wait/2 + rand.N(wait/2)
}
