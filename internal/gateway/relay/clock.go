package relay

import (
	"sync"
	"time"
)

// clock is a wall clock that does not go back while the process runs, nor behind what
// the cache has seen.
type clock struct {
	wall, monotonic func() time.Time

	mu    sync.Mutex
	floor time.Time
	at    time.Time // of monotonic, when floor was the time
}

// now returns the later one of the wall clock and what has passed since it was latest.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, mono := c.wall().UTC().Round(0), c.monotonic()
	if !c.floor.IsZero() {
		if passed := c.floor.Add(mono.Sub(c.at)); passed.After(wall) {
			return passed
		}
	}
	c.floor, c.at = wall, mono
	return wall
}

// since sets the latest time that an earlier process has seen.
func (c *clock) since(floor time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floor, c.at = floor, c.monotonic()
}
