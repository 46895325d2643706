package policy_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
)

// compile compiles a policy from the fields of its spec.
func compile(t testing.TB, spec string) *policy.Compiled {
	t.Helper()
	src := "apiVersion: keyturn/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n  " + strings.ReplaceAll(spec, "\n", "\n  ") + "\n"
	resources, err := policy.Parse("p.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	c, err := policy.Compile(*resources[0].Policy)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func at(t testing.TB, s string) time.Time {
	t.Helper()
	parsed, err := time.Parse("2006-01-02 15:04 MST", s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// night is the schedule of most tests: every 30 days, on working days from 02:00 to 05:00 UTC.
const night = `rotate: {every: 30d, jitter: 2h, windows: [{cron: "0 2 * * 1-5", duration: 3h}]}
stages: [{name: all, bake: 10m}]`

func expect(t *testing.T, d policy.Decision, due bool, reason policy.Reason) {
	t.Helper()
	if d.Due != due || d.Reason != reason || d.Message == "" {
		t.Errorf("got due %v, %v (%s), at %v; want due %v, %v", d.Due, d.Reason, d.Message, d.At, due, reason)
	}
}

func TestDueNeedsScheduleVersionAndNoOpenRotation(t *testing.T) {
	now := at(t, "2026-11-23 03:00 UTC")
	old := now.AddDate(-1, 0, 0)
	expect(t, compile(t, "quarantine: 1h").Due(now, policy.Facts{Created: old}), false, policy.ReasonNoSchedule)
	c := compile(t, night)
	expect(t, c.Due(now, policy.Facts{}), false, policy.ReasonNoVersion)
	expect(t, c.Due(now, policy.Facts{Created: old, Open: true}), false, policy.ReasonOpen)
	late := at(t, "2026-11-23 04:45 UTC")
	expect(t, c.Due(late, policy.Facts{Created: old}), true, policy.ReasonDue)
	expect(t, c.Due(at(t, "2026-11-23 04:51 UTC"), policy.Facts{Created: old}), false, policy.ReasonWindow)
}

// Pains of vault#30687, #30320, #29537: rotation on upgrade or restart. Due has
// no memory, so that a restart is a second call with the same arguments.
func TestRestartOrUpgradeStartsNoRotation(t *testing.T) {
	c, again := compile(t, night), compile(t, night)
	f := policy.Facts{Key: "a", Created: at(t, "2026-11-20 03:00 UTC")}
	for now := f.Created; now.Before(f.Created.AddDate(0, 0, 29)); now = now.Add(17 * time.Minute) {
		d := again.Due(now, f)
		expect(t, d, false, policy.ReasonNotYet)
		if first := c.Due(f.Created, f); !d.At.Equal(first.At) {
			t.Fatalf("a restart at %v moved the start from %v to %v", now, first.At, d.At)
		}
	}
}

// Pain of terraform-provider-aws#34961: configuring rotates at once.
func TestConfiguringAKeyStartsNoRotation(t *testing.T) {
	now := at(t, "2026-11-23 03:00 UTC")
	for _, spec := range []string{night, "rotate: {every: 30d}", "rotate: {every: 30d, startAt: 2020-01-01T03:00:00Z}"} {
		c := compile(t, spec)
		seen := map[int]int{}
		for i := range 200 {
			f := policy.Facts{Key: key.Name(fmt.Sprint("k", i)), Created: now.AddDate(-2, 0, 0), Scheduled: now}
			d := c.Due(now, f)
			expect(t, d, false, policy.ReasonNotYet)
			earliest := now.AddDate(0, 0, 15)
			if strings.Contains(spec, "startAt") {
				earliest = at(t, "2026-11-25 03:00 UTC") // the next point of the grid
			}
			if d.At.Before(earliest) || d.At.After(now.AddDate(0, 0, 34)) {
				t.Errorf("%s: an overdue key is rotated at %v", spec, d.At)
			}
			seen[int(d.At.Sub(now).Hours()/24)]++
		}
		if len(seen) < 8 && !strings.Contains(spec, "startAt") {
			t.Errorf("%s: the overdue keys are rotated together: %v", spec, seen)
		}
	}
}

// Pain of openbao#3637 and of windows as such: never outside of one.
func TestMissedWindowWaitsForTheNextOne(t *testing.T) {
	c := compile(t, night)
	f := policy.Facts{Key: "a", Created: at(t, "2026-10-20 00:00 UTC")} // due from Thursday, 2026-11-19
	friday := c.Due(at(t, "2026-11-19 06:00 UTC"), f)
	expect(t, friday, false, policy.ReasonWindow)
	if friday.At.Before(at(t, "2026-11-20 02:00 UTC")) || !friday.At.Before(at(t, "2026-11-20 04:00 UTC")) {
		t.Errorf("the next start is %v", friday.At)
	}
	// The server was down on Friday: neither the weekend nor Monday before 02:00 will do.
	for now := at(t, "2026-11-20 05:00 UTC"); now.Before(at(t, "2026-11-23 02:00 UTC")); now = now.Add(time.Hour) {
		expect(t, c.Due(now, f), false, policy.ReasonWindow)
	}
	expect(t, c.Due(at(t, "2026-11-23 04:30 UTC"), f), true, policy.ReasonDue)
}

// Pains of conjur#741 and teleport#17598: immediate retry for ever.
func TestFailedRotationIsNotRepeatedAtOnce(t *testing.T) {
	c := compile(t, night)
	f := policy.Facts{Key: "a", Created: at(t, "2026-10-20 00:00 UTC"), LastStarted: at(t, "2026-11-20 03:00 UTC"), LastFinished: at(t, "2026-11-20 03:01 UTC")}
	for now := f.LastFinished; now.Before(at(t, "2026-11-20 05:00 UTC")); now = now.Add(time.Minute) {
		expect(t, c.Due(now, f), false, policy.ReasonRetry)
	}
	expect(t, c.Due(at(t, "2026-11-23 04:30 UTC"), f), true, policy.ReasonDue)

	c = compile(t, "rotate: {every: 30d, jitter: 0s}")
	d := c.Due(f.LastFinished.Add(time.Second), f)
	expect(t, d, false, policy.ReasonRetry)
	if want := f.LastFinished.Add(24 * time.Hour); !d.At.Equal(want) {
		t.Errorf("the next try is at %v, want %v", d.At, want)
	}
	expect(t, c.Due(d.At, f), true, policy.ReasonDue)
}

// A roll-back makes an old version current again: its age must not start a rotation at once.
func TestRollbackIsNotFollowedByARotationAtOnce(t *testing.T) {
	c := compile(t, "rotate: {every: 30d}")
	f := policy.Facts{Key: "a", Created: at(t, "2026-10-20 00:00 UTC"), LastStarted: at(t, "2026-11-20 03:00 UTC"), LastFinished: at(t, "2026-11-20 13:00 UTC")}
	expect(t, c.Due(at(t, "2026-11-20 13:01 UTC"), f), false, policy.ReasonRetry)
}

func TestClockThatJumpsIsHarmless(t *testing.T) {
	c := compile(t, "rotate: {every: 30d, jitter: 1h}")
	f := policy.Facts{Key: "a", Created: at(t, "2026-10-20 00:00 UTC"), LastStarted: at(t, "2026-10-19 23:00 UTC")}
	expect(t, c.Due(at(t, "2026-11-19 01:00 UTC"), f), true, policy.ReasonDue)
	expect(t, c.Due(at(t, "2026-11-01 00:00 UTC"), f), false, policy.ReasonNotYet)
	expect(t, c.Due(at(t, "1999-01-01 00:00 UTC"), f), false, policy.ReasonClock)
	expect(t, c.Due(at(t, "1999-01-01 00:00 UTC"), policy.Facts{Key: "a", Created: f.Created}), false, policy.ReasonClock)
	f.LastStarted = at(t, "2026-12-24 00:00 UTC")
	expect(t, c.Due(at(t, "2026-11-19 01:00 UTC"), f), false, policy.ReasonClock)
}

func TestFreeze(t *testing.T) {
	spec := night + "\nfreeze: [{from: 2026-11-20T03:00:00Z, to: 2026-11-24T02:30:00Z, reason: sale}]"
	c := compile(t, spec)
	f := policy.Facts{Key: "a", Created: at(t, "2026-10-20 12:00 UTC")}
	d := c.Due(at(t, "2026-11-23 03:00 UTC"), f)
	expect(t, d, false, policy.ReasonFrozen)
	if !strings.Contains(d.Message, "sale") || d.At.Before(at(t, "2026-11-24 02:30 UTC")) || !d.At.Before(at(t, "2026-11-24 04:50 UTC")) {
		t.Errorf("got %v: %s", d.At, d.Message)
	}
	expect(t, c.Due(at(t, "2026-11-24 04:40 UTC"), f), true, policy.ReasonDue)
	// A start must leave time for the bake (10m) before the freeze begins.
	expect(t, c.Due(at(t, "2026-11-20 02:55 UTC"), f), false, policy.ReasonWindow)
	f.Freezes = []policy.Interval{{From: at(t, "2026-11-24 00:00 UTC"), To: at(t, "2027-11-24 00:00 UTC")}}
	d = c.Due(at(t, "2026-11-24 04:40 UTC"), f)
	expect(t, d, false, policy.ReasonFrozen)
	if d.At.Before(f.Freezes[0].To) {
		t.Errorf("the next start is %v, inside the freeze", d.At)
	}
}

// A long freeze over many openings is jumped over.
func TestLongFreezeOverFrequentWindows(t *testing.T) {
	c := compile(t, `rotate: {every: 30d, jitter: 0s, windows: [{cron: "*/5 * * * *", duration: 4m}]}
freeze: [{from: 2026-11-01T00:00:00Z, to: 2027-11-01T00:01:00Z}]`)
	d := c.Due(at(t, "2026-11-02 00:00 UTC"), policy.Facts{Key: "a", Created: at(t, "2026-10-02 00:00 UTC")})
	expect(t, d, false, policy.ReasonFrozen)
	if want := at(t, "2027-11-01 00:01 UTC"); !d.At.Equal(want) {
		t.Errorf("the next start is %v, want %v", d.At, want)
	}
}

// Pain of cert-manager#6754: renewals all land at once.
func TestStartsAreSpreadOverTheWindow(t *testing.T) {
	c := compile(t, night)
	var hours [3]int
	for i := range 1000 {
		d := c.Due(at(t, "2026-11-01 00:00 UTC"), policy.Facts{Key: key.Name(fmt.Sprint("k", i)), Created: at(t, "2026-10-24 00:00 UTC")})
		if d.At.Before(at(t, "2026-11-23 02:00 UTC")) || !d.At.Before(at(t, "2026-11-23 04:00 UTC")) {
			t.Fatalf("key %d starts at %v", i, d.At)
		}
		if !d.At.Equal(d.At.Truncate(time.Millisecond)) {
			t.Fatalf("a store that keeps microseconds would not keep %v", d.At)
		}
		hours[int(d.At.Sub(at(t, "2026-11-23 02:00 UTC"))/(40*time.Minute))]++
	}
	for third, n := range hours {
		if n < 250 || n > 420 {
			t.Errorf("%d of 1000 keys start in third %d of the jitter", n, third+1)
		}
	}
}

func TestStartAtSetsAGrid(t *testing.T) {
	c := compile(t, "rotate: {every: 7d, jitter: 0s, startAt: 2026-12-01T06:00:00Z}")
	f := policy.Facts{Key: "a", Created: at(t, "2026-11-30 00:00 UTC")}
	for _, want := range []string{"2026-12-01 06:00 UTC", "2026-12-08 06:00 UTC", "2026-12-15 06:00 UTC"} {
		d := c.Due(f.Created, f)
		if !d.At.Equal(at(t, want)) {
			t.Errorf("created %v: due at %v, want %s", f.Created, d.At, want)
		}
		f.Created = d.At.Add(3 * time.Hour)
	}
}

func TestWindowsFollowDaylightSaving(t *testing.T) {
	c := compile(t, `rotate: {every: 30d, jitter: 0s, windows: [{cron: "30 2 * * *", duration: 1h, timezone: Europe/Berlin}]}`)
	for _, test := range []struct{ now, open string }{
		{"2026-03-28 12:00 UTC", "2026-03-29 01:30 UTC"}, // 02:30 does not exist: it is 03:30 CEST
		{"2026-03-29 12:00 UTC", "2026-03-30 00:30 UTC"},
		{"2026-10-24 12:00 UTC", "2026-10-25 00:30 UTC"}, // 02:30 CEST
		{"2026-10-25 01:30 UTC", "2026-10-26 01:30 UTC"}, // the second 02:30, CET, opens nothing
		{"2026-10-25 00:45 UTC", "2026-10-25 00:30 UTC"}, // it is open
	} {
		got, ok := c.NextWindow(at(t, test.now))
		if want := at(t, test.open); !ok || !got.Open.Equal(want) || !got.Close.Equal(want.Add(time.Hour)) {
			t.Errorf("at %s: got %v, want %v", test.now, got, want)
		}
	}
	if _, ok := compile(t, "rotate: {every: 30d}").NextWindow(at(t, "2026-03-28 12:00 UTC")); ok {
		t.Error("a policy without windows has one")
	}
	hourly := compile(t, `rotate: {every: 30d, jitter: 0s, windows: [{cron: "0 * * * *", duration: 10m, timezone: Europe/Berlin}]}`)
	if got, _ := hourly.NextWindow(at(t, "2026-10-25 00:30 UTC")); !got.Open.Equal(at(t, "2026-10-25 01:00 UTC")) {
		t.Errorf("an hourly window skips the repeated hour: %v", got)
	}
}

// schedules generates policies with valid schedules.
func schedules(t *rapid.T) string {
	every := rapid.SampledFrom([]string{"1d", "3d", "7d", "30d"}).Draw(t, "every")
	jitter := rapid.SampledFrom([]string{"0s", "7m", "45m"}).Draw(t, "jitter")
	zone := rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe"}).Draw(t, "zone")
	windows := rapid.SampledFrom([]string{
		"[]",
		`[{cron: "30 2 * * *", duration: 2h, timezone: ` + zone + `}]`,
		`[{cron: "0 1 * * 1-5", duration: 90m, timezone: ` + zone + `}, {cron: "15 2 * * 6", duration: 3h, timezone: ` + zone + `}]`,
		`[{cron: "0 */4 * * *", duration: 61m, timezone: ` + zone + `}]`,
	}).Draw(t, "windows")
	start := rapid.SampledFrom([]string{"", ", startAt: 2026-03-01T02:10:00Z"}).Draw(t, "startAt")
	freeze := rapid.SampledFrom([]string{"", "\nfreeze: [{from: 2026-03-20T00:00:00Z, to: 2026-03-29T01:17:00Z}, {from: 2026-03-29T01:00:00Z, to: 2026-03-29T02:00:00Z}]"}).Draw(t, "freeze")
	return "rotate: {every: " + every + ", jitter: " + jitter + ", windows: " + windows + start + "}\nstages: [{name: all, bake: 10m}]" + freeze
}

// TestDueProperties walks through months minute by minute, in irregular steps
// with outages, and checks every answer.
func TestDueProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := compile(t, schedules(r))
		spec := c.Spec()
		f := policy.Facts{Key: key.Name(rapid.StringMatching("[a-z]{1,8}").Draw(r, "key")), Created: time.Date(2026, 2, 20, 13, 7, 0, 0, time.UTC)}
		now := f.Created
		var starts []time.Time
		wasDue := false
		var window policy.Occurrence
		for range rapid.IntRange(1, 400).Draw(r, "steps") {
			step := rapid.SampledFrom([]time.Duration{time.Minute, 11 * time.Minute, time.Hour, 7 * time.Hour, 50 * time.Hour}).Draw(r, "step")
			now = now.Add(step)
			d := c.Due(now, f)
			if again := c.Due(now, f); again != d {
				r.Fatalf("two answers: %v and %v", d, again)
			}
			current, windowed := c.NextWindow(now)
			inside := !windowed || !current.Open.After(now)
			if d.Due {
				if d.At.After(now) || !inside {
					r.Fatalf("due at %v outside of %v", now, current)
				}
				for _, freeze := range spec.Freeze {
					if !now.Before(freeze.From) && now.Before(freeze.To) {
						r.Fatalf("due at %v, within a freeze", now)
					}
				}
				if windowed && current.Close.Sub(now) < 10*time.Minute {
					r.Fatalf("due at %v, too late to bake before %v", now, current.Close)
				}
				if spec.Rotate.StartAt.IsZero() && now.Sub(f.Created) < spec.Rotate.Every.Std() {
					r.Fatalf("due at %v, before the period of %v is over", now, f.Created)
				}
			} else {
				if !d.At.After(now) {
					r.Fatalf("not due at %v, but to be looked at again at %v: %s", now, d.At, d.Message)
				}
				if then := c.Due(d.At, f); !then.Due {
					r.Fatalf("at %v the next start was said to be %v, but then: %v", now, d.At, then)
				}
				if before := c.Due(d.At.Add(-time.Nanosecond), f); before.Due && d.At.Add(-time.Nanosecond).After(now) {
					r.Fatalf("due before the announced start %v", d.At)
				}
				if wasDue && inside && current == window && current.Close.Sub(now) >= 10*time.Minute && len(spec.Freeze) == 0 {
					r.Fatalf("no longer due at %v", now)
				}
			}
			wasDue, window = d.Due, current
			switch {
			case !d.Due || rapid.IntRange(0, 2).Draw(r, "act") == 0:
			case rapid.IntRange(0, 3).Draw(r, "outcome") == 0:
				f.LastStarted, f.LastFinished = now, now.Add(time.Minute)
				if again := c.Due(now.Add(time.Minute), f); again.Due {
					r.Fatalf("a rotation that failed at %v is repeated at once", now)
				}
				wasDue = false
			default:
				starts = append(starts, now)
				f.LastStarted, f.LastFinished, f.Created = now, now.Add(time.Minute), now
				wasDue = false
			}
		}
		for i := 1; i < len(starts); i++ {
			if gap := starts[i].Sub(starts[i-1]); spec.Rotate.StartAt.IsZero() && gap < spec.Rotate.Every.Std() {
				r.Fatalf("two starts within one period: %v and %v", starts[i-1], starts[i])
			} else if every := spec.Rotate.Every.Std(); !spec.Rotate.StartAt.IsZero() && starts[i-1].Sub(spec.Rotate.StartAt)/every == starts[i].Sub(spec.Rotate.StartAt)/every {
				r.Fatalf("two starts within one period of the grid: %v and %v", starts[i-1], starts[i])
			}
		}
	})
}

