package store

import (
	"context"
	"time"
)

// Follower looks at a store again and again: how processes follow what others commit.
//
// It guarantees:
//
//   - Looks do not overlap. One begins after every commit that touched Topic since the
//     last one began; those during a look, or the pause after it, are answered by one.
//   - Wake-ups may be lost: a look begins by itself when Poll has passed.
//   - A look that fails is repeated like any other, so a store that is down is asked
//     once per Poll. It keeps its position itself, and nothing is skipped.
//   - The end of ctx ends it, after the look that is under way.
type Follower struct {
	// Store is watched for Topic. Required.
	Store Store
	Topic Topic
	// Pause is how long after a wake-up the look begins: what is committed meanwhile is
	// answered by it as well.
	Pause time.Duration
	// Poll is the time between looks that nothing woke. Required.
	Poll time.Duration
	// Later puts the first look off by Pause.
	Later bool
	// Wake, if it is not nil, makes a look begin as a commit does.
	Wake <-chan struct{}
	// Soon, if it is not nil, is asked after each look for how long at most it is to
	// the next; 0: as Poll says.
	Soon func() time.Duration
	// Failed, if it is not nil, is told of the first failure of several in a row, unless
	// ctx had ended.
	Failed func(ctx context.Context, err error)
}

// Run looks until ctx ends.
func (f *Follower) Run(ctx context.Context, look func(context.Context) error) {
	woken := f.Store.Watch(ctx, f.Topic)
	poll := time.NewTicker(f.Poll)
	defer poll.Stop()
	first := time.Duration(0)
	if f.Later {
		first = f.Pause
	}
	pause := time.NewTimer(first)
	defer pause.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		// One look answers all that has come up to now.
		drain(woken)
		drain(f.Wake)
		drain(poll.C)
		err := look(ctx)
		if err != nil && !failing && f.Failed != nil && ctx.Err() == nil {
			f.Failed(ctx, err)
		}
		failing = err != nil
		var soon <-chan time.Time
		if f.Soon != nil {
			if wait := f.Soon(); wait > 0 {
				soon = time.After(wait)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-woken:
		case <-f.Wake:
		case <-soon:
		case <-poll.C:
		}
		pause.Reset(f.Pause)
	}
}

func drain[T any](c <-chan T) {
	select {
	case <-c:
	default:
	}
}

// newerBatch is how many documents Newer reads at once.
const newerBatch = 512

// Newer calls take with the documents of a kind that were written after a revision, in
// the order of their revisions, until there are no more or take fails. It returns the
// revision of the last one that was taken: whoever goes on from there misses none. take
// is called outside of transactions.
func Newer(ctx context.Context, s Store, kind string, after uint64, take func(*Doc) error) (uint64, error) {
	for {
		var docs []Doc
		err := s.View(ctx, func(tx Tx) error {
			var err error
			docs, err = tx.Index.Since(ctx, kind, after, newerBatch)
			return err
		})
		if err != nil {
			return after, err
		}
		for i := range docs {
			if err := take(&docs[i]); err != nil {
				return after, err
			}
			after = docs[i].Rev
		}
		if len(docs) < newerBatch {
			return after, nil
		}
	}
}
