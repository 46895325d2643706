package engine

import (
	"sync"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// maxCachedStates bounds the memory of decoded states.
const maxCachedStates = 4096

// stateCache holds decoded states by the revision of their documents, so that a
// busy key is not decoded for every event. A State is a value that nobody
// changes, so it can be shared. Revisions are never used twice, so a state may
// be put before its transaction commits.
type stateCache struct {
	mu     sync.Mutex
	states map[key.Name]cachedState
}

type cachedState struct {
	rev   uint64
	state rotation.State
}

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
	if c.states == nil || len(c.states) >= maxCachedStates {
		c.states = make(map[key.Name]cachedState)
	}
	c.states[name] = cachedState{rev: rev, state: state}
}
