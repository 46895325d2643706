package notices

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

const (
	// kindPlan are keys of which somebody has to be told at a time, by their names;
	// they are due then.
	kindPlan = "notice-plan"
	// kindFollowed is how far changes of keys were followed: one document.
	kindFollowed = "notice-followed"
	followedName = "keys"
)

const (
	// scheduleBatch is how many keys are read, or looked at, at once.
	scheduleBatch = 500
	// followLimit and planLimit bound the batches of one look: what is left is for the
	// next one, and notices are sent between the two.
	followLimit = 40
	planLimit   = 4
	// postponed is how long a key stands back that could not be looked at, so that it
	// keeps no other one waiting.
	postponed = 10 * time.Minute
	// maxFailures bounds the keys that an error names.
	maxFailures = 3
)

// ScheduleConfig is what a Schedule needs; all fields are required.
type ScheduleConfig struct {
	Store store.Store
	Now   func() time.Time
	// Changed lists keys whose plan may have changed after a revision, and returns the
	// revision to go on after: that one itself when there are no more.
	Changed func(ctx context.Context, after uint64, limit int) (names []key.Name, next uint64, err error)
	// Plan notes what is to be told of a key by now, and returns when to look at it
	// again; zero: not before it changes. It may be called for a key that is gone, and by
	// several nodes for one key.
	Plan func(ctx context.Context, name key.Name) (next time.Time, err error)
}

// Schedule knows when to look at which key. It is kept in the store, and shared by
// the nodes. A look costs what has changed and what is due, however many keys there
// are; its memory is bounded. Its methods may be called concurrently.
type Schedule struct{ config ScheduleConfig }

// NewSchedule returns a schedule.
func NewSchedule(config ScheduleConfig) *Schedule { return &Schedule{config: config} }

// followed is the body of the document of kindFollowed.
type followed struct {
	Revision uint64 `json:"revision"`
}

// Look follows what has changed, and plans what is due, up to some thousand keys. What
// fails stands back, and the rest goes on; the error tells of it.
func (s *Schedule) Look(ctx context.Context) error {
	for more, n := true, 0; more && n < followLimit; n++ {
		var err error
		if more, err = s.follow(ctx); err != nil {
			return err
		}
	}
	var failed []error
	for more, n := true, 0; more && n < planLimit; n++ {
		docs, err := s.due(ctx)
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		for _, doc := range docs {
			failure, err := s.plan(ctx, doc)
			if failure != nil && len(failed) < maxFailures {
				failed = append(failed, fmt.Errorf("%s: %w", doc.Name, failure))
			}
			if err != nil {
				return errors.Join(append(failed, err)...)
			}
		}
		more = len(docs) == scheduleBatch
	}
	return errors.Join(failed...)
}

// follow makes keys that have changed due, and reports whether there may be more.
func (s *Schedule) follow(ctx context.Context) (more bool, err error) {
	at := store.Doc{Kind: kindFollowed, Name: followedName}
	var from followed
	err = s.config.Store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, at.Kind, at.Name)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		at.Rev = doc.Rev
		if err == nil && json.Unmarshal(doc.Body, &from) != nil {
			from = followed{} // from the beginning: it costs time, and tells nobody twice
		}
		return err
	})
	if err != nil {
		return false, err
	}
	names, next, err := s.config.Changed(ctx, from.Revision, scheduleBatch)
	if err != nil || next == from.Revision {
		return false, err
	}
	if at.Body, err = json.Marshal(followed{next}); err != nil {
		return false, fmt.Errorf("encode how far keys were followed: %w", err)
	}
	now := s.config.Now().UTC()
	err = s.config.Store.Update(ctx, func(tx store.Tx) error {
		if _, err := tx.Docs.Put(ctx, at); err != nil {
			return err
		}
		for _, name := range names {
			doc, err := store.Revision(ctx, tx.Docs, kindPlan, string(name))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if _, err := tx.Docs.Put(ctx, store.Doc{Kind: kindPlan, Name: string(name), Rev: doc.Rev, Due: now}); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, store.ErrConflict) {
		return true, nil // another node followed the same
	}
	return true, err
}

// due returns the keys to look at now.
func (s *Schedule) due(ctx context.Context) (docs []store.Doc, err error) {
	err = s.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		docs, err = tx.Index.Due(ctx, kindPlan, s.config.Now(), scheduleBatch)
		return err
	})
	return docs, err
}

// plan looks at one key, and notes when to do so again, unless it has changed
// meanwhile or another node was faster. failure is that of the key, err that of the
// store.
func (s *Schedule) plan(ctx context.Context, doc store.Doc) (failure, err error) {
	next, failure := s.config.Plan(ctx, key.Name(doc.Name))
	now := s.config.Now().UTC()
	switch {
	case failure != nil:
		next = now.Add(postponed)
	case !next.IsZero() && !next.After(now):
		next = now.Add(time.Second) // a plan that is due for ever must not spin
	}
	err = s.config.Store.Update(ctx, func(tx store.Tx) error {
		if next.IsZero() {
			return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
		}
		later := doc
		later.Due = next
		_, err := tx.Docs.Put(ctx, later)
		return err
	})
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return failure, err
}
