package signals

import (
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// Bounds of what is remembered.
const (
	maxTracks   = 50_000
	maxWaiting  = 200_000
	maxEvents   = 64
	afterwards  = time.Hour
	forgetAfter = 7 * 24 * time.Hour
)

// track is what is remembered of one open rotation: what its history tells.
type track struct {
	key     key.Name
	id      key.RotationID
	kind    string
	started time.Time
	// phases that it went through, in order; the last is the present one.
	phases  []phaseAt
	touched time.Time
}

// phaseAt is a phase, when it began, and what happened in it.
type phaseAt struct {
	name   string
	since  time.Time
	events []spanEvent
}

// spanEvent is something that happened within a phase.
type spanEvent struct {
	at      time.Time
	name    string
	reason  string
	message string
}

// present returns the present phase, the zero value before the first.
func (t *track) present() phaseAt {
	if len(t.phases) == 0 {
		return phaseAt{}
	}
	return t.phases[len(t.phases)-1]
}

// entered returns the index of the phase that the rotation entered at a time, -1
// if it did not.
func (t *track) entered(name string, at time.Time) int {
	return slices.IndexFunc(t.phases, func(p phaseAt) bool { return p.name == name && p.since.Equal(at) })
}

// left returns the phase that m ends, once m was folded.
func (t *track) left(m *engine.Moved) (phaseAt, bool) {
	i := t.entered(m.To, m.At) - 1
	if i < 0 || t.phases[i].name != m.From {
		return phaseAt{}, false
	}
	return t.phases[i], true
}

// at returns the phase that the rotation was in at a time.
func (t *track) at(when time.Time) phaseAt {
	for i := len(t.phases) - 1; i > 0; i-- {
		if !t.phases[i].since.After(when) {
			return t.phases[i]
		}
	}
	if len(t.phases) == 0 {
		return phaseAt{}
	}
	return t.phases[0]
}

// fold takes up one transition of the rotation; a second time it does nothing. The
// live feed and a timeline read from the store lead to the same track, in whatever
// way they overlap.
func (t *track) fold(moved *engine.Moved) {
	t.touched = moved.At
	event := spanEvent{at: moved.At, name: string(moved.Kind), message: clip(moved.Message)}
	switch moved.Kind {
	case rotation.RotationBegun:
		t.key, t.id, t.kind, t.started = moved.Key, moved.Rotation, moved.To, moved.At
		return
	case rotation.RotationPhase:
		if t.entered(moved.To, moved.At) < 0 {
			t.phases = append(t.phases, phaseAt{name: moved.To, since: moved.At})
		}
		return
	case rotation.RotationHold:
		event.reason = moved.To
		if moved.To == "" {
			event.name, event.reason = "rotation.resumed", moved.From
		}
	case rotation.RotationStage:
		event.reason = moved.To
	case rotation.VersionState, rotation.VersionLabel, rotation.VerifierChange, rotation.VerifierGone,
		rotation.PresenterTold, rotation.PresenterAcked, rotation.PresenterLeft, rotation.KeyRecovery:
		return
	}
	if len(t.phases) == 0 || slices.ContainsFunc(t.phases, func(p phaseAt) bool { return slices.Contains(p.events, event) }) {
		return
	}
	if last := &t.phases[len(t.phases)-1]; len(last.events) < maxEvents {
		last.events = append(last.events, event)
	}
}

// clip bounds a text from outside, in bytes.
func clip(text string) string {
	const most = 1024
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}

// tracks remembers the open rotations, and until when keys count as rotating.
type tracks struct {
	open map[key.RotationID]*track
	// busy holds the number of open cut-overs, calm until when failures are still put
	// down to the last one.
	busy map[key.Name]int
	calm map[key.Name]time.Time
}

func newTracks() *tracks {
	return &tracks{open: map[key.RotationID]*track{}, busy: map[key.Name]int{}, calm: map[key.Name]time.Time{}}
}

// rotating reports whether failures are to be put down to a rotation: presenters
// were told to move, or were within the last hour.
func (t *tracks) rotating(name key.Name, now time.Time) bool {
	return t.busy[name] > 0 || now.Before(t.calm[name])
}

// put remembers a track, unless there are too many.
func (t *tracks) put(track *track) {
	if len(t.open) < maxTracks {
		t.open[track.id] = track
	}
}

// moves notes that presenters are being moved, or are not any more.
func (t *tracks) moves(name key.Name, from, to string, at time.Time) {
	was, is := moving(from), moving(to)
	switch {
	case is && !was:
		t.busy[name]++
	case was && !is:
		if t.busy[name]--; t.busy[name] <= 0 {
			delete(t.busy, name)
		}
		if len(t.calm) < maxTracks {
			t.calm[name] = at.Add(afterwards)
		}
	}
}

func moving(phase string) bool {
	return phase == rotation.Presenting.String() || phase == rotation.RollingBack.String()
}

// keep forgets the rotations that are not open any more, as a sweep that began at
// a time found, and those that nothing was heard of since.
func (t *tracks) keep(open map[key.RotationID]bool, busy map[key.Name]int, began time.Time) {
	for id, track := range t.open {
		if !open[id] && track.touched.Before(began) {
			delete(t.open, id)
		}
	}
	for name, until := range t.calm {
		if until.Before(began) {
			delete(t.calm, name)
		}
	}
	t.busy = busy
}

// waiting remembers since when answers are waited for.
type waiting struct {
	told, accept, refuse map[waitingFor]since
}

// waitingFor is whose answer is waited for. Version is 0 where a later question
// replaces an earlier one.
type waitingFor struct {
	key     key.Name
	party   string
	version key.Version
}

// since is what was asked, and when.
type since struct {
	version key.Version
	at      time.Time
}

func newWaiting() *waiting {
	return &waiting{told: map[waitingFor]since{}, accept: map[waitingFor]since{}, refuse: map[waitingFor]since{}}
}

// begin notes since when an answer about v is waited for; the first time counts.
func begin(m map[waitingFor]since, f waitingFor, v key.Version, at time.Time) {
	was, known := m[f]
	if known && was.version == v || !known && len(m) >= maxWaiting {
		return
	}
	m[f] = since{version: v, at: at}
}

// end returns how long the answer about v was waited for, if that is known.
func end(m map[waitingFor]since, f waitingFor, v key.Version, at time.Time) (time.Duration, bool) {
	was, known := m[f]
	if !known || was.version != v {
		return 0, false
	}
	delete(m, f)
	return max(0, at.Sub(was.at)), true
}

// forget drops what nobody will answer any more.
func (w *waiting) forget(now time.Time) {
	for _, m := range []map[waitingFor]since{w.told, w.accept, w.refuse} {
		for f, was := range m {
			if now.Sub(was.at) > forgetAfter {
				delete(m, f)
			}
		}
	}
}
