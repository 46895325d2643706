package policy

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	cron "github.com/netresearch/go-cron"
)

// Occurrence is one opening of a window: from Open inclusive to Close exclusive.
type Occurrence struct {
	Open, Close time.Time
}

// window is a compiled Window.
type window struct {
	schedule *cron.SpecSchedule
	duration time.Duration
	// everyHour says that the window opens in every hour of its days, so that it
	// also opens in the hour that is repeated when clocks are set back.
	everyHour bool
}

const cronHint = `write minute, hour, day of month, month, day of week, for example "0 2 * * 1-5"`

// compileWindow reports what is wrong with a window, and whether it can be used.
func compileWindow(w Window, r reporter) (window, bool) {
	out, ok := window{duration: w.Duration.Std()}, true
	location, err := loadLocation(w.Timezone)
	if err != nil {
		r.err("timezone", "unknown-timezone", err.Error(), "write a name of the IANA time zone database, for example Europe/Berlin or UTC")
		ok = false
	}
	switch fields := strings.Fields(w.Cron); {
	case strings.Contains(w.Cron, "="):
		r.err("cron", "cron", "a time zone is not accepted here", "write it in the field timezone")
		ok = false
	case len(fields) != 5 || len(w.Cron) > 256:
		r.err("cron", "cron", fmt.Sprintf("it has %d fields, but must have 5", len(fields)), cronHint)
		ok = false
	default:
		schedule, err := parseCron(w.Cron)
		if err != nil {
			r.err("cron", "cron", "not a cron expression: "+err.Error(), cronHint)
			ok = false
			break
		}
		out.schedule = schedule
	}
	if !ok || w.Duration <= 0 {
		return window{}, false
	}
	out.schedule.Location = location
	out.everyHour = bits.OnesCount64(out.schedule.Hour&(1<<24-1)) == 24
	return out, out.check(w, r)
}

func parseCron(spec string) (*cron.SpecSchedule, error) {
	parser, err := cron.TryNewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	if err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(spec)
	if err != nil {
		return nil, err
	}
	schedule, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, errors.New("it names no times")
	}
	return schedule, nil
}

// loadLocation refuses names that depend on the machine.
func loadLocation(name string) (*time.Location, error) {
	if name == "" || name == "Local" {
		return nil, fmt.Errorf("unknown time zone %s", quote(name))
	}
	location, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("unknown time zone %s", quote(name))
	}
	return location, nil
}

// reference is a moment from which windows are looked at when no time is known.
func reference() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// check looks at the window's openings over some time.
func (w window) check(spec Window, r reporter) bool {
	const openings = 400
	at := w.next(reference())
	if at.IsZero() {
		r.err("cron", "window-never-opens", fmt.Sprintf("%s matches no time within five years", quote(spec.Cron)), "check the day of month and the month")
		return false
	}
	for range openings {
		next := w.next(at)
		if next.IsZero() {
			break
		}
		// An hour is allowed for, since clocks that are set forward shorten a day.
		if next.Sub(at)+time.Hour < w.duration || next.Sub(at) < w.duration && next.Sub(at) <= 2*time.Hour {
			r.err("duration", "window-overlaps", fmt.Sprintf("a window of %s opens again after %s, before it has closed", spec.Duration, Duration(next.Sub(at))), "shorten duration, or leave windows out to allow any time")
			return false
		}
		at = next
	}
	fields := strings.Fields(spec.Cron)
	if restricted(fields[2]) && restricted(fields[4]) {
		r.warn("cron", "cron-ambiguous", "day of month and day of week must both match here, while in crontab(5) one is enough", "restrict only one of them")
	}
	return true
}

func restricted(field string) bool { return field != "*" && field != "?" }

// next returns when the window opens next after t, zero if it never does. Where
// clocks are set forward, an opening in the missing hour moves behind it; where
// they are set back, the repeated hour opens no window a second time.
func (w window) next(t time.Time) time.Time {
	for {
		t = w.schedule.Next(t)
		if t.IsZero() {
			return time.Time{}
		}
		if w.everyHour || !repeated(t, w.schedule.Location) {
			return t.UTC()
		}
	}
}

// repeated reports whether the wall clock showed the same time once before.
func repeated(t time.Time, location *time.Location) bool {
	t = t.In(location)
	start, _ := t.ZoneBounds()
	if start.IsZero() {
		return false
	}
	_, offset := t.Zone()
	_, before := start.Add(-time.Second).Zone()
	return before > offset && t.Sub(start) < time.Duration(before-offset)*time.Second
}

// NextWindow returns the occurrence that is open at now, or else the next one to
// open. ok is false when the policy has no windows: rotations may then start at
// any time.
func (c *Compiled) NextWindow(now time.Time) (next Occurrence, ok bool) {
	for _, w := range c.windows {
		open := w.next(now.Add(-w.duration))
		if open.IsZero() {
			continue
		}
		if !ok || open.Before(next.Open) {
			next, ok = Occurrence{Open: open, Close: open.Add(w.duration)}, true
		}
	}
	return next, ok
}
