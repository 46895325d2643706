package policy_test

import (
	"errors"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
)

// FuzzWindow: whatever cron line and time zone, a window that is accepted opens, and
// goes on opening later and later, without one opening inside another; nothing that
// is accepted takes long to look at.
func FuzzWindow(f *testing.F) {
	for _, w := range [][2]string{
		{"0 2 * * 1-5", "UTC"},
		{"30 2 * * *", "Europe/Berlin"},
		{"*/5 * * * *", ""},
		{"0 0 29 2 *", "Pacific/Apia"},
		{"0 0 31 2 *", "UTC"},
		{"0 0 29 2 1", "UTC"},
		{"0 0 * * 7", "Local"},
		{"0-59/1 0-23 1-31 1-12 0-6", "Australia/Lord_Howe"},
		{"@daily", "UTC"},
		{"@every 1ns", "UTC"},
		{"TZ=UTC 0 0 * * *", "UTC"},
		{"0 0 L * *", "UTC"},
		{"0 0 * * MON#2", "UTC"},
		{"60 0 * * *", "UTC"},
		{"0 0 0 * *", "UTC"},
		{"1-0 * * * *", "UTC"},
		{"*/0 * * * *", "UTC"},
		{"*/99999999999999999999 * * * *", "UTC"},
		{"H H * * *", "UTC"},
		{"0 0 * * *", "../../etc/passwd"},
		{"0 0 * * *", "\x00"},
		{"", "UTC"},
		{"0 0 1W * *", "UTC"},
	} {
		f.Add(w[0], w[1], int64(30*time.Minute), int64(1_800_000_000))
	}
	f.Fuzz(func(t *testing.T, cron, zone string, duration, now int64) {
		p := policy.Default()
		p.Metadata.Name = "windows"
		p.Spec.Rotate = policy.Rotate{Every: policy.Duration(30 * 24 * time.Hour), Windows: []policy.Window{{Cron: cron, Duration: policy.Duration(duration), Timezone: zone}}}
		began := time.Now()
		compiled, err := policy.Compile(p)
		if err != nil {
			var problems policy.Problems
			if !errors.As(err, &problems) {
				t.Fatalf("the error is not Problems: %v", err)
			}
			return
		}
		at := time.Unix(now%8_000_000_000, 0).UTC()
		var last policy.Occurrence
		for range 20 {
			next, ok := compiled.NextWindow(at)
			if !ok {
				return // in years that are far away
			}
			if !next.Close.After(at) || next.Close.Sub(next.Open) != time.Duration(duration) || next.Open.Before(last.Open) {
				t.Fatalf("%q in %q: at %v comes %+v, after %+v", cron, zone, at, next, last)
			}
			if again, _ := compiled.NextWindow(next.Open); again != next && !again.Open.Before(next.Open) {
				t.Fatalf("%q in %q: %+v is not open when it opens: %+v", cron, zone, next, again)
			}
			last, at = next, next.Close
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Fatalf("%q in %q takes %v", cron, zone, took)
		}
	})
}
