package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// keyTruth is the truth about one key: the system that verifies it, and what the
// committed events of the key lead to.
type keyTruth struct {
	w    *world
	name key.Name
	kind systemKind
	// endpoints are all that the system may consist of; applied says which ones do.
	endpoints []*endpoint
	minted    int

	// state is folded from the committed events, before from all but the last.
	state rotation.State
	// contained are versions that were ever declared to be refused at once.
	contained map[key.Version]bool
	// requests counts the rotations that one request led to.
	requests map[string]key.RotationID
	// measured is how the use of each version was measured last.
	measured map[key.Version]measurement
	// left are versions that were destroyed while an endpoint outside the
	// configuration accepted them: nobody can make it refuse them any more.
	left map[string]map[key.Version]bool
	// lost are versions whose material a restore took away.
	lost map[key.Version]bool
	// returned are endpoints that a restore of old documents brought back, until they
	// accept what is in use: nobody was to reach them any more. Beside each is the
	// state's floor before that restore was noticed.
	returned map[string]uint64
	// unmarked: the store was put back, and no server has noticed yet.
	unmarked bool
	// asked are the endpoints that said what they accept since the last restore.
	asked map[string]bool
}

// measurement is the answer to the latest call that measured use.
type measurement struct {
	fence    uint64
	answered bool
	sessions int
}

// systemKind is how a system holds versions.
type systemKind uint8

const (
	// anyNumber: every endpoint accepts any number of versions.
	anyNumber systemKind = iota + 1
	// twoUsers: the versions alternate between two users, and endpoints other than
	// the first one replicate it with a lag.
	twoUsers
	// oneUser: accepting a version refuses the one before.
	oneUser
)

func (k systemKind) String() string { return [...]string{"", "many", "users", "single"}[k] }

// endpoint is one verifier.
type endpoint struct {
	k      *keyTruth
	name   string
	region string
	// slots hold what is accepted, by place; fences the largest seen.
	slots  map[string]accepted
	fences map[string]uint64
	// heard is the largest fence of a call that it claimed to have carried out.
	heard uint64
	// once are the versions that it ever accepted.
	once map[key.Version]bool
	down bool
	// behind counts changes of the primary that have not arrived.
	behind int
}

// accepted is what is accepted in one place.
type accepted struct {
	version  key.Version
	password secret.Value
}

func (w *world) buildKeys() {
	for i := range w.plan.keys {
		k := &keyTruth{
			w: w, name: key.Name(fmt.Sprint("k", i+1)), kind: systemKind(1 + w.rng.IntN(3)), contained: map[key.Version]bool{},
			requests: map[string]key.RotationID{}, left: map[string]map[key.Version]bool{}, measured: map[key.Version]measurement{}, lost: map[key.Version]bool{},
			returned: map[string]uint64{}, asked: map[string]bool{},
		}
		if k.kind == oneUser && w.rng.IntN(2) == 0 {
			k.kind = twoUsers
		}
		for j := range 2 + w.rng.IntN(2) {
			k.endpoints = append(k.endpoints, &endpoint{
				k: k, name: fmt.Sprint("e", j+1), region: []string{"west", "east"}[j%2], slots: map[string]accepted{}, fences: map[string]uint64{}, once: map[key.Version]bool{},
			})
		}
		w.keys = append(w.keys, k)
	}
}

func (k *keyTruth) endpoint(name string) *endpoint {
	for _, e := range k.endpoints {
		if e.name == name {
			return e
		}
	}
	return nil
}

// accepts reports whether the endpoint lets the version in.
func (e *endpoint) accepts(v key.Version, password secret.Value) bool {
	for _, a := range e.slots {
		if a.version == v && a.password.Equal(password) {
			return true
		}
	}
	return false
}

func (w *world) drivers(l *life) map[string]provider.Driver {
	return map[string]provider.Driver{"sim": driver{l}}
}

// driver opens systems as one server reaches them.
type driver struct{ l *life }

func (d driver) Check(config provider.Config) (provider.Topology, error) {
	name, _ := config["key"].(string)
	k := d.l.w.key(key.Name(name))
	if k == nil {
		return provider.Topology{}, &provider.ConfigError{Path: "key", Problem: "unknown"}
	}
	t := provider.Topology{Capacity: map[systemKind]int{twoUsers: 2}[k.kind], Gap: k.kind == oneUser}
	names, _ := config["endpoints"].(string)
	for _, name := range strings.Fields(names) {
		e := k.endpoint(name)
		t.Endpoints = append(t.Endpoints, provider.Endpoint{Name: name, Region: e.region, Host: name + "." + string(k.name)})
	}
	return t, nil
}

