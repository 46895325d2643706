package apikeycheck

import (
	"math"
	"time"
)

// clock measures by two clocks: the wall's, which may be set back, and the process's
// own, which may stand still while the machine sleeps. What is old by either is old.
type clock struct{ started time.Time }

// moment is when something was, in nanoseconds: since 1970, and since the clock started.
type moment struct{ wall, own int64 }

// read returns the present moment.
func (c clock) read(now time.Time) moment {
	return moment{wall: now.UnixNano(), own: int64(now.Sub(c.started))}
}

// at returns the moment that was so long before now.
func (c clock) at(now time.Time, before time.Duration) *moment {
	return &moment{wall: now.UnixNano() - int64(before), own: int64(now.Sub(c.started) - before)}
}

// since returns how long ago it was, in nanoseconds; for ever if it is nil.
func (c clock) since(m *moment, now time.Time) int64 {
	if m == nil {
		return math.MaxInt64
	}
	return max(now.UnixNano()-m.wall, int64(now.Sub(c.started))-m.own)
}

// restored returns the moment that the process before has noted by the wall's clock:
// nil if that is still to come, because the clock was set back.
func (c clock) restored(now time.Time, wall int64) *moment {
	before := now.UnixNano() - wall
	if wall <= 0 || before < 0 {
		return nil
	}
	return c.at(now, time.Duration(before))
}
