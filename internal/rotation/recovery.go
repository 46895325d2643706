package rotation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Recovery is set while the key stands still because the store was put back to an
// earlier state: no effect is awaited or started but the reconciliation, nobody is
// told anything, and what presenters hold stays theirs. The zero value means that
// the key goes on.
type Recovery struct {
	// Since is when that was noticed.
	Since time.Time `json:"since,omitzero"`
	// Next is the smallest version number that was not minted before the cut: it and
	// larger ones belong to the time that is missing.
	Next key.Version `json:"next,omitempty"`
	// Task is the reconciliation; once it is done, Found is its answer.
	Task Task `json:"task,omitzero"`
	// Found is never changed in place. Listed: it has all that the system holds.
	Found  []Found `json:"found,omitempty"`
	Listed bool    `json:"listed,omitempty"`
}

// Standing reports whether the key stands still after a restore.
func (s *State) Standing() bool { return !s.Recovery.Since.IsZero() }

// Found is what one verifier really does with one version.
type Found struct {
	Verifier string      `json:"verifier"`
	Version  key.Version `json:"version"`
	Accepted bool        `json:"accepted,omitempty"`
}

// Resolution is how differences after a restore are settled. The zero value is
// invalid.
type Resolution uint8

// The resolutions.
const (
	// AsRemembered makes verifiers do again what the state says.
	AsRemembered Resolution = iota + 1
	// AsFound makes the state say what verifiers do; it needs a version that is
	// accepted and whose material is here.
	AsFound
	// Replace is AsFound, and brings in a fresh version at once, by the ordinary
	// protocol. It is possible whatever was found.
	Replace
)

var resolutionNames = []string{"", "as-remembered", "as-found", "replace"}

// String returns the resolution's name, "invalid" for the zero value.
func (r Resolution) String() string { return enumName(r, resolutionNames) }

// MarshalText implements encoding.TextMarshaler.
func (r Resolution) MarshalText() ([]byte, error) { return marshalEnum(r, resolutionNames) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Resolution) UnmarshalText(text []byte) error { return unmarshalEnum(r, text, resolutionNames) }

// Difference is one thing that is not as the state remembers it.
type Difference struct {
	Version key.Version
	// Verifier or Presenter says where; the other one is empty.
	Verifier  string
	Presenter string
	// Unknown: the version was brought in during the time that is missing, and its
	// material is not here.
	Unknown bool
	// Accepted is what the verifier does, against what is remembered.
	Accepted bool
}

// String says it in words.
func (d Difference) String() string {
	switch {
	case d.Presenter != "":
		return fmt.Sprintf("presenter %s holds %v, which is not known here", d.Presenter, d.Version)
	case d.Unknown:
		return fmt.Sprintf("%s accepts %v, which is not known here", d.Verifier, d.Version)
	case d.Accepted:
		return fmt.Sprintf("%s accepts %v, which was refused", d.Verifier, d.Version)
	}
	return fmt.Sprintf("%s refuses %v, which was accepted", d.Verifier, d.Version)
}

// Differences lists what a key that stands still was found to be different in
// from what is remembered, and what presenters said since; verifiers first. It is
// empty for a key that goes on, and until the reconciliation is done.
func (s *State) Differences() []Difference {
	if !s.Standing() || !s.Recovery.Task.Done {
		return nil
	}
	var list []Difference
	for _, f := range s.Recovery.Found {
		if _, known := s.Version(f.Version); !known {
			list = append(list, Difference{Version: f.Version, Verifier: f.Verifier, Unknown: true, Accepted: true})
			continue
		}
		w, ok := s.Verifier(f.Verifier)
		if !ok {
			continue
		}
		slot, asked := w.Slot(f.Version)
		if !asked || !s.differs(slot, f.Accepted) {
			continue
		}
		if s.Gap && !f.Accepted && slices.ContainsFunc(w.Slots, func(o Slot) bool {
			return o.Version != f.Version && (o.Acceptance == AcceptPending || o.Acceptance == AcceptProbing)
		}) {
			continue // the other version's acceptance, which was under way, makes it refused
		}
		list = append(list, Difference{Version: f.Version, Verifier: f.Verifier, Accepted: f.Accepted})
	}
	if s.Recovery.Listed {
		// What a presenter holds beside is accepted nowhere, whatever it says.
		return list
	}
	for i := range s.Presenters {
		p := &s.Presenters[i]
		for _, v := range p.Maybe { // Also holds known versions only
			if _, known := s.Version(v); !known {
				list = append(list, Difference{Version: v, Presenter: p.ID, Unknown: true})
			}
		}
	}
	return list
}

