package engine

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindNews are the documents, one for each key, that change when presenters are
// told something or a bake begins or ends. They are small, so that other nodes on
// the same store can follow all of them without reading states.
const kindNews = "news"

// kindMark is a document that is written to learn the present revision.
const kindMark = "mark"

// news is what other nodes hear of a key.
type news struct {
	// Epoch is that of the latest telling of somebody who had not asked: who arrives
	// for the first time hears of it in the answer, at the node where it arrived.
	Epoch uint64 `json:"epoch,omitempty"`
	// Bake is the version that is judged, Since when its bake began.
	Bake  key.Version `json:"bake,omitempty"`
	Since time.Time   `json:"since,omitzero"`
	// Told is when that telling was decided.
	Told time.Time `json:"told,omitzero"`
}

// bakeOf is what the news say of the bake.
func bakeOf(state *rotation.State) (v key.Version, since time.Time) {
	if cut, open := state.CutOver(); open && cut.Phase == rotation.Presenting && !cut.BakeSince.IsZero() {
		return cut.To, cut.BakeSince
	}
	return 0, time.Time{}
}

// tellsUnasked reports whether a step told somebody other than those who arrived by it
// for the first time. Who was here before may have come elsewhere since, and its old
// request been late.
func tellsUnasked(before, after *rotation.State, body rotation.Body) bool {
	if after.Epoch == before.Epoch {
		return false
	}
	arrived := map[string]bool{}
	arrives := func(id string) {
		_, known := before.Presenter(id)
		arrived[id] = !known
	}
	switch body := body.(type) {
	case rotation.Joined:
		arrives(body.ID)
	case rotation.Arrived:
		for i := range body.Joins {
			arrives(body.Joins[i].ID)
		}
	}
	return slices.ContainsFunc(after.Presenters, func(p rotation.Presenter) bool {
		return p.Told != 0 && p.Epoch > before.Epoch && !arrived[p.ID]
	})
}

// publish writes the key's news if a step changed them.
func (c *change) publish(name key.Name, before, after *rotation.State, body rotation.Body) error {
	var is news
	was, since := bakeOf(before)
	is.Bake, is.Since = bakeOf(after)
	told := tellsUnasked(before, after, body)
	if !told && was == is.Bake && since.Equal(is.Since) {
		return nil
	}
	doc, err := c.tx.Docs.Get(c.ctx, kindNews, string(name))
	if errors.Is(err, store.ErrNotFound) {
		doc, err = store.Doc{Kind: kindNews, Name: string(name)}, nil
	}
	if err != nil {
		return err
	}
	var stored news
	if len(doc.Body) > 0 {
		if err := decodeInto(doc.Body, &stored); err != nil {
			return err
		}
	}
	is.Epoch, is.Told = stored.Epoch, stored.Told
	if told {
		is.Epoch, is.Told = after.Epoch, c.now
	}
	if doc.Body, err = encode(is); err != nil {
		return err
	}
	if _, err := c.tx.Docs.Put(c.ctx, doc); err != nil {
		return err
	}
	if c.news == nil {
		c.news = map[key.Name]ownNews{}
	}
	own, ok := c.news[name]
	if !ok {
		own.from = stored.Epoch
	}
	own.news = is
	c.news[name] = own
	return nil
}

// ownNews are news that this node made; from is the epoch before.
type ownNews struct {
	news
	from uint64
}

// follower passes on to the presenters that are connected here what was decided
// at other nodes.
type follower struct {
	mu sync.Mutex
	// told is the epoch up to which the presenters of a key were told here.
	told map[key.Name]uint64
	// ready is closed when every later telling is going to be followed; nil when
	// nothing is.
	ready chan struct{}
}

// begin is called by each start.
func (f *follower) begin() (follows func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ready := make(chan struct{})
	f.ready, f.told = ready, nil
	return func() { close(ready) }
}

