package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Reason says why a key is due, or why it is not. The zero value is invalid.
type Reason uint8

// The reasons. Only ReasonDue comes with Decision.Due.
const (
	// ReasonDue: the rotation should start now.
	ReasonDue Reason = iota + 1
	// ReasonNoSchedule: the policy has no schedule; keys are rotated by hand.
	ReasonNoSchedule
	// ReasonNoVersion: there is no version yet whose age could count.
	ReasonNoVersion
	// ReasonOpen: a cut-over is planned or running.
	ReasonOpen
	// ReasonClock: the key's history lies in the future, so that the clock is
	// wrong now or was wrong then.
	ReasonClock
	// ReasonNotYet: the current version is not old enough.
	ReasonNotYet
	// ReasonRetry: the last rotation of this period did not succeed, and it is too
	// early to try again.
	ReasonRetry
	// ReasonFrozen: a freeze is in force.
	ReasonFrozen
	// ReasonWindow: no window is open, or too little of it is left.
	ReasonWindow
	// ReasonSpread: the key's turn within the window or the jitter comes later.
	ReasonSpread
)

func reasonNames() []string {
	return []string{
		ReasonDue: "due", ReasonNoSchedule: "no-schedule", ReasonNoVersion: "no-version",
		ReasonOpen: "open", ReasonClock: "clock", ReasonNotYet: "not-yet", ReasonRetry: "retry-later",
		ReasonFrozen: "frozen", ReasonWindow: "outside-window", ReasonSpread: "spread",
	}
}