func (d driver) Open(_ context.Context, config provider.Config, _ provider.Env) (provider.System, error) {
	name, _ := config["key"].(string)
	t, err := d.Check(config)
	s := &systemOf{l: d.l, k: d.l.w.key(key.Name(name)), topology: t}
	lists, fenced := s.k != nil && s.k.kind != anyNumber, !d.l.w.plan.unfenced
	switch {
	case lists && fenced:
		return struct {
			listingSystem
			fencingSystem
		}{listingSystem{s}, fencingSystem{s}}, err
	case lists:
		return listingSystem{s}, err
	case fenced:
		return struct {
			*systemOf
			fencingSystem
		}{s, fencingSystem{s}}, err
	}
	return s, err
}

// systemOf is a system as one server reaches it.
type systemOf struct {
	l        *life
	k        *keyTruth
	topology provider.Topology
}

var (
	errUnreachable = errors.New("connection refused")
	errTimeout     = errors.New("i/o timeout")
	errFence       = errors.New("a later call was seen already")
	errBehind      = errors.New("the change has not arrived yet")
)

// do passes one call to an endpoint and has effect happen there, as often as
// the faults let it.
func (s *systemOf) do(ctx context.Context, call provider.Call, what string, e *endpoint, faults []fault, effect func() error) error {
	w := s.l.w
	label := fmt.Sprintf("%s -> %s/%s: %s #%d", s.l.name, s.k.name, e.name, what, call.Fence)
	r := &request{kind: kindCall, of: s.l, label: label, from: s.l.region, to: e.region, faults: faults}
	if slices.Contains(faults, lateCall) {
		r.began, r.effect = time.Now(), effect
	}
	met, err := w.wait(ctx, r)
	if err != nil {
		return err
	}
	if e.down {
		return errUnreachable
	}
	switch met { //nolint:exhaustive // the others do not happen to calls
	case partition, lostCall:
		return errUnreachable
	case lostAnswer:
		_ = effect()
		return errTimeout
	case lateCall:
		w.straggle(label, w.some(callLate), func() { _ = effect() })
		return errTimeout
	case falseSuccess:
		// It took note of the call: what came before it and is late is refused.
		e.hear(call.Fence)
		return nil
	case targetCrash:
		if w.coin() {
			_ = effect()
		}
		e.crash(w.some(30 * time.Second))
		return errTimeout
	case serverCrash:
		s.l.restartLater(w.some(20 * time.Second))
		if w.coin() {
			_ = effect()
		}
		s.l.crash()
		return errGone
	}
	return effect()
}

func (e *endpoint) hear(fence uint64) { e.heard = max(e.heard, fence) }

// straggle has something happen later, on its own.
func (w *world) straggle(label string, after time.Duration, effect func()) {
	go func() {
		r := &request{kind: kindInner, label: label + " (late)", after: time.Now().Add(after)}
		if _, err := w.wait(w.ctx, r); err == nil {
			effect()
		}
	}()
}

const (
	// callLasts is how long a call may take where nothing compares fences: the engine's
	// EffectTime.
	callLasts = 20 * time.Second
	// callLate is how late a call may arrive where fences are compared.
	callLate = 90 * time.Second
)

// outlive has changes that are under way arrive although whoever sent them has gone:
// where no fences are compared each within its time, or never.
func (w *world) outlive() {
	longest := callLate
	if w.plan.unfenced {
		longest = callLasts
	}
	w.mu.Lock()
	calls := slices.Clone(w.waiting)
	w.mu.Unlock()
	calls = slices.DeleteFunc(calls, func(r *request) bool { return r.effect == nil || time.Since(r.began) >= longest })
	slices.SortFunc(calls, byLabel)
	for _, r := range calls {
		after := w.some(longest - time.Since(r.began))
		if w.plan.unfenced {
			after = time.Duration(w.rng.Int64N(int64(longest - time.Since(r.began))))
		}
		if w.coin() {
			w.straggle(r.label+" outlives its server", after, func() {
				// Whatever stalled meanwhile: the engine may count on that time.
				if w.plan.unfenced && time.Since(r.began) > longest {
					w.note(0, r.label+" comes too late, and never arrives")
					return
				}
				_ = r.effect()
			})
		}
	}
}