// differs reports whether what was found contradicts the slot. Where an effect was
// under way either answer may be found; but a refusal begins only when nobody uses
// the version, which is not known any more unless a rotation can wait for it again.
func (s *State) differs(slot Slot, accepted bool) bool {
	switch slot.Acceptance {
	case Accepted:
		return !accepted
	case Refused:
		return accepted
	case RefusePending, RefuseProbing:
		m := machine{State: *s}
		_, again := m.drainsAgain(slot.Version)
		return accepted && !again && !m.contained(slot.Version)
	case AcceptPending, AcceptProbing:
	}
	return false
}

// drainsAgain returns the rotation that waits for the end of the use of v before v
// is refused, and can do so once more.
func (m *machine) drainsAgain(v key.Version) (*Rotation, bool) {
	r, owned := m.owner(v)
	if !owned || m.Gap {
		return nil, m.Gap
	}
	return r, (r.Phase == Revoking || r.Phase == Draining) && r.From == v || r.Phase == RollingBack && r.To == v
}

// accepted reports whether every verifier, or any, was found to accept v.
func (r *Recovery) accepted(v key.Version) (everywhere, anywhere bool) {
	everywhere = true
	for _, f := range r.Found {
		if f.Version == v {
			everywhere = everywhere && f.Accepted
			anywhere = anywhere || f.Accepted
		}
	}
	return everywhere && anywhere, anywhere
}

func (m *machine) restored(body Restored) error {
	if m.Standing() && body.Epoch <= m.Floor {
		m.reconcile() // the same restore: who came back since is there still
		return nil
	}
	r := Recovery{Since: m.Now, Next: m.unminted(), Task: Task{Try: m.Recovery.Task.Try}}
	if m.Standing() {
		r.Since, r.Next = m.Recovery.Since, m.Recovery.Next
	}
	m.Epoch, m.Next = max(m.Epoch, body.Epoch), max(m.Next, body.Next)
	m.Floor = max(m.Floor, body.Epoch)
	m.Recovery = r
	for i := range m.Presenters {
		p := &m.Presenters[i]
		// What it was told since is not known: it is told anew when the key goes on.
		p.Told, p.Acked, p.Failed, p.Detail, p.Silent = 0, false, false, "", true
	}
	m.reconcile()
	return nil
}

// unminted is the smallest number of which no version was minted so far. One that
// was asked for may have been minted since.
func (m *machine) unminted() key.Version {
	for i := range m.Rotations {
		if r := &m.Rotations[i]; r.Phase == Minting && r.Task.Kind == Mint && r.Task.Waiting {
			return min(m.Next, r.To)
		}
	}
	return m.Next
}

// reconcile asks what verifiers accept.
func (m *machine) reconcile() {
	m.Recovery.Task = Task{Kind: Reconcile, Try: m.Recovery.Task.Try + 1, Waiting: true}
	m.Recovery.Found, m.Recovery.Listed = nil, false
	m.effects = append(m.effects, Effect{EffectRef: EffectRef{Kind: Reconcile, Try: m.Recovery.Task.Try}})
}

func (m *machine) reconciled(body Reconciled) error {
	if _, ok := m.waitingTask(body.Effect); !ok || body.Effect.Kind != Reconcile {
		return fmt.Errorf("%w: %s", ErrStale, body.Effect.ID())
	}
	found, err := m.sorted(body.Found)
	if err != nil {
		return err
	}
	task := &m.Recovery.Task
	task.Waiting, task.Done, task.Trouble = false, true, ""
	m.Recovery.Found, m.Recovery.Listed = found, body.Listed
	for _, f := range found {
		m.Next = max(m.Next, f.Version+1)
	}
	if len(m.Differences()) == 0 {
		m.goOn()
	}
	return nil
}

