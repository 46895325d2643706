package apikeycheck

import (
	"math"
	"testing"
	"time"
)

// TestClock: what is old by the wall's clock or by the process's own is old; setting the
// wall's back makes nothing younger.
func TestClock(t *testing.T) {
	now := time.Now()
	c := clock{now.Add(-time.Hour)}
	const minute = int64(time.Minute)
	for what, one := range map[string]struct {
		moment *moment
		want   int64
	}{
		"never":                         {nil, math.MaxInt64},
		"a minute ago":                  {c.at(now, time.Minute), minute},
		"set back by an hour since":     {&moment{wall: now.Add(59 * time.Minute).UnixNano(), own: int64(59 * time.Minute)}, minute},
		"asleep for a minute":           {&moment{wall: now.Add(-2 * time.Minute).UnixNano(), own: int64(59 * time.Minute)}, 2 * minute},
		"noted by the process before":   {c.restored(now, now.Add(-time.Minute).UnixNano()), minute},
		"noted before the clock went":   {c.restored(now, now.Add(time.Nanosecond).UnixNano()), math.MaxInt64},
		"nothing was noted":             {c.restored(now, 0), math.MaxInt64},
		"before the process had begun":  {c.restored(now, now.Add(-2*time.Hour).UnixNano()), 120 * minute},
		"as the server says it was old": {c.at(now, 3*time.Hour), 180 * minute},
	} {
		if got := c.since(one.moment, now); got != one.want {
			t.Errorf("%s: %v ago, want %v", what, time.Duration(got), time.Duration(one.want))
		}
	}
}