// String returns a stable, machine-readable code such as "outside-window".
func (v Reason) String() string { return enumString(v, reasonNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Reason) MarshalText() ([]byte, error) { return enumMarshal(v, reasonNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Reason) UnmarshalText(text []byte) error { return enumParse(v, text, reasonNames()) }

// Decision is what Due answers.
type Decision struct {
	// Due says that a rotation should start now.
	Due bool `json:"due"`
	// Reason is machine-readable, Message says the same to a human.
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
	// At is when the rotation was to start if it is due, else when it will be, as
	// far as is known now; zero if no time will make it due.
	At time.Time `json:"at,omitzero"`
}

// Due decides whether a scheduled rotation of a key should start now.
//
// A key is due when its current version reaches the age rotate.every, or on the
// grid of rotate.startAt, at the first moment that windows and freezes allow and
// that leaves time for the stages' bakes, delayed within the jitter by a hash of
// the key and the period. A window that was missed is not caught up on outside
// of windows: the next one counts. A rotation that failed is tried again in the
// next window or, without windows, after a tenth of the period (at most a day).
//
// The answer depends on the arguments only, so that it is the same after a
// restart or an upgrade. A key that is overdue at the moment its cadence changes
// (Facts.Scheduled) becomes due in the second half of the period that follows,
// not at once. Within one opening of a window a key that is due stays due.
func (c *Compiled) Due(now time.Time, f Facts) Decision {
	rotate := c.policy.Spec.Rotate
	no := func(reason Reason, at time.Time, format string, args ...any) Decision {
		return Decision{Reason: reason, Message: fmt.Sprintf(format, args...), At: at}
	}
	switch {
	case rotate.IsZero():
		return no(ReasonNoSchedule, time.Time{}, "policy %s has no schedule", c.Name())
	case f.Open:
		return no(ReasonOpen, time.Time{}, "a rotation is open")
	case f.Created.IsZero():
		return no(ReasonNoVersion, time.Time{}, "the key has no version yet")
	case f.Created.After(now):
		return no(ReasonClock, f.Created, "the current version was created at %s, which is in the future; check the clock", stamp(f.Created))
	case f.LastStarted.After(now):
		return no(ReasonClock, f.LastStarted, "the last rotation started at %s, which is in the future; check the clock", stamp(f.LastStarted))
	}

	target := rotate.target(f)
	search := search{
		compiled: c, now: now, notBefore: target,
		freezes: append(f.Freezes[:len(f.Freezes):len(f.Freezes)], c.policy.Spec.Freeze...),
		share:   share(f.Key, target),
	}
	retry := !f.LastStarted.IsZero() && !f.LastStarted.Before(target)
	if retry {
		last := f.LastStarted
		if f.LastFinished.After(last) {
			last = f.LastFinished
		}
		search.tried = f.LastStarted
		if len(c.windows) == 0 {
			search.notBefore = last.Add(min(rotate.Every/10, Day).Std())
		}
	}
	start, found := search.first()
	switch {
	case found && !start.After(now):
		return Decision{Due: true, Reason: ReasonDue, At: start, Message: fmt.Sprintf("the current version reached its period at %s", stamp(target))}
	case now.Before(target):
		return no(ReasonNotYet, start, "the current version reaches its period at %s", stamp(target))
	case retry && now.Before(search.notBefore), retry && search.triedOpen():
		return no(ReasonRetry, start, "the rotation that started at %s did not succeed", stamp(f.LastStarted))
	}
	for _, freeze := range search.freezes {
		if freeze.contains(now) {
			return no(ReasonFrozen, start, "frozen until %s%s", stamp(freeze.To), because(freeze.Reason))
		}
	}
	if len(c.windows) > 0 && !search.open() {
		return no(ReasonWindow, start, "no window is open")
	}
	if found && start.Sub(now) <= rotate.Jitter.Std() {
		return no(ReasonSpread, start, "spread within the jitter of %s", rotate.Jitter)
	}
	return no(ReasonWindow, start, "too little time is left for a rotation")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (f Interval) contains(t time.Time) bool { return !t.Before(f.From) && t.Before(f.To) }

// SameCadence reports whether r and other make keys due at the same times, apart
// from jitter and windows. When it is false, Facts.Scheduled begins anew.
func (r Rotate) SameCadence(other Rotate) bool {
	return r.Every == other.Every && r.StartAt.Equal(other.StartAt)
}

// target returns when the key's present period ends.
func (r Rotate) target(f Facts) time.Time {
	every := r.Every.Std()
	if !r.StartAt.IsZero() {
		after := f.Created
		if f.Scheduled.After(after) {
			after = f.Scheduled
		}
		if after.Before(r.StartAt) {
			return r.StartAt
		}
		since := after.Sub(r.StartAt)
		return after.Add(every - since%every)
	}
	target := f.Created.Add(every)
	if target.After(f.Scheduled) {
		return target
	}
	half := every / 2
	return f.Scheduled.Add(half + portion(share(f.Key, f.Scheduled), half))
}

// share returns a number that is evenly distributed over the uint64 values,
// always the same for one key and period.
func share(name key.Name, period time.Time) uint64 {
	text := fmt.Appendf(nil, "%s\x00%d", name, period.UnixNano())
	sum := sha256.Sum256(text)
	return binary.BigEndian.Uint64(sum[:])
}

// portion returns share/2⁶⁴ of d, in whole milliseconds: at least 0 and less than
// d, or 0 if d is not positive. Stores that keep microseconds keep starts exactly.
func portion(share uint64, d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	high, _ := bits.Mul64(share, uint64(d))
	return time.Duration(high).Truncate(time.Millisecond)
}

// search looks for the first start that windows, freezes and jitter allow.
type search struct {
	compiled  *Compiled
	now       time.Time
	notBefore time.Time
	// tried is when a rotation of this period was started; windows that had opened
	// by then are used up.
	tried   time.Time
	freezes []Interval
	share   uint64
}

// never is the end of a period without end.
func never() time.Time { return time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }

// first returns the start of the first opportunity that is not over at now. It
// may lie before now: then it is still to be taken.
func (s search) first() (start time.Time, ok bool) {
	if len(s.compiled.windows) == 0 {
		return s.within(s.notBefore, never())
	}
	for _, w := range s.compiled.windows {
		if at, found := s.window(w); found && (!ok || at.Before(start)) {
			start, ok = at, true
		}
	}
	return start, ok
}

// window returns the first start in one of the window's openings.
func (s search) window(w window) (time.Time, bool) {
	const openings = 10_000 // a bound; freezes are jumped over
	cursor := s.now
	if s.notBefore.After(cursor) {
		cursor = s.notBefore
	}
	cursor = cursor.Add(-w.duration)
	for range openings {
		cursor = w.next(cursor)
		if cursor.IsZero() {
			return time.Time{}, false
		}
		if !s.tried.IsZero() && !cursor.After(s.tried) {
			continue
		}
		from, to := cursor, cursor.Add(w.duration)
		if s.notBefore.After(from) {
			from = s.notBefore
		}
		if start, ok := s.within(from, to); ok {
			return start, true
		}
		for _, f := range s.freezes {
			if f.contains(cursor) && f.To.After(to) {
				cursor = f.To.Add(-w.duration)
			}
		}
	}
	return time.Time{}, false
}

// within returns the first start between from and to that lies outside of
// freezes, leaves time for the cut-over, and is not over at now.
func (s search) within(from, to time.Time) (time.Time, bool) {
	need := s.compiled.policy.Spec.CutOver().Std()
	jitter := s.compiled.policy.Spec.Rotate.Jitter.Std()
	for from.Before(to) {
		end, frozen := to, false
		for _, f := range s.freezes {
			if f.contains(from) {
				from, frozen = f.To, true
			}
		}
		if frozen {
			continue
		}
		for _, f := range s.freezes {
			if f.From.After(from) && f.From.Before(end) {
				end = f.From
			}
		}
		latest := end.Add(-max(need, 1))
		if !latest.Before(from) && !latest.Before(s.now) {
			return from.Add(portion(s.share, min(jitter, latest.Sub(from)))), true
		}
		from = end
	}
	return time.Time{}, false
}

// open reports whether some window is open at now.
func (s search) open() bool {
	for _, w := range s.compiled.windows {
		if at := w.next(s.now.Add(-w.duration)); !at.IsZero() && !at.After(s.now) {
			return true
		}
	}
	return false
}

// triedOpen reports whether a window is open that has been used up.
func (s search) triedOpen() bool {
	for _, w := range s.compiled.windows {
		at := w.next(s.now.Add(-w.duration))
		if !at.IsZero() && !at.After(s.now) && !at.After(s.tried) {
			return true
		}
	}
	return false
}
