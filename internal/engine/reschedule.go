package engine

import (
	"context"
	"errors"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

const (
	// kindCadence is when the cadence of a policy changed last, by the policy's name.
	kindCadence = "cadence"
	// kindReview is a look at all keys that a changed policy or freeze may concern,
	// by the kind and name of the resource.
	kindReview = "review"

	// reviewBatch is how many keys share a transaction, and reviewPause how long the
	// store is left to others between two.
	reviewBatch = 256
	reviewPause = 20 * time.Millisecond
)

// cadenceRecord is the body of a document of kindCadence.
type cadenceRecord struct {
	Since time.Time `json:"since"`
}

// reviewRecord is the body of a document of kindReview: how far it is.
type reviewRecord struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	After string `json:"after,omitempty"`
}

// cadenceSince returns when the cadence of a policy changed last, zero if it never did.
func cadenceSince(ctx context.Context, tx store.Tx, policyName string) (time.Time, error) {
	var record cadenceRecord
	doc, err := tx.Docs.Get(ctx, kindCadence, policyName)
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	if err == nil {
		err = decodeInto(doc.Body, &record)
	}
	return record.Since, err
}

// reschedule begins a review of the keys that a policy or freeze may concern. The
// resource itself is in force at once, whenever a key is considered: the review
// finds those that became due earlier than was noted at them. It is carried on in
// small transactions, and by the next start if need be, so that a change costs the
// same however many keys there are.
func (c *change) reschedule(change policy.Change, before []policy.Resource, resource policy.Resource) error {
	review := reviewRecord{Kind: kindFreeze, Name: change.Name}
	if change.Kind == policy.KindPolicy {
		review.Kind = kindPolicy
		old, had := find(before, change.Kind, change.Name)
		if had && change.Op != policy.Deleted && !old.Policy.Spec.Rotate.SameCadence(resource.Policy.Spec.Rotate) {
			if err := c.replace(store.Doc{Kind: kindCadence, Name: change.Name}, cadenceRecord{Since: c.now}); err != nil {
				return err
			}
		}
	}
	c.wake = true
	return c.replace(store.Doc{Kind: kindReview, Name: review.Kind + " " + review.Name, Due: c.now}, review)
}

// replace writes a document whatever there was before.
func (c *change) replace(doc store.Doc, record any) error {
	old, err := store.Revision(c.ctx, c.tx.Docs, doc.Kind, doc.Name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	doc.Rev = old.Rev
	if doc.Body, err = encode(record); err != nil {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

// keepReviews carries on reviews, until ctx ends.
func (e *Engine) keepReviews(ctx context.Context) {
	e.keepTime(ctx, kindReview, e.reviews, func(ctx context.Context, name key.Name) error { return e.review(ctx, string(name)) })
}

// review looks at the next keys.
func (e *Engine) review(ctx context.Context, name string) error {
	return e.update(ctx, Server(), func(c *change) error {
		doc, err := c.tx.Docs.Get(ctx, kindReview, name)
		if errors.Is(err, store.ErrNotFound) || err == nil && doc.Due.After(c.now) {
			return nil // somebody else was faster
		}
		if err != nil {
			return err
		}
		var record reviewRecord
		if err := decodeInto(doc.Body, &record); err != nil {
			return err
		}
		docs, err := c.tx.Index.List(ctx, kindKey, "", record.After, reviewBatch)
		if err != nil {
			return err
		}
		for _, reviewed := range docs {
			record.After = reviewed.Name
			if err := c.reviewKey(&record, reviewed); err != nil {
				return err
			}
		}
		if len(docs) < reviewBatch {
			return c.tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
		}
		if doc.Body, err = encode(record); err != nil {
			return err
		}
		doc.Due = c.now.Add(reviewPause)
		_, err = c.tx.Docs.Put(ctx, doc)
		return err
	})
}

// Scheduled lists keys by the last time that they were applied, or that it was noted
// anew when they are due: of the next limit keys after a revision the names of those
// that are wanted by their provider and config. It returns the revision to go on
// after, which is that one when there are no more. A key that is deleted is not listed.
func (e *Engine) Scheduled(ctx context.Context, after uint64, limit int, wanted func(driver string, config provider.Config) bool) (names []key.Name, next uint64, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		names, next = nil, after
		docs, err := tx.Index.Since(ctx, kindKey, after, limit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			spec, err := specNamed(doc)
			if next = doc.Rev; err != nil || wanted(spec.Provider, spec.Config) { // one that is damaged is told of by whoever reads it
				names = append(names, key.Name(doc.Name))
			}
		}
		return nil
	})
	return names, next, err
}

// reviewKey notes at a key when to consider it, if that is news.
func (c *change) reviewKey(review *reviewRecord, doc store.Doc) error {
	if review.Kind == kindPolicy {
		follows, err := policyNamed(doc)
		if err != nil || follows != review.Name {
			return err
		}
	}
	record, k, err := c.e.decodeKey(doc)
	if err != nil {
		return err
	}
	due := c.now
	decision, err := c.decide(&record, &k)
	switch {
	case err != nil:
		// Considering it tells what is wrong.
	case !decision.Due:
		due = lookAgain(c.now, decision.At)
	}
	if due.Equal(doc.Due) {
		return nil
	}
	doc.Due = due
	return c.putKey(doc, &record, &k)
}