// sorted checks that every verifier has answered for every version, and that of
// versions that are not known only acceptance is told.
func (m *machine) sorted(found []Found) ([]Found, error) {
	list := slices.Clone(found)
	slices.SortFunc(list, compareFound)
	if len(slices.CompactFunc(slices.Clone(list), func(a, b Found) bool { return a.Verifier == b.Verifier && a.Version == b.Version })) != len(list) {
		return nil, fmt.Errorf("%w: a verifier is told twice to accept or refuse one version", ErrInvalid)
	}
	known := 0
	for _, f := range list {
		_, version := m.Version(f.Version)
		_, verifier := m.Verifier(f.Verifier)
		switch {
		case !verifier, f.Version == 0, !version && !f.Accepted:
			return nil, fmt.Errorf("%w: %q and %v are no verifier and version of this key", ErrInvalid, f.Verifier, f.Version)
		case version:
			known++
		}
	}
	if known != len(m.Versions)*len(m.Verifiers) {
		return nil, fmt.Errorf("%w: %d of %d answers are there", ErrInvalid, known, len(m.Versions)*len(m.Verifiers))
	}
	return list, nil
}

func compareFound(a, b Found) int {
	return cmp.Or(cmp.Compare(a.Version, b.Version), strings.Compare(a.Verifier, b.Verifier))
}

// widen notes that presenters may be using whatever is accepted: which version
// each was told last is not known, and one that could not follow may try again.
func (m *machine) widen() {
	for i := range m.Presenters {
		m.widenOne(&m.Presenters[i])
	}
}

func (m *machine) widenOne(p *Presenter) {
	for i := range m.Versions {
		if v := m.Versions[i].Number; m.inService(v) && !p.MayUse(v) {
			p.Also = append(slices.Clone(p.Also), v)
		}
	}
}

// goOn ends the standing still: what was open is asked anew, and where verifiers
// do otherwise they are asked for what is remembered.
func (m *machine) goOn() {
	found := m.Recovery.Found
	m.Recovery = Recovery{}
	for _, f := range found {
		w, _ := m.Verifier(f.Verifier)
		if _, ok := m.Version(f.Version); !ok {
			continue
		}
		slot, asked := w.Slot(f.Version)
		switch {
		case !asked && f.Accepted && w.Admitted:
			// It was to be asked next, and was in the time that is missing.
			m.take(w, f.Version)
		case !asked && f.Accepted && !slices.Contains(m.wanted(), f.Version):
			m.ask(w, f.Version, RefuseProbing)
		case !asked || slot.Failed:
		case slot.Acceptance.accepting() && m.foreign(f.Version):
			// What is refused stays so: nobody can ask for its acceptance.
			if !f.Accepted {
				m.updateSlot(w, f.Version, func(slot *Slot) { slot.Acceptance = Refused })
			}
		case slot.Acceptance.accepting():
			if slot.Acceptance != Accepted || !f.Accepted {
				m.ask(w, f.Version, AcceptPending)
			}
		case slot.Acceptance == Refused && !f.Accepted:
		default:
			m.refuseAgain(w, f)
		}
	}
	for i := range m.Versions {
		m.Versions[i].Destroy.Waiting = false
	}
	for i := range m.Rotations {
		r := &m.Rotations[i]
		r.Task = Task{Try: r.Task.Try}
		r.QuietSince, r.MeasureAt, r.BakeSince, r.JudgeAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	}
	m.widen()
}

// refuseAgain makes w refuse what it was to refuse. What it accepts still may be in
// use again, and is drained once more where a rotation can wait for that.
func (m *machine) refuseAgain(w *Verifier, f Found) {
	r, again := m.drainsAgain(f.Version)
	if !f.Accepted || !again || r == nil || m.contained(f.Version) {
		m.ask(w, f.Version, RefusePending)
		return
	}
	m.updateSlot(w, f.Version, func(slot *Slot) {
		m.Tries++
		*slot = Slot{Version: f.Version, Acceptance: Accepted, Try: m.Tries}
	})
	if r.Phase == Revoking {
		m.enter(r, Draining)
	}
}

// take notes that w accepts v, for which it was never asked.
func (m *machine) take(w *Verifier, v key.Version) {
	m.Tries++
	w.Slots = append(slices.Clone(w.Slots), Slot{Version: v, Acceptance: Accepted, Try: m.Tries})
	if version, _ := m.Version(v); version.State == key.PreActivation {
		version.State = key.Active
	}
}

