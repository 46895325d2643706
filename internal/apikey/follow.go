package apikey

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/store"
)

const (
	// followBatch is how many documents are read at once.
	followBatch = 2000
	// followPoll is how often the store is read without having been woken: what is
	// known is at most so old while the store answers.
	followPoll = time.Second
	// followTime bounds one look.
	followTime = 30 * time.Second
)

// follow keeps the table equal to what is stored, until ctx ends.
func (s *Service) follow(ctx context.Context) {
	follower := store.Follower{
		Store: s.config.Store, Topic: store.TopicDocs, Poll: followPoll,
		Failed: func(ctx context.Context, err error) {
			s.config.Logger.ErrorContext(ctx, "the API keys could not be read; what is known is served on, for a time", "error", err, "for", s.config.Stale)
		},
	}
	follower.Run(ctx, s.catchUp)
}

// catchUp takes over what has changed.
func (s *Service) catchUp(ctx context.Context) error {
	s.catching.Lock()
	defer s.catching.Unlock()
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	if err := s.peppers.load(ctx, &s.config, false); err != nil {
		return err
	}
	if last := s.fresh.Load(); last != 0 && s.config.Now().UnixNano()-last > int64(goneKept/2) {
		// Documents of removed versions may be gone: what is known is no base any more.
		s.ready.Store(false)
		s.rev.Store(0)
		s.table.Clear()
		s.fresh.Store(0)
	}
	if !s.ready.Load() && !s.config.Alone {
		// The others know of this node before it answers: what they change from now on
		// waits for it, what they changed before it reads now.
		if err := s.say(ctx, beat{At: s.config.Now().UTC()}); err != nil {
			return err
		}
	}
	for rev := s.rev.Load(); ; {
		began := s.config.Now()
		var docs []store.Doc
		err := s.config.Store.View(ctx, func(tx store.Tx) error {
			var err error
			if docs, err = tx.Index.Since(ctx, kindEntry, rev, followBatch); err != nil {
				return err
			}
			return s.heed(ctx, tx)
		})
		if err != nil {
			return err
		}
		for i := range docs {
			s.take(ctx, docs[i])
			rev = docs[i].Rev
		}
		if len(docs) == followBatch {
			continue
		}
		s.fresh.Store(began.UnixNano())
		s.advance(rev)
		return nil
	}
}

// advance notes up to which revision the table has everything, and wakes those
// who wait for it.
func (s *Service) advance(rev uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready.Swap(true) && s.rev.Load() == rev {
		return
	}
	s.rev.Store(rev)
	close(s.moved)
	s.moved = make(chan struct{})
}

// arrived returns a channel that is closed when the table moves on.
func (s *Service) arrived() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

// take puts one document into the table. One that is damaged is left out: its
// version is let in nowhere.
func (s *Service) take(ctx context.Context, doc store.Doc) {
	r, err := decode(doc)
	var e keytable.Entry
	if err == nil {
		e, err = r.entry()
	}
	switch {
	case err != nil:
	case r.Dropped:
		s.table.Delete(&e.Hash)
	default: // of a removed version it is still known whose it was
		err = s.table.Put(&e)
	}
	switch {
	case err != nil:
	case s.ready.Load():
		s.verifiers.changed(doc.Rev, &e, r.Dropped)
	default:
		s.verifiers.skip(doc.Rev)
	}
	if err != nil {
		s.config.Logger.ErrorContext(ctx, "an API key is left out", "document", doc.Name, "error", err)
	}
}

const (
	// sweepEvery is how often what has expired is deleted.
	sweepEvery = 10 * time.Minute
)

// sweep deletes documents that have had their time, until ctx ends.
func (s *Service) sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, kind := range []string{kindEntry, kindNode, kindUse, kindTried, kindAsked, kindVerifier} {
			if err := store.Sweep(ctx, s.config.Store, kind, s.config.Now, func(tx store.Tx, doc store.Doc) error { return s.sweepDoc(ctx, tx, doc) }); err != nil && ctx.Err() == nil {
				s.config.Logger.WarnContext(ctx, "what has expired of API keys could not be deleted; trying again later", "error", err)
			}
		}
	}
}

// sweepDoc deletes a document. That of a removed version first says that the
// version is dropped, and is deleted when every node has read that.
func (s *Service) sweepDoc(ctx context.Context, tx store.Tx, doc store.Doc) error {
	if doc.Kind == kindEntry {
		if r, err := decode(doc); err == nil && !r.Dropped {
			r.Dropped = true
			if doc.Body, err = json.Marshal(r); err != nil {
				return fmt.Errorf("encode %s: %w", doc.Name, err)
			}
			doc.Due = s.config.Now().UTC().Add(goneKept)
			_, err = tx.Docs.Put(ctx, doc)
			return err
		}
	}
	return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
}

// heed lets this node tell at once how far it is when another one has asked.
func (s *Service) heed(ctx context.Context, tx store.Tx) error {
	doc, err := store.Revision(ctx, tx.Docs, kindAsk, askName)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || s.heeded.Swap(doc.Rev) == doc.Rev {
		return err
	}
	select {
	case s.askedFor <- struct{}{}:
	default:
	}
	return nil
}

// demand asks the other nodes how far they are.
func (s *Service) demand(ctx context.Context) error {
	if s.config.Alone {
		return nil
	}
	return s.config.Store.Update(ctx, func(tx store.Tx) error {
		doc, err := store.Revision(ctx, tx.Docs, kindAsk, askName)
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindAsk, Name: askName}, nil
		}
		if err == nil {
			_, err = tx.Docs.Put(ctx, doc)
		}
		return err
	})
}
