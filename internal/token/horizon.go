package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// expirySteps is into how many steps the life of a token is divided for counting.
const expirySteps = 8

// reserve takes a token's expiry into account before it is signed: at most until
// what is written. It fails when nothing of at least least is left.
func (a *active) reserve(now time.Time, life, least time.Duration) (expires time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	issued := now.Truncate(time.Second)
	expires = issued.Add(life)
	if a.until.Before(expires) {
		expires = a.until.Truncate(time.Second)
	}
	if a.ended || expires.Sub(issued) < least {
		return time.Time{}, false
	}
	if expires.After(a.last) {
		a.last = expires
	}
	a.issued++
	step := max(life/expirySteps, time.Second)
	a.expires[expires.Add(step-1).Truncate(step).Unix()]++
	return expires, true
}

// keepHorizons writes ahead until when tokens may live, and how many there are.
func (s *Signer) keepHorizons(ctx context.Context) {
	failing := false
	for {
		err := s.settle(ctx)
		if due := s.due(); err == nil && len(due) > 0 {
			err = s.extend(ctx, due)
		}
		if err != nil && ctx.Err() == nil && !failing {
			s.config.Logger.WarnContext(ctx, "the life of tokens cannot be written to the store; tokens are signed until what was written ends", "error", err)
		}
		failing = err != nil
		s.report(ctx)
		timer := time.NewTimer(min(s.config.Outage/8, 5*time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.wake:
			timer.Stop()
			if failing {
				pause(ctx, s.config.Retry)
			}
		case <-timer.C:
		}
	}
}

// report tells how the versions in use fare.
func (s *Signer) report(ctx context.Context) {
	if s.config.Report == nil {
		return
	}
	s.mu.RLock()
	list := slices.Collect(maps.Values(s.active))
	s.mu.RUnlock()
	for _, a := range list {
		failed, err := s.config.Board.accepts(a)
		if err == nil {
			err = s.config.Report(ctx, a.key, a.version, failed)
		}
		if err != nil && ctx.Err() == nil {
			s.config.Logger.DebugContext(ctx, "how a signing key fares could not be reported", "key", a.key, "error", err)
		}
	}
}

// accepts says why a token of a version is not accepted by the published set. The
// token lives in this function. It fails when the node cannot know what is published.
func (b *Board) accepts(a *active) (failed, err error) {
	b.mu.RLock()
	p := b.sets[a.key]
	err = b.fresh()
	b.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if p == nil || p.keys[a.keyID].Public == nil {
		return nil, fmt.Errorf("%w: %s of %s is not published", ErrNotReady, a.version, a.key)
	}
	signed, err := a.signers[JWT].Sign([]byte(`{}`))
	if err != nil {
		return err, nil
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		return err, nil
	}
	_, failed = p.keys.verify(compact)
	return failed, nil
}

// due returns what must be written: horizons that come near, and new counts.
func (s *Signer) due() []*active {
	s.mu.RLock()
	list := slices.Collect(maps.Values(s.active))
	s.mu.RUnlock()
	now := s.config.Now()
	return slices.DeleteFunc(list, func(a *active) bool {
		_, life, err := s.config.Board.profile(a.key)
		a.mu.Lock()
		defer a.mu.Unlock()
		near := err == nil && a.until.Sub(now) < life+s.config.Outage*3/4
		return !near && a.issued == a.counted
	})
}

// extend writes that tokens of these versions may live for their full life from any
// time within Outage on.
func (s *Signer) extend(ctx context.Context, list []*active) error {
	now := s.config.Now().UTC()
	until := make([]time.Time, len(list))
	for i, a := range list {
		_, life, err := s.config.Board.profile(a.key)
		if err != nil {
			continue // it is a signing key no more
		}
		until[i] = now.Add(life + s.config.Outage)
	}
	return s.write(ctx, list, until)
}

// settle writes when the last token expires of versions that are not signed with any
// more.
func (s *Signer) settle(ctx context.Context) error {
	s.mu.RLock()
	list := slices.Collect(maps.Keys(s.settling))
	s.mu.RUnlock()
	if len(list) == 0 {
		return nil
	}
	until := make([]time.Time, len(list))
	for i, a := range list {
		a.mu.Lock()
		a.ended = true // whoever signs has reserved before
		until[i] = a.last
		a.mu.Unlock()
	}
	if err := s.write(ctx, list, until); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range list {
		delete(s.settling, a)
	}
	return nil
}

// write stores the horizons of versions, with the counts so far. A zero time leaves
// a horizon as it is.
func (s *Signer) write(ctx context.Context, list []*active, until []time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, meetTime)
	defer cancel()
	records := make([]use, len(list))
	for i, a := range list {
		a.mu.Lock()
		if until[i].IsZero() && !a.ended {
			until[i] = a.until
		}
		records[i] = use{Until: until[i], Node: s.config.Node, Issued: a.issued, Expiries: a.counts(s.config.Now())}
		a.mu.Unlock()
	}
	err := s.config.Store.Update(ctx, func(tx store.Tx) error {
		for i, a := range list {
			body, err := json.Marshal(records[i])
			if err != nil {
				return err
			}
			known, err := store.Revision(ctx, tx.Docs, kindUse, a.document)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			doc := store.Doc{Kind: kindUse, Name: a.document, Rev: known.Rev, Due: records[i].Until.Add(kept), Body: body}
			if records[i].Until.IsZero() {
				doc.Due = s.config.Now().Add(kept)
			}
			if _, err = tx.Docs.Put(ctx, doc); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, a := range list {
		a.mu.Lock()
		a.until, a.counted = until[i], records[i].Issued
		a.mu.Unlock()
	}
	return nil
}

// counts returns how many tokens expire by when; the caller holds the lock.
func (a *active) counts(now time.Time) []expiry {
	maps.DeleteFunc(a.expires, func(by int64, _ uint64) bool { return by < now.Unix() })
	list := make([]expiry, 0, len(a.expires))
	for _, by := range slices.Sorted(maps.Keys(a.expires)) {
		list = append(list, expiry{By: time.Unix(by, 0).UTC(), Tokens: a.expires[by]})
	}
	return list
}

// Tokens counts the tokens of a version that have not expired, to the knowledge of
// every server node. It is zero only when none can be valid any more; with more
// than none it may be too low by what was signed in the last seconds. After a restore
// of the store what was written later is missing: until the longest life of a token
// has passed there may be tokens that nobody knows of.
func (b *Board) Tokens(ctx context.Context, name key.Name, v key.Version) (provider.Usage, error) {
	now := b.config.Now()
	nodes := map[string]*provider.Holder{}
	var restored time.Time
	var err error
	if b.config.Restored != nil {
		if restored, err = b.config.Restored(ctx); err != nil {
			return provider.Usage{}, err
		}
	}
	err = b.config.Store.View(ctx, func(tx store.Tx) error {
		clear(nodes)
		if !restored.IsZero() {
			s, _, err := readSet(ctx, tx, name)
			if err != nil {
				return err
			}
			// A node of before may have been cut off, and have signed on for an outage.
			until := restored.Add(b.config.Outage + max(s.TokenLife, s.LongestLife) + b.config.Skew)
			if now.Before(until) {
				nodes[""] = &provider.Holder{Sessions: 1, Application: fmt.Sprintf(
					"tokens signed before the store was restored, which nobody counted; the last expires by %s", until.UTC().Format(time.RFC3339))}
			}
		}
		for after := ""; ; {
			docs, err := tx.Index.List(ctx, kindUse, usePrefix(name, v), after, batch)
			if err != nil {
				return err
			}
			for i := range docs {
				if err := countUse(nodes, &docs[i], now, b.config.Skew); err != nil {
					return err
				}
				after = docs[i].Name
			}
			if len(docs) < batch {
				return nil
			}
		}
	})
	if err != nil {
		return provider.Usage{}, err
	}
	usage := provider.Usage{}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		usage.Sessions += nodes[node].Sessions
		usage.Holders = append(usage.Holders, *nodes[node])
	}
	slices.SortStableFunc(usage.Holders, func(x, y provider.Holder) int { return y.Sessions - x.Sessions })
	usage.Holders = usage.Holders[:min(len(usage.Holders), provider.MaxHolders)]
	return usage, nil
}

// countUse adds what one process says of its tokens.
func countUse(nodes map[string]*provider.Holder, doc *store.Doc, now time.Time, skew time.Duration) error {
	u, err := decode[use](doc)
	if err != nil {
		return err
	}
	if !u.Until.Add(skew).After(now) {
		return nil
	}
	var alive uint64
	for _, e := range u.Expiries {
		if e.By.Add(skew).After(now) {
			alive += e.Tokens
		}
	}
	const most = 1 << 30
	if nodes[u.Node] == nil {
		nodes[u.Node] = &provider.Holder{}
	}
	h := nodes[u.Node]
	h.Sessions = min(h.Sessions+int(min(max(alive, 1), most)), most)
	h.Application = fmt.Sprintf("tokens signed by server node %s, the last expires by %s", u.Node, u.Until.Format(time.RFC3339))
	return nil
}