func (e *endpoint) crash(down time.Duration) {
	e.down = true
	e.k.w.later(down, fmt.Sprintf("%s/%s is back", e.k.name, e.name), func() { e.down = false })
}

// Mint implements provider.Issuer.
func (s *systemOf) Mint(ctx context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	var material provider.Material
	faults := []fault{lostCall, lostAnswer, serverCrash}
	err := s.do(ctx, call, fmt.Sprint("mint ", request.Number), s.k.endpoints[0], faults, func() error {
		slot := ""
		switch s.k.kind {
		case anyNumber:
			slot = request.Number.String()
		case oneUser:
			slot = "user"
		case twoUsers:
			for _, user := range []string{"a", "b"} {
				if !slices.ContainsFunc(request.Live, func(v provider.Version) bool { return v.Material.Attributes["slot"] == user }) {
					slot = user
					break
				}
			}
			if slot == "" {
				return provider.ErrNoRoom
			}
		}
		s.k.minted++
		material = provider.Material{
			Attributes: map[string]string{"slot": slot},
			Secrets:    map[string]secret.Value{"password": secret.NewString(fmt.Sprint(s.k.name, request.Number, " try ", s.k.minted))},
		}
		return nil
	})
	return material, err
}

// guarded compares the call with the rules for effects and with the fence.
func (s *systemOf) guarded(call provider.Call, e *endpoint, slot, what string, v key.Version) error {
	s.l.w.effect(s.k, e, call, what, v)
	if !s.l.w.plan.unfenced && (call.Fence < e.fences[slot] || call.Fence < e.heard) {
		return errFence
	}
	if s.k.asked[e.name] && s.l.era < s.l.w.restores {
		s.l.w.violate("found", "%s %v of %s was sent before a restore, and reached %s after that was asked what it accepts", what, v, s.k.name, e.name)
	}
	e.fences[slot] = call.Fence
	return nil
}

// Accept implements provider.Verifier.
func (s *systemOf) Accept(ctx context.Context, call provider.Call, name string, v provider.Version) error {
	e, slot := s.k.endpoint(name), v.Material.Attributes["slot"]
	faults := []fault{lostCall, lostAnswer, lateCall, falseSuccess, targetCrash, serverCrash}
	return s.do(ctx, call, "accept "+v.Number.String(), e, faults, func() error {
		if s.k.replica(e) {
			if !e.accepts(v.Number, v.Material.Secrets["password"]) {
				return errBehind
			}
			return nil
		}
		if err := s.guarded(call, e, slot, "accept", v.Number); err != nil {
			return err
		}
		e.slots[slot] = accepted{v.Number, v.Material.Secrets["password"]}
		e.once[v.Number] = true
		s.k.changed(slot)
		return nil
	})
}

// Refuse implements provider.Verifier.
func (s *systemOf) Refuse(ctx context.Context, call provider.Call, name string, v provider.Version) error {
	e, slot := s.k.endpoint(name), v.Material.Attributes["slot"]
	faults := []fault{lostCall, lostAnswer, lateCall, falseSuccess, targetCrash, serverCrash}
	return s.do(ctx, call, "refuse "+v.Number.String(), e, faults, func() error {
		if s.k.replica(e) {
			// What has not arrived yet may make it accept the version once more.
			if e.behind > 0 || e.holds(v.Number) || s.k.endpoints[0].holds(v.Number) {
				return errBehind
			}
			return nil
		}
		if err := s.guarded(call, e, slot, "refuse", v.Number); err != nil {
			return err
		}
		// Of a version whose material was lost it knows the number alone.
		lost := len(v.Material.Secrets) == 0 && e.slots[slot].version == v.Number
		if lost || e.accepts(v.Number, v.Material.Secrets["password"]) {
			delete(e.slots, slot)
			s.k.changed(slot)
		}
		return nil
	})
}

// replica reports whether an endpoint follows the first one.
func (k *keyTruth) replica(e *endpoint) bool { return k.kind == twoUsers && e != k.endpoints[0] }

// changed notes a change, and has replicas follow.
func (k *keyTruth) changed(slot string) {
	k.w.dirty = true
	if k.kind != twoUsers {
		return
	}
	for _, replica := range k.endpoints[1:] {
		replica.behind++
		k.w.replicate(replica, slot, k.w.plan.lag)
	}
}

