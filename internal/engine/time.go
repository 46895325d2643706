package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// dueBatch is how many due documents are handled before time is read again.
const dueBatch = 256

// maxTogether bounds how many due documents are handled at the same time; what is
// handled together shares commits.
const maxTogether = 32

// wakeUp makes the time-keepers look at once.
func (e *Engine) wakeUp() {
	for _, keeper := range []chan struct{}{e.ticks, e.schedules, e.reviews} {
		select {
		case keeper <- struct{}{}:
		default:
		}
	}
}

// keepRotations tells rotations the time when they wait for it, until ctx ends.
func (e *Engine) keepRotations(ctx context.Context) { e.keepTime(ctx, kindState, e.ticks, e.tick) }

// keepSchedules begins rotations that are due, until ctx ends. It is apart from
// keepRotations, so that many keys that are due delay no rotation that has begun.
func (e *Engine) keepSchedules(ctx context.Context) {
	e.keepTime(ctx, kindKey, e.schedules, e.consider)
}

// keepTime calls handle for the documents of a kind when they are due.
func (e *Engine) keepTime(ctx context.Context, kind string, woken <-chan struct{}, handle func(context.Context, key.Name) error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-woken:
		}
		timer.Reset(e.lookAround(ctx, kind, handle))
	}
}

// lookAround handles what is due and returns after how long to look again.
func (e *Engine) lookAround(ctx context.Context, kind string, handle func(context.Context, key.Name) error) time.Duration {
	e.each(ctx, kind, handle)
	var next time.Time
	err := e.store.View(ctx, func(tx store.Tx) error {
		docs, err := tx.Index.Due(ctx, kind, e.config.Now().Add(e.config.Poll), 1)
		if len(docs) > 0 {
			next = docs[0].Due
		}
		return err
	})
	if err != nil || next.IsZero() {
		return e.config.Poll
	}
	wait := next.Sub(e.config.Now())
	if wait <= 0 {
		// It became due meanwhile.
		wait = time.Millisecond
	}
	return min(wait, e.config.Poll)
}

// Tick does once what the time-keepers do when they look around: it handles what
// is due, and returns when that is done. Its cost grows with what is due, not with
// what exists.
func (e *Engine) Tick(ctx context.Context) error {
	e.lookAround(ctx, kindState, e.tick)
	e.lookAround(ctx, kindKey, e.consider)
	e.lookAround(ctx, kindReview, func(ctx context.Context, name key.Name) error { return e.review(ctx, string(name)) })
	return ctx.Err()
}

// each calls handle for every document of a kind that is due.
func (e *Engine) each(ctx context.Context, kind string, handle func(context.Context, key.Name) error) {
	for {
		var docs []store.Doc
		err := e.store.View(ctx, func(tx store.Tx) error {
			var err error
			docs, err = tx.Index.Due(ctx, kind, e.config.Now(), dueBatch)
			return err
		})
		if err != nil {
			if ctx.Err() == nil {
				e.log.ErrorContext(ctx, "what is due could not be read; trying again", "kind", kind, "error", err)
			}
			return
		}
		var silent atomic.Bool
		var running sync.WaitGroup
		slots := make(chan struct{}, maxTogether)
		for _, doc := range docs {
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				err := handle(ctx, key.Name(doc.Name))
				if err == nil || ctx.Err() != nil {
					return
				}
				e.log.ErrorContext(ctx, "a key that is due could not be handled; trying again later", "key", doc.Name, "after", failedLater, "error", err)
				if e.postpone(ctx, doc) != nil {
					silent.Store(true) // the store itself does not answer
				}
			})
		}
		running.Wait()
		if len(docs) < dueBatch || silent.Load() || ctx.Err() != nil {
			return
		}
	}
}

// failedLater is how long a key that could not be handled stands back, so that
// it neither spins nor keeps others waiting.
const failedLater = 10 * time.Second

// postpone makes a document due later, unless it changed meanwhile.
func (e *Engine) postpone(ctx context.Context, due store.Doc) error {
	err := e.store.Update(ctx, func(tx store.Tx) error {
		later := due
		later.Due = e.config.Now().UTC().Add(failedLater)
		_, err := tx.Docs.Put(ctx, later)
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}

// tick tells a key's rotations the time.
func (e *Engine) tick(ctx context.Context, name key.Name) error {
	err := e.update(ctx, Server(), func(c *change) error {
		_, doc, err := c.state(name)
		if err != nil {
			return err
		}
		if doc.Due.IsZero() || doc.Due.After(c.now) {
			return rotation.ErrStale // somebody else was faster
		}
		_, err = c.step(name, key.RotationID{}, rotation.Tick{})
		return err
	})
	if errors.Is(err, rotation.ErrStale) {
		return nil
	}
	return err
}

// signLog signs the audit log at the start and as it grows, until ctx ends. What
// stands there at the start may have come from a process that died before it signed.
func (e *Engine) signLog(ctx context.Context) {
	grown := e.store.Watch(ctx, store.TopicLog)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		signed, err := e.Checkpoint(ctx)
		if err == nil && len(signed) > 0 && e.config.Seen != nil {
			e.config.Seen(signed)
		}
		if err != nil && ctx.Err() == nil && !failing {
			e.log.ErrorContext(ctx, "the audit log could not be signed; trying again", "error", err)
		}
		failing = err != nil
		pause.Reset(e.config.CheckpointEvery)
		if failing {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-grown:
		}
	}
}
