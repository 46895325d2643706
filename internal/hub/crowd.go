package hub

import "time"

const (
	// spreadEach is how much time a node gives itself for each acknowledgement.
	spreadEach = 100 * time.Microsecond
	// crowdFrom is from how many that are due they are spread.
	crowdFrom = 2000
	// maxSpread bounds over which time: clients wait for no longer than that.
	maxSpread = 10 * time.Second
)

// crowd spreads acknowledgements over the time that a node needs for them: those of
// all keys that are told at about the same time, since each of them alone may be few.
type crowd struct{ busy time.Time }

// spread is over which time n parties should answer that are told now; 0 when they
// need not wait.
func (c *crowd) spread(now time.Time, n int) time.Duration {
	if c.busy.Before(now) {
		c.busy = now
	}
	c.busy = c.busy.Add(time.Duration(n) * spreadEach)
	if limit := now.Add(maxSpread); c.busy.After(limit) {
		c.busy = limit
	}
	if d := c.busy.Sub(now); d >= crowdFrom*spreadEach {
		return d
	}
	return 0
}
