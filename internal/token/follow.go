package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

const (
	// batch is how many documents are read or written in one transaction.
	batch = 500
	// meetTime bounds one exchange with the store.
	meetTime = 10 * time.Second
	// kept is how long documents of nodes and processes are kept that are over.
	kept = 24 * time.Hour
	// sweepEvery is how often those are deleted.
	sweepEvery = 10 * time.Minute
)

// Start reads what is published and follows it until Stop. It fails when the store
// does not answer.
func (b *Board) Start(ctx context.Context) error {
	if err := b.meet(ctx, false); err != nil {
		return fmt.Errorf("read what is published: %w", err)
	}
	ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	b.running.Go(func() { b.run(ctx) })
	return nil
}

// Stop ends following, notes fetches that were not noted yet, and tells other nodes
// that this one serves nothing any more. The caller has stopped serving before.
func (b *Board) Stop(ctx context.Context) {
	if b.cancel == nil {
		return
	}
	b.cancel()
	b.running.Wait()
	b.mu.Lock()
	b.loaded = false
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := b.flush(ctx); err != nil {
		b.config.Logger.InfoContext(ctx, "the last fetches of signing keys could not be noted", "error", err)
	}
	if err := b.say(ctx, true); err != nil {
		b.config.Logger.InfoContext(ctx, "other server nodes were not told of the stop; signing keys change when this node counts as dead", "error", err)
	}
}

func (b *Board) run(ctx context.Context) {
	follower := store.Follower{
		Store: b.config.Store, Topic: store.TopicDocs, Pause: b.config.Look, Poll: min(b.config.Poll, b.config.Flush), Later: true,
		Failed: func(ctx context.Context, err error) {
			b.config.Logger.WarnContext(ctx, "published signing keys cannot be followed; they are served from memory", "for", b.config.Outage, "error", err)
		},
	}
	swept := b.config.Now()
	follower.Run(ctx, func(ctx context.Context) error {
		err := b.meet(ctx, true)
		if now := b.config.Now(); err == nil && now.Sub(swept) >= sweepEvery {
			swept, err = now, b.sweep(ctx)
		}
		return err
	})
}

// meet is one exchange with the store: what others changed, and what happened here.
func (b *Board) meet(ctx context.Context, flush bool) error {
	ctx, cancel := context.WithTimeout(ctx, meetTime)
	defer cancel()
	if !b.isLoaded() {
		// Others wait for this node before it reads: it misses nothing.
		if err := b.say(ctx, false); err != nil {
			return err
		}
	}
	b.mu.Lock()
	unsaid := b.unsaid
	b.unsaid = false // what is shown from now on is told now, or the next time
	b.mu.Unlock()
	advanced, err := b.look(ctx)
	b.mu.Lock()
	due := unsaid || advanced || !b.loaded || b.config.Now().Sub(b.said) >= b.config.Outage/4
	b.mu.Unlock()
	if err == nil && due {
		err = b.say(ctx, false)
	}
	b.mu.Lock()
	if err != nil {
		b.unsaid = b.unsaid || due
		b.mu.Unlock()
		return err
	}
	b.loaded = true
	b.mu.Unlock()
	if !flush {
		return nil
	}
	return b.flush(ctx)
}

func (b *Board) isLoaded() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.loaded
}

// look takes over what has changed in the store, and says whether other nodes need
// to hear of it.
func (b *Board) look(ctx context.Context) (advanced bool, err error) {
	b.mu.RLock()
	rev := b.rev
	b.mu.RUnlock()
	_, err = store.Newer(ctx, b.config.Store, kindSet, rev, func(doc *store.Doc) error {
		news, err := b.show(doc)
		if err != nil {
			return err
		}
		advanced = advanced || news
		b.mu.Lock()
		defer b.mu.Unlock()
		b.rev = doc.Rev
		return nil
	})
	return advanced, err
}

// say tells other nodes what this one serves. It may serve for Config.Outage from
// then on.
func (b *Board) say(ctx context.Context, left bool) error {
	b.mu.RLock()
	record := nodeRecord{Rev: b.rev, At: b.config.Now().UTC(), Left: left}
	b.mu.RUnlock()
	body, err := json.Marshal(record)
	if err != nil {
		return err
	}
	doc := store.Doc{Kind: kindNode, Name: b.config.Node, Due: record.At.Add(kept + b.config.Outage), Body: body}
	err = b.config.Store.Update(ctx, func(tx store.Tx) error {
		// Only this node writes it; a process of before may have.
		known, err := store.Revision(ctx, tx.Docs, kindNode, doc.Name)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		doc.Rev = known.Rev
		_, err = tx.Docs.Put(ctx, doc)
		return err
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.said = record.At
	b.mu.Unlock()
	return nil
}

// sweep deletes what nodes and processes left behind that are long over.
func (b *Board) sweep(ctx context.Context) error {
	for _, kind := range []string{kindNode, kindUse} {
		if err := store.Sweep(ctx, b.config.Store, kind, b.config.Now, nil); err != nil {
			return err
		}
	}
	return nil
}

type fetchOf struct {
	key      key.Name
	endpoint string
}

// Fetched notes that a page was delivered in full, or that the reader holds it as
// it is. It counts for the verifier whose set it is, if the address is one of its
// networks.
func (b *Board) Fetched(page *Page, address netip.Addr) {
	if page.endpoint == "" || page.endpoint == Published || !address.IsValid() {
		return
	}
	address = address.Unmap().WithZone("")
	if len(page.from) > 0 && !slices.ContainsFunc(page.from, func(p netip.Prefix) bool { return p.Contains(address) }) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetched[fetchOf{page.key, page.endpoint}] = fetch{Seq: page.seq, At: b.config.Now().UTC(), Address: address.String()}
}

// flush notes fetches in the store, at most batch of them.
func (b *Board) flush(ctx context.Context) error {
	b.mu.Lock()
	if len(b.fetched) == 0 {
		b.mu.Unlock()
		return nil
	}
	taken := b.fetched
	b.fetched = map[fetchOf]fetch{}
	b.mu.Unlock()
	err := b.config.Store.Update(ctx, func(tx store.Tx) error {
		for of, f := range taken {
			doc, err := tx.Docs.Get(ctx, kindFetch, fetchName(of.key, of.endpoint))
			if errors.Is(err, store.ErrNotFound) {
				doc, err = store.Doc{Kind: kindFetch, Name: fetchName(of.key, of.endpoint)}, nil
			}
			if err != nil {
				return err
			}
			if doc.Rev != 0 {
				known, err := decode[fetch](&doc)
				if err != nil {
					return err
				}
				if known.At.After(f.At) {
					continue // at another node, later
				}
			}
			if doc.Body, err = json.Marshal(f); err != nil {
				return err
			}
			if _, err := tx.Docs.Put(ctx, doc); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.Copy(taken, b.fetched) // newer ones win
	b.fetched = taken
	return err
}