// TestExactlyOneStartPerPeriod watches a key that is looked at every minute: no period is left out.
func TestExactlyOneStartPerPeriod(t *testing.T) {
	for _, spec := range []string{
		"rotate: {every: 1d, startAt: 2026-03-01T00:30:00Z}",
		"rotate: {every: 1d, startAt: 2026-03-01T00:30:00Z, windows: [{cron: \"0 2 * * *\", duration: 3h, timezone: Europe/Berlin}]}",
	} {
		c := compile(t, spec)
		f := policy.Facts{Key: "a", Created: at(t, "2026-02-28 12:00 UTC")}
		starts := map[int]int{}
		for now := f.Created; now.Before(at(t, "2026-05-01 00:30 UTC")); now = now.Add(time.Minute) {
			if c.Due(now, f).Due {
				f.Created, f.LastStarted = now, now
				starts[int(now.Sub(at(t, "2026-03-01 00:30 UTC"))/(24*time.Hour))]++
			}
		}
		for day := range 61 {
			if starts[day] != 1 {
				t.Errorf("%s: %d starts on day %d", spec, starts[day], day)
			}
		}
	}
}

// vault-sidekick#50, cert-manager#6754: keys that were created together and follow
// one policy do not begin together, are never early, never outside the window, and
// begin at the same moment whoever asks and when.
func TestCreatedTogetherBeginApart(t *testing.T) {
	const keys = 20_000
	p := compile(t, `rotate: {every: 30d, windows: [{cron: "0 2 * * *", duration: 3h}]}`)
	created := time.Date(2026, 3, 1, 14, 0, 0, 0, time.UTC)
	open := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC) // the first window of the day after the period
	jitter := p.Spec().Rotate.Jitter.Std()
	perSecond, perTenth := map[int64]int{}, make([]int, 10)
	for i := range keys {
		f := policy.Facts{Key: key.Name(fmt.Sprintf("team-%d/key-%d", i%17, i)), Created: created, Scheduled: created}
		d := p.Due(created.Add(time.Hour), f)
		if d.At.Before(created.Add(30*24*time.Hour)) || d.At.Before(open) || !d.At.Before(open.Add(3*time.Hour)) {
			t.Fatalf("key %d is due at %v", i, d.At)
		}
		if later := p.Due(d.At.Add(-time.Millisecond), f); later.Due || !later.At.Equal(d.At) {
			t.Fatalf("key %d is due at %v, as seen just before at %v", i, d.At, later.At)
		}
		if now := p.Due(d.At, f); !now.Due {
			t.Fatalf("key %d is not due at its time: %+v", i, now)
		}
		perSecond[d.At.Unix()]++
		perTenth[int(10*d.At.Sub(open)/jitter)]++
	}
	for tenth, n := range perTenth {
		if n < keys/10*9/10 || n > keys/10*11/10 {
			t.Errorf("%d of %d keys begin in the tenth %d of the jitter", n, keys, tenth)
		}
	}
	most := 0
	for _, n := range perSecond {
		most = max(most, n)
	}
	if mean := float64(keys) / jitter.Seconds(); float64(most) > mean+8*math.Sqrt(mean)+4 {
		t.Errorf("%d keys begin in the same second, %.1f in the mean", most, mean)
	}
}
