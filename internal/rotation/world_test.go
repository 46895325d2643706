package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
)

// versions is a set of version numbers below 64.
type versions uint64

func (s versions) has(v key.Version) bool         { return s&(1<<v) != 0 }
func (s versions) with(v key.Version) versions    { return s | 1<<v }
func (s versions) without(v key.Version) versions { return s &^ (1 << v) }

func (s versions) String() string {
	var names []string
	for v := key.Version(1); v < 64; v++ {
		if s.has(v) {
			names = append(names, v.String())
		}
	}
	return "{" + strings.Join(names, " ") + "}"
}

// world is the truth outside the machine: what the machine can only hear of. It
// also holds what is under way between the two, and how much may still go wrong.
type world struct {
	// places are the verifiers, parties the presenters that are or may come.
	places  []place
	parties []party
	// stored and destroyed are the versions whose material exists, or existed.
	stored, destroyed versions
	// contained are those that were ever declared to be refused at once.
	contained versions
	// unregistered is the version that somebody uses who is no presenter.
	unregistered key.Version
	// lanes holds the effects that are under way; never changed in place.
	lanes []lane
	// twice is a result that was delivered and may be delivered again.
	twice Result
	// judged is the rotation and stage whose judgement was the last good one.
	judged      key.RotationID
	judgedStage int
	// begun counts the rotation IDs that were used.
	begun uint8
	// faults, churn and commands are how many of each may still come.
	faults, churn, commands uint8
	// saved is the latest backup; restored: one was put back. detached are the
	// parties, by number, that have not come back since.
	saved    *backup
	restored bool
	detached uint64
}

// place is a verifier.
type place struct {
	// known: it is part of the configuration.
	known bool
	// accepts is what it lets in; proven what a probe found refused since.
	accepts, proven versions
}

// party is a presenter.
type party struct {
	here bool
	// using is what it presents; seen the largest epoch it heard of and told the
	// version that came with it.
	using, told key.Version
	seen        uint64
	// sick: it is not well with what it uses, or could not use what it was told.
	sick bool
	// stranger: it came with a version that was being revoked already, so that
	// nobody owes it that this version is accepted.
	stranger bool
	// old is a telling that was overtaken and has not arrived.
	old Ack
	// late is an answer that has not arrived.
	late Ack
	// answers counts its answers, which is their order; heard is the largest order of
	// those that arrived, among the answers to the telling heardOf.
	answers, heard, heardOf uint64
}

// lane is what is under way in one lane of effects.
type lane struct {
	running, queued job
}

// job is one effect.
type job struct {
	effect Effect
	// executed: it has had its effect, only the result is missing.
	executed bool
	// good and uses are the answer, known once it is executed.
	good  bool
	uses  int
	found []Found
}

func (j *job) exists() bool { return j.effect.Kind != 0 }

// sameLane reports whether two effects have one lane.
func sameLane(a, b EffectRef) bool {
	switch {
	case a.Verifier != "" || b.Verifier != "":
		return a.Verifier == b.Verifier && a.Version == b.Version
	case a.Kind == Destroy || b.Kind == Destroy:
		return a.Kind == b.Kind && a.Version == b.Version
	}
	return a.Rotation == b.Rotation
}

func (l *lane) ref() EffectRef {
	if l.queued.exists() {
		return l.queued.effect.EffectRef
	}
	return l.running.effect.EffectRef
}

// queue puts an effect into its lane, in the place of one that has not started.
func (w *world) queue(e Effect) {
	w.lanes = slices.Clone(w.lanes)
	for i := range w.lanes {
		if sameLane(w.lanes[i].ref(), e.EffectRef) {
			w.lanes[i].queued = job{effect: e}
			return
		}
	}
	w.lanes = append(w.lanes, lane{queued: job{effect: e}})
}

// setLane replaces lane i, or removes it when nothing is left in it.
func (w *world) setLane(i int, l lane) {
	w.lanes = slices.Clone(w.lanes)
	if !l.running.exists() && !l.queued.exists() {
		w.lanes = slices.Delete(w.lanes, i, i+1)
		return
	}
	w.lanes[i] = l
}

// execute makes the effect happen. gap: accepting one version refuses the rest.
func (w *world) execute(j *job, gap bool) {
	v := j.effect.Version
	j.executed, j.good = true, true
	var p *place
	if j.effect.Verifier != "" {
		p = &w.places[placeIndex(j.effect.Verifier)]
	}
	switch j.effect.Kind {
	case Mint:
		w.stored = w.stored.with(v)
	case Accept:
		if w.destroyed.has(v) {
			return
		}
		if gap {
			p.accepts = 0
		}
		p.accepts = p.accepts.with(v)
	case Refuse:
		p.accepts = p.accepts.without(v)
	case ProbeAccept:
		j.good = p.accepts.has(v)
	case ProbeRefuse:
		j.good = !p.accepts.has(v)
	case Measure:
		j.uses = 0
		for i := range w.parties {
			if w.parties[i].here && w.parties[i].using == v {
				j.uses++
			}
		}
		if w.unregistered == v {
			j.uses++
		}
	case Destroy:
		w.destroyed = w.destroyed.with(v)
	case Preflight, Judge, Tell, Reconcile:
	}
}

// Verifiers are called a, b, c, …; presenters p, q, r, …, then p1, q1, ….
func placeID(i int) string { return "abcdefgh"[i : i+1] }

func placeIndex(id string) int { return int(id[0] - 'a') }

func partyID(i int) string {
	name := "pqrstuvwxyz"[i%11 : i%11+1]
	if i < 11 {
		return name
	}
	return name + "0123456789"[i/11:i/11+1]
}

func partyIndex(id string) int {
	i := int(id[0] - 'p')
	if len(id) > 1 {
		i += 11 * int(id[1]-'0')
	}
	return i
}

// epoch0 is when every exploration begins.
func epoch0() time.Time { return time.Unix(1_800_000_000, 0).UTC() }

// String describes the truth for a trace.
func (w *world) String() string {
	var b strings.Builder
	for i := range w.places {
		if p := &w.places[i]; p.known || p.accepts != 0 {
			fmt.Fprintf(&b, " %s accepts %v", placeID(i), p.accepts)
			if !p.known {
				b.WriteString(" (gone)")
			}
		}
	}
	for i := range w.parties {
		if p := &w.parties[i]; p.here {
			fmt.Fprintf(&b, " %s uses %v", partyID(i), p.using)
			if p.sick {
				b.WriteString(" (sick)")
			}
		}
	}
	if w.unregistered != 0 {
		fmt.Fprintf(&b, " somebody uses %v", w.unregistered)
	}
	for i := range w.lanes {
		if l := &w.lanes[i]; l.running.exists() {
			fmt.Fprintf(&b, " running %s", l.running.effect.ID())
		}
		if l := &w.lanes[i]; l.queued.exists() {
			fmt.Fprintf(&b, " queued %s", l.queued.effect.ID())
		}
	}
	return b.String()
}
