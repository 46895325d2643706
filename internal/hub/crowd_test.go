package hub

import (
	"testing"
	"time"
)

// TestCrowd: a crowd of several keys is one crowd, what it was given is over some
// time, and nobody waits for longer than clients do.
func TestCrowd(t *testing.T) {
	var c crowd
	at := time.Now()
	for _, told := range []struct {
		after time.Duration
		n     int
		want  time.Duration
	}{
		{0, 1, 0},
		{time.Second, crowdFrom - 1, 0},
		{0, 1, 200 * time.Millisecond},
		{0, 1000, 300 * time.Millisecond},
		{250 * time.Millisecond, 1000, 0}, // most have answered
		{0, 1000, 250 * time.Millisecond},
		{time.Minute, 1000, 0},
		{time.Minute, 10_000, time.Second},
		{0, 10_000_000, maxSpread},
		{0, 10_000_000, maxSpread},
		{time.Second, 0, maxSpread - time.Second},
	} {
		at = at.Add(told.after)
		if got := c.spread(at, told.n); got != told.want {
			t.Errorf("%d are told after %v: spread over %v, want %v", told.n, told.after, got, told.want)
		}
	}
}