func (m *machine) resolve(id key.RotationID, body Resolve) error {
	if !m.Standing() {
		return fmt.Errorf("%w: the key does not stand still; there is nothing to reconcile", ErrPhase)
	}
	if !m.Recovery.Task.Done {
		return fmt.Errorf("%w: %s", ErrRestored, m.WhyStanding())
	}
	found, err := m.sorted(body.Found)
	if err != nil || !slices.Equal(found, m.Recovery.Found) {
		return fmt.Errorf("%w: what verifiers accept has changed since it was shown", ErrStale)
	}
	switch body.How {
	case AsRemembered:
		if locked := m.lockedOut(); len(locked) > 0 && !body.LockOut {
			return fmt.Errorf("%w: %s; replace the key instead, or accept that these are locked out", ErrLockOut, joinFew(locked))
		}
		for i := range m.Presenters {
			p := &m.Presenters[i]
			p.Maybe = slices.DeleteFunc(slices.Clone(p.Maybe), func(v key.Version) bool { _, known := m.Version(v); return !known })
		}
		m.goOn()
		return nil
	case AsFound, Replace:
		return m.adopt(id, body)
	}
	return fmt.Errorf("%w: resolution %v", ErrInvalid, body.How)
}

// WhyStanding says why nothing happens while the key stands still.
func (s *State) WhyStanding() string {
	switch {
	case !s.Standing():
		return ""
	case s.Recovery.Task.Trouble != "":
		return "what verifiers accept could not be found out yet: " + s.Recovery.Task.Trouble
	case s.Recovery.Task.Done:
		return fmt.Sprintf("verifiers do not do what is remembered: %s", joinFew(s.Differences()))
	}
	return "what verifiers accept is being found out"
}

func joinFew[T fmt.Stringer](list []T) string {
	const few = 5
	var words []string
	for _, item := range list[:min(few, len(list))] {
		words = append(words, item.String())
	}
	if more := len(list) - few; more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, "; ")
}

// lockedOut lists the differences that cannot be undone without locking somebody
// out: versions in use that are not known, and such that would be refused.
func (m *machine) lockedOut() []Difference {
	var list []Difference
	for _, d := range m.Differences() {
		inUse := slices.ContainsFunc(m.Presenters, func(p Presenter) bool { return p.Silent || p.MayUse(d.Version) })
		if d.Unknown || d.Accepted && inUse || m.Gap {
			list = append(list, d)
		}
	}
	return list
}

// adopt makes the state say what was found. Open rotations end; of the versions
// that are accepted one is current and the others are retired, each by a rotation.
func (m *machine) adopt(id key.RotationID, body Resolve) error {
	var unknown []key.Version
	for _, f := range m.Recovery.Found {
		if _, known := m.Version(f.Version); !known && !slices.Contains(unknown, f.Version) {
			unknown = append(unknown, f.Version)
		}
	}
	current := m.currentFound(unknown)
	if body.How == AsFound {
		switch {
		case len(unknown) > 0:
			return fmt.Errorf("%w: %v is accepted and its material is not here, so that nobody could be given it; replace the key", ErrPhase, unknown[len(unknown)-1])
		case current == 0 && len(m.Versions) > 0:
			return fmt.Errorf("%w: no version that is known here is accepted; replace the key", ErrPhase)
		case m.compromised(current):
			return fmt.Errorf("%w: %v is what verifiers accept; replace the key", ErrCompromised, current)
		}
	} else if err := m.checkNew(id, body.Plan); err != nil {
		return err
	}
	ids := slices.Clone(body.Retire)
	if len(ids) < len(m.Versions)+len(unknown) || len(body.Plan.Stages) == 0 {
		return fmt.Errorf("%w: a plan and an ID for each of %d versions are needed", ErrInvalid, len(m.Versions)+len(unknown))
	}
	recovery := m.Recovery
	m.Recovery = Recovery{}
	for i := range m.Rotations {
		m.enter(&m.Rotations[i], Superseded)
		m.Rotations[i].Hold = Hold{}
	}
	m.adoptSlots(&recovery)
	for _, v := range unknown {
		m.Versions = append(m.Versions, Version{Number: v, State: key.Active, MintedAt: m.Now, Foreign: true})
	}
	slices.SortFunc(m.Versions, func(a, b Version) int { return cmp.Compare(a.Number, b.Number) })
	for i := range m.Versions {
		v := &m.Versions[i]
		_, accepted := recovery.accepted(v.Number)
		m.adoptVersion(v, current, accepted, body.Plan.DestroyAfter)
		if accepted && v.Number != current {
			m.open(Rotation{ID: ids[0], Kind: Manual, Plan: body.Plan, Reason: "accepted after a restore", Actor: body.Actor, From: v.Number, To: current})
			m.enter(&m.Rotations[len(m.Rotations)-1], Draining)
			ids = ids[1:]
		}
	}
	m.widen()
	if body.How == Replace {
		plan := body.Plan
		// There may be no version to return to: the rotation must not depend on it.
		plan.EndQuarantineEarly = true
		plan.Stages = slices.Clone(plan.Stages)
		for i := range plan.Stages {
			plan.Stages[i].SkipEmpty = true
		}
		m.open(Rotation{ID: id, Kind: Manual, Plan: plan, Reason: cmp.Or(body.Reason, "replaced after a restore"), Actor: body.Actor, From: current})
	}
	return nil
}

