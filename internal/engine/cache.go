package engine

import (
	"bytes"
	"sync"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// maxCachedStates bounds the memory of decoded states: each counts as stateWeight
// presenters beside its own. It is about 60 MB.
const (
	maxCachedStates = 400_000
	stateWeight     = 8
)

// stateCache holds decoded states by the revision of their documents, so that a
// busy key is not decoded for every event. A State is a value that nobody
// changes, so it can be shared. Only what is committed is put: the revision of a
// transaction that is rolled back is given to another one, maybe of another
// process, and would then stand for another state.
//
// What was just written, and is not known to be committed, is kept with its bytes:
// transactions that share a commit, or follow one closely, find it by comparing them.
type stateCache struct {
	mu     sync.Mutex
	states map[key.Name]cachedState
	weight int
	drafts map[key.Name]draft
}

type cachedState struct {
	rev   uint64
	state rotation.State
}

// draft is a state that was written, and how.
type draft struct {
	rev   uint64
	body  []byte
	state rotation.State
}

// maxDrafts bounds the number of drafts. They are of large states only, and go when
// what was written is committed.
const maxDrafts = 16

// wrote keeps a state that a transaction has just written.
func (c *stateCache) wrote(name key.Name, doc *store.Doc, state rotation.State) {
	if len(state.Presenters) < worthCaching {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drafts == nil {
		c.drafts = map[key.Name]draft{}
	}
	if _, known := c.drafts[name]; !known && len(c.drafts) >= maxDrafts {
		clear(c.drafts)
	}
	c.drafts[name] = draft{rev: doc.Rev, body: doc.Body, state: state}
}

// written returns the state of a document that was written just so.
func (c *stateCache) written(name key.Name, doc *store.Doc) (rotation.State, bool) {
	c.mu.Lock()
	d, ok := c.drafts[name]
	c.mu.Unlock()
	if !ok || d.rev != doc.Rev || !bytes.Equal(d.body, doc.Body) {
		return rotation.State{}, false
	}
	return d.state, true
}

func (s *cachedState) weight() int { return stateWeight + len(s.state.Presenters) }

func (c *stateCache) get(name key.Name, rev uint64) (rotation.State, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cached, ok := c.states[name]
	if !ok || cached.rev != rev {
		return rotation.State{}, false
	}
	return cached.state, true
}

func (c *stateCache) put(name key.Name, rev uint64, state rotation.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.drafts[name]; ok && d.rev <= rev {
		delete(c.drafts, name)
	}
	if c.states == nil {
		c.states = make(map[key.Name]cachedState)
	}
	if c.states[name].rev >= rev {
		return // it is known, or a later one was faster
	}
	c.drop(name)
	put := cachedState{rev: rev, state: state}
	c.weight += put.weight()
	for other := range c.states {
		if c.weight <= maxCachedStates {
			break
		}
		c.drop(other)
	}
	c.states[name] = put
}

// drop is called under the lock.
func (c *stateCache) drop(name key.Name) {
	if old, ok := c.states[name]; ok {
		c.weight -= old.weight()
		delete(c.states, name)
	}
}

// maxCachedContents bounds the memory of what was made of stored bytes.
const maxCachedContents = 4096

// contentCache keeps what was made of stored bytes, by name, as long as the bytes
// stay the same: a resource is parsed when it changes, not for every event. It
// compares the bytes, not their revision, so that it holds no matter which
// transaction saw them. What it returns is shared and must not be changed. The
// zero value is empty.
type contentCache[T any] struct {
	mu      sync.Mutex
	entries map[string]cachedContent[T]
}

type cachedContent[T any] struct {
	body  []byte
	value T
}

// get returns what build made of body. Two callers may build the same at the same time.
func (c *contentCache[T]) get(name string, body []byte, build func() (T, error)) (T, error) {
	c.mu.Lock()
	cached, ok := c.entries[name]
	c.mu.Unlock()
	if ok && bytes.Equal(cached.body, body) {
		return cached.value, nil
	}
	value, err := build()
	if err != nil {
		return value, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[string]cachedContent[T]{}
	}
	if !ok && len(c.entries) >= maxCachedContents {
		for other := range c.entries {
			delete(c.entries, other)
			break
		}
	}
	c.entries[name] = cachedContent[T]{body: bytes.Clone(body), value: value}
	return value, nil
}
