package relay

import (
	"testing"
	"time"
)

// TestOwed: what strikes a version from what a party may be using, and what does not.
func TestOwed(t *testing.T) {
	mine, other := subject{1}, subject{2}
	for name, test := range map[string]struct {
		then  func(*owed, *time.Time)
		holds bool
	}{
		"nothing":                          {func(*owed, *time.Time) {}, true},
		"the centre knows of it":           {func(o *owed, _ *time.Time) { o.known("p", "k", 1) }, false},
		"the centre knows of another one":  {func(o *owed, _ *time.Time) { o.known("p", "k", 2) }, true},
		"of another party":                 {func(o *owed, _ *time.Time) { o.known("q", "k", 1) }, true},
		"it says that it uses another one": {func(o *owed, _ *time.Time) { o.acked("p", mine, "k", 8, 2, false) }, false},
		"another token says so":            {func(o *owed, _ *time.Time) { o.acked("p", other, "k", 8, 2, false) }, true},
		"another token, and the centre":    {func(o *owed, _ *time.Time) { o.acked("p", other, "k", 8, 2, true) }, false},
		"what it says is older":            {func(o *owed, _ *time.Time) { o.acked("p", mine, "k", 7, 2, true) }, true},
		"it says that it uses it":          {func(o *owed, _ *time.Time) { o.acked("p", mine, "k", 8, 1, false) }, true},
		"and the centre has told it so":    {func(o *owed, _ *time.Time) { o.acked("p", mine, "k", 8, 1, true) }, false},
		"it left":                          {func(o *owed, _ *time.Time) { o.left("p", mine, false) }, false},
		"another token says that it left":  {func(o *owed, _ *time.Time) { o.left("p", other, false) }, true},
		"it is there":                      {func(o *owed, now *time.Time) { *now = now.Add(time.Hour); o.expire() }, true},
		"it is gone":                       {func(o *owed, now *time.Time) { o.leave("p"); *now = now.Add(119 * time.Second); o.expire() }, true},
		"it is gone for long":              {func(o *owed, now *time.Time) { o.leave("p"); *now = now.Add(2 * time.Minute); o.expire() }, false},
		"one of two connections is gone": {func(o *owed, now *time.Time) {
			o.arrive("p", mine, false, false)
			o.leave("p")
			*now = now.Add(time.Hour)
			o.expire()
		}, true},
		"another token takes the name": {func(o *owed, _ *time.Time) { o.arrive("p", other, false, true); o.acked("p", other, "k", 8, 2, false) }, true},
		"and says that it left":        {func(o *owed, _ *time.Time) { o.arrive("p", other, false, true); o.left("p", other, false) }, true},
		"an agent is gone for long": {func(o *owed, now *time.Time) {
			o.arrive("p", mine, true, true)
			o.leave("p")
			o.leave("p")
			*now = now.Add(time.Hour)
			o.expire()
		}, true},
		"an agent is gone for even longer": {func(o *owed, now *time.Time) {
			o.arrive("p", mine, true, true)
			o.leave("p")
			o.leave("p")
			*now = now.Add(24 * time.Hour)
			o.expire()
		}, false},
		"who was served before may be back": {func(o *owed, now *time.Time) { o.known("p", "k", 1); o.until = now.Add(time.Second) }, true},
	} {
		now := time.Unix(1, 0)
		o := newOwed(&Config{Monotonic: func() time.Time { return now }, ForgetClients: 2 * time.Minute, ServeFor: 24 * time.Hour})
		o.arrive("p", mine, false, true)
		o.vouch("p", "k", 1, 7)
		test.then(o, &now)
		if got := o.holds("k", 2); got != test.holds {
			t.Errorf("%s: holds %v, want %v", name, got, test.holds)
		}
		if o.holds("k", 1) && name != "who was served before may be back" {
			t.Errorf("%s: the version that it uses holds its own acknowledgement up", name)
		}
		if o.holds("other", 2) && name != "who was served before may be back" {
			t.Errorf("%s: another key is held up", name)
		}
	}
}
