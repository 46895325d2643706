package apikey

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/provider"
)

const (
	// deadAfter is after how long without a word a node is taken for dead: a new key
	// does not wait for it. It does not say itself then that a key is bad.
	deadAfter = 12 * time.Second
	// beatEvery is the time between words of a node that knows no key.
	beatEvery = 4 * time.Second
	// staleMargin is what clocks may differ by, and what a look may take.
	staleMargin = followTime + 2*time.Second
	// maxNodes bounds the nodes that are waited for.
	maxNodes = 1000
)

// beat is what a node tells the others.
type beat struct {
	// Rev is what it serves, Flushed up to when its uses are written.
	Rev     uint64    `json:"rev"`
	Flushed time.Time `json:"flushed"`
	At      time.Time `json:"at"`
}

// peer is another node as it last told.
type peer struct {
	name string
	beat
}

// peers reads what the nodes told, this one included.
func (s *Service) peers(ctx context.Context, tx store.Tx) ([]peer, error) {
	if s.config.Alone {
		return nil, nil
	}
	docs, err := tx.Index.List(ctx, kindNode, "", "", maxNodes)
	if err != nil {
		return nil, err
	}
	list := make([]peer, len(docs))
	for i, doc := range docs {
		list[i].name = doc.Name
		if err := json.Unmarshal(doc.Body, &list[i].beat); err != nil {
			return nil, fmt.Errorf("stored node %s is damaged: %w", doc.Name, err)
		}
	}
	return list, nil
}

const (
	// waitTime is how long a call waits for a change to arrive everywhere; then it is
	// to be asked again, after askAgain.
	waitTime = 5 * time.Second
	askAgain = time.Second
	// lookPause gathers those that arrive together.
	lookPause = 5 * time.Millisecond
)

// everywhere returns once every node and every verifier outside that may answer
// serves revision rev: what was changed at that time. It fails with
// provider.Later, and names those it waits for.
func (s *Service) everywhere(ctx context.Context, rev uint64, changed time.Time, accepted bool) error {
	waiting, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	woken := s.config.Store.Watch(waiting, store.TopicDocs)
	poll := time.NewTicker(followPoll)
	defer poll.Stop()
	var behind []string
	for {
		moved, heard := s.arrived(), s.verifiers.heard()
		var list []peer
		var outside map[string]verifier
		err := s.config.Store.View(waiting, func(tx store.Tx) error {
			var err error
			if list, err = s.peers(waiting, tx); err == nil {
				outside, err = s.listVerifiers(waiting, tx)
			}
			return err
		})
		if err != nil && waiting.Err() == nil {
			return err
		}
		if err == nil {
			behind = append(s.behind(list, rev, changed, accepted), lateVerifiers(outside, s.config.Now(), rev, changed, accepted)...)
		}
		if err == nil && len(behind) == 0 {
			return nil
		}
		select {
		case <-waiting.Done():
			err := fmt.Errorf("it has not arrived at %s", someNames(behind))
			if ctx.Err() != nil {
				return fmt.Errorf("%w: %w", err, ctx.Err())
			}
			return provider.Later(askAgain, err)
		case <-woken:
		case <-moved:
		case <-heard:
		case <-poll.C:
		}
		pause := time.NewTimer(lookPause)
		select {
		case <-pause.C:
		case <-waiting.Done():
		}
		pause.Stop()
	}
}

// behind names the nodes that do not serve revision rev and must be waited for.
func (s *Service) behind(list []peer, rev uint64, changed time.Time, accepted bool) []string {
	now := s.config.Now()
	var names []string
	if s.rev.Load() < rev {
		names = append(names, s.config.Node)
	}
	for i := range list {
		p := &list[i]
		switch {
		case p.name == s.config.Node || p.Rev >= rev:
		case accepted && now.Sub(p.At) > deadAfter:
			// It does not refuse what it does not know.
		case now.Sub(p.At) > s.config.Stale+staleMargin, now.Sub(p.At) > deadAfter && now.Sub(changed) > s.config.Stale+staleMargin:
			// By itself it serves nothing any more.
		default:
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// tell writes uses and how far this node is, until ctx ends.
func (s *Service) tell(ctx context.Context) {
	ticker := time.NewTicker(s.config.FlushEvery)
	defer ticker.Stop()
	failing, asked := false, false
	for {
		moved := s.arrived()
		err := s.flush(ctx, asked)
		if err != nil && ctx.Err() == nil && !failing {
			s.config.Logger.WarnContext(ctx, "uses of API keys could not be written; they are counted on", "error", err)
		}
		failing, asked = err != nil, false
		select {
		case <-ctx.Done():
			return
		case <-moved:
		case <-s.askedFor:
			asked = true
		case <-ticker.C:
		}
	}
}

// flush writes the uses since the last one, and this node's beat when there is
// it is time, or asked for.
func (s *Service) flush(ctx context.Context, asked bool) error {
	if !s.ready.Load() {
		return nil
	}
	s.flushing.Lock()
	defer s.flushing.Unlock()
	now := s.config.Now().UTC()
	rev := s.rev.Load()
	if err := errors.Join(s.writeUses(ctx, now), s.writeReports(ctx, now), s.writeRefused(ctx, now)); err != nil {
		return err
	}
	if s.config.Alone {
		return nil
	}
	next := beat{Rev: rev, Flushed: now, At: now}
	told := s.told.Load()
	every := s.config.FlushEvery // whoever counts uses waits for it
	if rev == 0 {
		every = beatEvery
	}
	if !asked && told.Rev == next.Rev && now.Sub(told.At) < every && now.Sub(told.At) >= 0 {
		return nil
	}
	return s.say(ctx, next)
}

// say tells the other nodes how far this one is.
func (s *Service) say(ctx context.Context, b beat) error {
	body, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("encode the beat: %w", err)
	}
	err = s.config.Store.Update(ctx, func(tx store.Tx) error {
		doc, err := store.Revision(ctx, tx.Docs, kindNode, s.config.Node)
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindNode, Name: s.config.Node}, nil
		}
		if err != nil {
			return err
		}
		doc.Body, doc.Due = body, b.At.Add(s.config.Stale+staleMargin+goneKept)
		_, err = tx.Docs.Put(ctx, doc)
		return err
	})
	if err == nil {
		s.told.Store(&b)
	}
	return err
}

// leave writes what is left and takes the node out of those that are waited for.
func (s *Service) leave(ctx context.Context) error {
	now := s.config.Now().UTC()
	err := errors.Join(s.writeUses(ctx, now), s.writeReports(ctx, now), s.writeRefused(ctx, now))
	if s.config.Alone {
		return err
	}
	return errors.Join(err, s.config.Store.Update(ctx, func(tx store.Tx) error {
		doc, err := store.Revision(ctx, tx.Docs, kindNode, s.config.Node)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return tx.Docs.Delete(ctx, kindNode, s.config.Node, doc.Rev)
	}))
}
