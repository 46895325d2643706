package anomaly_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
)

const day = 24 * time.Hour

// habit says from where a key is used at a time.
type habit func(r *rand.Rand, after time.Duration) string

func among(n int) habit {
	return func(r *rand.Rand, _ time.Duration) string {
		i := r.IntN(n)
		return fmt.Sprintf("10.%d.%d.%d", i/250, i%250, 1+r.IntN(250))
	}
}

// moving also meets a network that it never met before, again and again.
func moving(usual habit, every time.Duration) habit {
	met := time.Duration(0)
	return func(r *rand.Rand, after time.Duration) string {
		if n := after / every; n > met {
			met = n
			return fmt.Sprintf("172.%d.%d.1", 16+n/250, n%250)
		}
		return usual(r, after)
	}
}

// TestAlarmsOfNewNetworks states how often use.newNetwork is wrong, for keys that are
// used every three minutes for four weeks, and that a thief is found still.
func TestAlarmsOfNewNetworks(t *testing.T) {
	const weeks = 28 * day
	for name, test := range map[string]struct {
		learn string
		used  habit
		// alarms is how many there are at most without a thief, least how many at least.
		least, alarms int
		// found says that a thief in a network of his own is found.
		found bool
	}{
		"quiet: two networks":                              {"1d", among(2), 0, 0, true},
		"quiet: and another one every ten days":            {"1d", moving(among(2), 10*day), 2, 2, true},
		"busy: 400 networks":                               {"7d", among(400), 0, 0, true},
		"busy: 2,000 networks, more than are remembered":   {"7d", among(2000), 0, 0, false},
		"moving: a network every two days":                 {"7d", moving(among(5), 2*day), 7, 11, true},
		"moving: eight new networks a day":                 {"7d", moving(among(50), 3*time.Hour), 0, 0, false},
		"moving: eight new networks a day, learnt one day": {"1d", moving(among(50), 3*time.Hour), 50, 70, false},
	} {
		t.Run(name, func(t *testing.T) {
			list := rules(t, `{when: use.newNetwork, then: alert, learn: `+test.learn+`}`)
			r := rand.New(rand.NewPCG(1, 2))
			var uses []anomaly.Use
			for at := time.Duration(0); at < weeks; at += 3 * time.Minute {
				uses = append(uses, use(at, test.used(r, at)))
			}
			m, verdicts := anomaly.Fold(anomaly.Memory{}, list, orders, uses)
			checkBounds(t, &m)
			t.Logf("%d alarms of %d uses", len(verdicts), len(uses))
			if len(verdicts) < test.least || len(verdicts) > test.alarms {
				t.Errorf("%d alarms, not %d to %d: %s", len(verdicts), test.least, test.alarms, told(verdicts))
			}
			_, verdicts = anomaly.Fold(m, list, orders, []anomaly.Use{use(weeks+2*time.Hour, "203.0.113.9")})
			if found := len(verdicts) == 1; found != test.found {
				t.Errorf("a thief is found: %t; %s", found, told(verdicts))
			}
		})
	}
}

// TestSourcesAreLearntApart: a source that begins to tell of a key tells of nothing
// new, and does not make what another counts twice as much; then its own is new.
func TestSourcesAreLearntApart(t *testing.T) {
	list := rules(t, `{when: use.newNetwork || use.newApplication, then: alert}`, `{when: 'use.total > 10', then: alert}`)
	var uses []anomaly.Use
	for i := range 100 {
		one := use(time.Duration(i)*time.Hour, "10.0.0.1")
		one.Count = 8
		uses = append(uses, one)
		if i >= 50 {
			one.Source, one.Address, one.Application = "presenter", "192.0.2.1", "orders-1"
			uses = append(uses, one)
		}
	}
	m, verdicts := anomaly.Fold(anomaly.Memory{}, list, orders, uses)
	if len(verdicts) > 0 {
		t.Error(told(verdicts))
	}
	one := use(101*time.Hour, "192.0.2.1") // known to the other source
	if m, verdicts = anomaly.Fold(m, list, orders, []anomaly.Use{one}); len(verdicts) != 1 {
		t.Error(told(verdicts))
	}
	one.At = one.At.Add(2 * time.Hour)
	if _, verdicts = anomaly.Fold(m, list, orders, []anomaly.Use{one}); len(verdicts) != 0 {
		t.Error(told(verdicts))
	}
}
