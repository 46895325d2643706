package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written as numbers with units in falling order:
// "30d", "1d12h", "90s". The units are w (7 days), d (exactly 24 hours), h, m,
// s, ms, us and ns. It is never negative.
type Duration time.Duration

// Day is 24 hours, whatever the calendar says.
const Day = Duration(24 * time.Hour)

// MaxDuration is the longest accepted duration: 36,500 days.
const MaxDuration = 36_500 * Day

const durationHint = "write whole numbers with units, such as 30d, 12h, 5m, 90s or 1d12h"

type durationUnit struct {
	name string
	size Duration
}

// durationUnits are the units in falling order; weeks are read but never printed.
func durationUnits() [8]durationUnit {
	return [8]durationUnit{
		{"w", 7 * Day},
		{"d", Day},
		{"h", Duration(time.Hour)},
		{"m", Duration(time.Minute)},
		{"s", Duration(time.Second)},
		{"ms", Duration(time.Millisecond)},
		{"us", Duration(time.Microsecond)},
		{"ns", Duration(time.Nanosecond)},
	}
}

// ParseDuration reads a duration. The error says what is wrong with it and how
// to write one.
func ParseDuration(s string) (Duration, error) {
	fail := func(problem string) (Duration, error) {
		return 0, &hintError{problem: fmt.Sprintf("invalid duration %s: %s", quote(s), problem), hint: durationHint}
	}
	switch {
	case s == "":
		return fail("it is empty")
	case s[0] == '-':
		return fail("it is negative")
	case strings.ContainsAny(s, ".,"):
		return fail("fractions are not accepted")
	}
	units := durationUnits()
	total, next := Duration(0), 0
	for rest := s; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if digits == 0 {
			return fail("a number is missing")
		}
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		if err != nil {
			return fail("a number is too large")
		}
		rest = rest[digits:]
		letters := len(rest) - len(strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZµ"))
		unit := rest[:letters]
		rest = rest[letters:]
		if unit == "" {
			return fail("a unit is missing")
		}
		at := -1
		for i, u := range units {
			if u.name == unit {
				at = i
			}
		}
		if at < 0 {
			return fail(fmt.Sprintf("there is no unit %s", quote(unit)))
		}
		if at < next {
			return fail("the units must fall, each at most once")
		}
		next = at + 1
		if n > int64(MaxDuration/units[at].size) {
			return fail("it is longer than " + MaxDuration.String())
		}
		total += Duration(n) * units[at].size
		if total > MaxDuration {
			return fail("it is longer than " + MaxDuration.String())
		}
	}
	return total, nil
}

// String prints the duration in its canonical form, which ParseDuration reads
// back to the same value: "30d", "1d12h", "0s".
func (d Duration) String() string {
	if d <= 0 {
		if d == 0 {
			return "0s"
		}
		return "-" + (-max(d, -MaxDuration)).String()
	}
	var b strings.Builder
	for _, u := range durationUnits() {
		if u.name == "w" {
			continue
		}
		if n := d / u.size; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10))
			b.WriteString(u.name)
			d -= n * u.size
		}
	}
	return b.String()
}

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it fails as ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