// replicate copies one place of the primary after a while, as soon as nothing
// stands between the two.
func (w *world) replicate(to *endpoint, slot string, after time.Duration) {
	primary := to.k.endpoints[0]
	label := fmt.Sprintf("%s/%s replicates %s", to.k.name, to.name, slot)
	w.straggle(label, after, func() {
		if to.down || primary.down || w.cut(primary.region, to.region) {
			w.replicate(to, slot, 2*time.Second)
			return
		}
		to.behind--
		if a, ok := primary.slots[slot]; ok {
			to.slots[slot] = a
			to.once[a.version] = true
		} else {
			delete(to.slots, slot)
		}
		w.dirty = true
	})
}

// Probe implements provider.Verifier.
func (s *systemOf) Probe(ctx context.Context, call provider.Call, name string, v provider.Version) (provider.Verdict, error) {
	e := s.k.endpoint(name)
	verdict := provider.Refused
	// A probe that says "refused" of what is accepted can only delay. One that says
	// "accepted" of what is refused would be the end of every promise: nobody else
	// could know; nor could anybody of what is found out after a restore.
	lies := false
	w := s.l.w
	err := s.do(ctx, call, "probe "+v.Number.String(), e, []fault{slowProbe, lostCall, lostAnswer, lyingProbe, serverCrash}, func() error {
		if e.accepts(v.Number, v.Material.Secrets["password"]) {
			verdict = provider.Accepted
		}
		lies = w.lastFault() == lyingProbe && !s.k.state.Standing()
		return nil
	})
	if err == nil && lies {
		wanted := s.k.wanted(name, v.Number)
		if wanted && verdict == provider.Accepted {
			verdict = provider.Refused
		} else if !wanted && verdict == provider.Refused {
			verdict = provider.Accepted
		}
	}
	return verdict, err
}

// lastFault is the one that the request that goes on has met.
func (w *world) lastFault() fault { return w.tale[len(w.tale)-1].fault }

// wanted reports whether the endpoint was last asked to accept the version.
func (k *keyTruth) wanted(name string, v key.Version) bool {
	verifier, ok := k.state.Verifier(name)
	if !ok {
		return false
	}
	slot, _ := verifier.Slot(v)
	return slot.Acceptance <= rotation.Accepted
}

// fencingSystem compares fences.
type fencingSystem struct{ s *systemOf }

// Fence implements provider.Fencer.
func (f fencingSystem) Fence(ctx context.Context, call provider.Call, name string) error {
	e := f.s.k.endpoint(name)
	return f.s.do(ctx, call, "fence", e, []fault{lostCall, lostAnswer, targetCrash, serverCrash}, func() error {
		if !f.s.k.replica(e) {
			e.hear(call.Fence)
		}
		return nil
	})
}

// listingSystem keeps note of which versions it holds.
type listingSystem struct{ *systemOf }

// Held implements provider.Lister.
func (s listingSystem) Held(ctx context.Context, call provider.Call) ([]provider.Held, error) {
	var held []provider.Held
	for _, endpoint := range s.topology.Endpoints {
		e := s.k.endpoint(endpoint.Name)
		err := s.do(ctx, call, "held", e, []fault{lostCall, lostAnswer, serverCrash}, func() error {
			for _, slot := range slices.Sorted(maps.Keys(e.slots)) {
				held = append(held, provider.Held{
					Endpoint: e.name, Version: e.slots[slot].version, Accepted: true, Attributes: map[string]string{"slot": slot},
				})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return held, nil
}

func (k *keyTruth) note(v key.Version, m measurement) {
	if m.fence >= k.measured[v].fence {
		k.measured[v] = m
	}
}

// Usage implements provider.Meter.
func (s *systemOf) Usage(ctx context.Context, call provider.Call, v provider.Version) (provider.Usage, error) {
	var usage provider.Usage
	for _, endpoint := range s.topology.Endpoints {
		e := s.k.endpoint(endpoint.Name)
		err := s.do(ctx, call, "usage "+v.Number.String(), e, []fault{lostCall, lostAnswer, slowProbe, serverCrash}, func() error {
			for _, a := range s.l.w.agents {
				if a.uses(s.k.name).version == v.Number {
					usage.Sessions++
				}
			}
			return nil
		})
		if err != nil {
			s.k.note(v.Number, measurement{fence: call.Fence})
			return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
		}
	}
	s.k.note(v.Number, measurement{fence: call.Fence, answered: true, sessions: usage.Sessions})
	return usage, nil
}