// wait waits until a presenter that reads its assignment misses no later one.
func (f *follower) wait(ctx context.Context) error {
	f.mu.Lock()
	ready := f.ready
	f.mu.Unlock()
	if ready == nil {
		return nil
	}
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// own notes what this node has told by itself. A telling of another node that was
// missed in between is left to follow.
func (f *follower) own(name key.Name, own ownNews) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.told[name] == own.from {
		f.set(name, own.Epoch)
	}
}

func (f *follower) set(name key.Name, epoch uint64) {
	if f.told == nil {
		f.told = map[key.Name]uint64{}
	}
	f.told[name] = epoch
}

func (f *follower) get(name key.Name) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.told[name]
}

// keep forgets the keys that nobody here presents.
func (f *follower) keep(present func(key.Name) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.told {
		if !present(name) {
			delete(f.told, name)
		}
	}
}

const (
	// followPause is how long after a commit news are read: what is decided meanwhile
	// is read together.
	followPause = 5 * time.Millisecond
	// followPoll is how often news are looked for without having been woken.
	followPoll = 2 * time.Second
)

// mark returns the present revision of the store. What was written before need
// not be followed: who connects reads it.
func (e *Engine) mark(ctx context.Context) (rev uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, followPoll)
	defer cancel()
	err = e.store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindMark, "news")
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindMark, Name: "news"}, nil
		}
		if err == nil {
			rev, err = tx.Docs.Put(ctx, doc)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return rev, nil
}

// follow passes on the news of other nodes until ctx ends. It calls follows once
// it misses none any more.
func (e *Engine) follow(ctx context.Context, follows func()) {
	rev, err := e.mark(ctx)
	if err != nil && ctx.Err() == nil {
		e.log.WarnContext(ctx, "the present revision is not known; the news of all keys are read instead", "error", err)
	}
	follows()
	follower := store.Follower{
		Store: e.store, Topic: store.TopicDocs, Pause: followPause, Poll: followPoll,
		Failed: func(ctx context.Context, err error) {
			e.log.ErrorContext(ctx, "the news of other server nodes could not be read; trying again", "error", err)
		},
	}
	looks := 0
	follower.Run(ctx, func(ctx context.Context) (err error) {
		if looks++; looks%1000 == 0 {
			e.news.keep(e.config.Fleet.Present)
		}
		rev, err = store.Newer(ctx, e.store, kindNews, rev, func(doc *store.Doc) error { return e.passOn(ctx, doc) })
		return err
	})
}

// passOn tells the presenters of a key that are connected here what they were
// not told yet. Telling them twice is harmless: they drop what they know.
func (e *Engine) passOn(ctx context.Context, doc *store.Doc) error {
	name := key.Name(doc.Name)
	var n news
	if err := decodeInto(doc.Body, &n); err != nil {
		return err
	}
	if baker, ok := e.config.Fleet.(Baker); ok {
		baker.Baking(name, n.Bake, n.Since)
	}
	if !e.config.Fleet.Present(name) {
		return nil // whoever connects later reads the state
	}
	from := e.news.get(name)
	if n.Epoch <= from {
		return nil
	}
	var state rotation.State
	err := e.store.View(ctx, func(tx store.Tx) error {
		var err error
		state, err = e.readState(ctx, tx, name)
		return err
	})
	if err != nil {
		return err
	}
	var tells []Tell
	for i := range state.Presenters {
		if p := &state.Presenters[i]; p.Told != 0 && p.Epoch > from {
			tell := tellOf(&state, p)
			tell.Unanswered, tell.At = false, n.Told // it is no reconnection
			tells = append(tells, tell)
		}
	}
	e.config.Fleet.Tell(name, tells)
	e.news.mu.Lock()
	defer e.news.mu.Unlock()
	e.news.set(name, n.Epoch)
	return nil
}

// Bake returns the version of a key that is judged and when its bake began; 0
// when none is.
func (e *Engine) Bake(ctx context.Context, name key.Name) (v key.Version, since time.Time, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindNews, string(name))
		if err != nil {
			return err
		}
		var n news
		err = decodeInto(doc.Body, &n)
		v, since = n.Bake, n.Since
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return 0, time.Time{}, nil
	}
	return v, since, err
}