// currentFound is the version to be the current one: the remembered one if it is
// accepted everywhere and presenters can be given it, else the newest that is, else
// what is accepted everywhere and nobody can be given, else the newest of those that
// are not known, since what is in use is never older, else what is accepted
// somewhere; 0 for none.
func (m *machine) currentFound(unknown []key.Version) key.Version {
	remembered := m.Labelled(key.Current)
	stands, _ := m.Recovery.accepted(remembered)
	if stands && !m.foreign(remembered) {
		return remembered
	}
	var newest, wide, foreign, some key.Version
	if len(unknown) > 0 {
		newest = slices.Max(unknown)
	}
	for i := range m.Versions {
		v := &m.Versions[i]
		if v.State == key.Deactivated || v.State == key.Compromised {
			continue
		}
		everywhere, anywhere := m.Recovery.accepted(v.Number)
		switch {
		case everywhere && v.Foreign:
			foreign = v.Number
		case everywhere:
			wide = v.Number
		}
		if anywhere {
			some = v.Number
		}
	}
	if stands {
		foreign = remembered
	}
	if _, anywhere := m.Recovery.accepted(remembered); anywhere {
		some = remembered
	}
	return cmp.Or(wide, foreign, newest, some)
}

// adoptSlots makes every slot say what was found.
func (m *machine) adoptSlots(recovery *Recovery) {
	for i := range m.Verifiers {
		w := &m.Verifiers[i]
		var slots []Slot
		for _, f := range recovery.Found {
			if _, asked := w.Slot(f.Version); f.Verifier != w.ID || !asked && !f.Accepted {
				continue
			}
			m.Tries++
			slot := Slot{Version: f.Version, Acceptance: Refused, Try: m.Tries}
			if f.Accepted {
				slot.Acceptance = Accepted
			}
			slots = append(slots, slot)
		}
		w.Slots = slots
	}
}

func (m *machine) adoptVersion(v *Version, current key.Version, accepted bool, keep time.Duration) {
	was := v.Label
	v.Label, v.Destroy = 0, Task{Kind: v.Destroy.Kind, Try: v.Destroy.Try}
	switch {
	case v.Number == current:
		v.Label, v.DestroyAt = key.Current, time.Time{}
		if was != key.Current {
			v.CurrentSince = m.Now
		}
		fallthrough
	case accepted:
		v.DestroyAt = time.Time{}
		if v.State == key.PreActivation || v.State == key.Suspended {
			v.State = key.Active
		}
	default:
		if v.State != key.Compromised {
			v.State = key.Deactivated
		}
		if v.DestroyAt.IsZero() {
			v.DestroyAt = m.Now.Add(keep)
		}
	}
}

// foreign reports whether v exists and its material was never here.
func (m *machine) foreign(v key.Version) bool {
	version, ok := m.Version(v)
	return ok && version.Foreign
}
