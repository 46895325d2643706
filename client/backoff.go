package client

import (
	"math"
	"time"
)

// backoff bounds the time between two tries. Its waits follow "full jitter":
// uniformly random below an exponentially growing ceiling, which spreads a fleet
// that lost its server at one moment evenly over the whole interval.
type backoff struct{ least, most time.Duration }

// wait returns the pause before the try after attempt failures (1, 2, …).
// r is a random number in [0, 1). The result lies in [least/4, most), and no
// moment in it is likelier than another.
func (b backoff) wait(attempt int, factor, r float64) time.Duration {
	ceiling := float64(b.most)
	// The exponent is bounded, so that a year of failures does not overflow.
	if grown := float64(b.least) * math.Pow(factor, float64(min(max(attempt-1, 0), 60))); grown < ceiling {
		ceiling = grown
	}
	floor := float64(b.least) / 4
	return time.Duration(floor + (ceiling-floor)*r)
}

// around returns a random duration between half and one and a half times mean.
func around(mean time.Duration, r float64) time.Duration {
	return mean/2 + time.Duration(float64(mean)*r)
}
