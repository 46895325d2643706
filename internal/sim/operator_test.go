package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// operators act on the fleet, sometimes two at once.
type operators struct {
	w        *world
	commands int
	// applied are the endpoints of each key as they were applied last.
	applied map[key.Name][]string
	// variant numbers the form of the policy.
	variant int
}

func newOperators(w *world) *operators {
	o := &operators{w: w, applied: map[key.Name][]string{}}
	for _, k := range w.keys {
		o.applied[k.name] = []string{"e1", "e2"}
	}
	return o
}

// documents are the policy and the keys as they shall be now.
func (o *operators) documents() []string {
	p := o.w.plan
	spec := "  stages: [{name: all, bake: 2s, ackTimeout: 30s}]\n"
	if p.staged {
		spec = "  stages: [{name: canary, match: 'party.labels.cohort == \"canary\"', bake: 3s, ackTimeout: 30s, onEmpty: skip}, {name: rest, bake: 1s, ackTimeout: 30s}]\n"
	}
	if p.regional {
		spec = "  stages: [{name: all, bake: 2s, ackTimeout: 30s, regions: [east, west]}]\n"
	}
	if p.gateway { // a client that is gone is waited for until it is forgotten
		spec = strings.ReplaceAll(spec, "ackTimeout: 30s", "ackTimeout: 4m")
	}
	if p.judged {
		spec += "  judge: [{name: failures, signal: auth_failures}]\n"
	}
	if p.holding {
		spec += "  onFailure: hold\n"
	}
	if p.approved {
		spec += "  approvals: {required: 1}\n"
	}
	spec += "  drain: {min: " + []string{"5s", "2s"}[o.variant%2] + ", quiet: 4s, max: 2m, every: 2s}\n"
	spec += "  quarantine: " + []string{"20s", "40s"}[o.variant%2] + "\n  endQuarantineEarly: true\n  retain: {destroyAfter: 10s}\n"
	spec += "  emergency: {strategy: " + []string{"replace-first", "contain-first"}[o.variant/2%2] + ", grace: 10s}\n  allowGap: true\n"
	spec += "  rotate: {every: " + []string{"10m", "3m"}[o.variant%2] + "}\n"
	docs := []string{"---\napiVersion: keyturn/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n" + spec}
	for _, k := range o.w.keys {
		docs = append(docs, fmt.Sprintf("---\napiVersion: keyturn/v1\nkind: Key\nmetadata: {name: %s}\nspec: {provider: sim, policy: p, config: {key: %s, endpoints: %q}}\n",
			k.name, k.name, strings.Join(o.applied[k.name], " ")))
	}
	return docs
}

// command passes a command to a server, repeated once when it fails in a way
// that leaves open what became of it.
func (o *operators) command(who string, at *node, what string, do func(ctx context.Context, l *life) error) {
	w := o.w
	o.commands++
	number := o.commands
	go func() {
		for try := range 3 {
			label := fmt.Sprintf("%s: %s [%d.%d] at %s", who, what, number, try, at.name)
			if _, err := w.wait(w.ctx, &request{kind: kindCommand, label: label}); err != nil {
				return
			}
			l := at.up()
			err := errGone
			if l != nil {
				err = do(l.ctx, l)
			}
			if err == nil || refusal(err) {
				return
			}
			at = w.nodes[(slices.Index(w.nodes, at)+1)%len(w.nodes)]
			pause(w.ctx, 3*time.Second)
		}
	}()
}

// refusal reports whether a command was turned down for good.
func refusal(err error) bool {
	return forGood(err) || slices.ContainsFunc([]error{
		engine.ErrState, rotation.ErrBusy, rotation.ErrPhase, rotation.ErrStale, rotation.ErrUnknown, rotation.ErrCompromised, rotation.ErrRestored, rotation.ErrLockOut,
	}, func(target error) bool { return errors.Is(err, target) })
}

func actor(who string) audit.Actor { return audit.Actor{ID: who, Kind: "user"} }

func (o *operators) apply(who string, at *node, what string, documents ...string) {
	var request engine.ApplyRequest
	for i, source := range documents {
		request.Documents = append(request.Documents, engine.Document{Name: fmt.Sprint(i, ".yaml"), Content: []byte(source)})
	}
	o.command(who, at, what, func(ctx context.Context, l *life) error {
		result, err := l.engine.Apply(ctx, actor(who), request)
		if err == nil && result.Problems.Err() != nil {
			o.w.violate("apply", "%v", result.Problems)
		}
		return err
	})
}

func (o *operators) rotate(who string, at *node, k *keyTruth, emergency bool, strategy rotation.Strategy) {
	request := engine.RotateRequest{Key: k.name, Emergency: emergency, Strategy: strategy, RequestID: fmt.Sprint("request ", o.commands)}
	request.Reason = who + "'s " + request.RequestID
	what := "rotate " + string(k.name)
	if emergency {
		what = fmt.Sprintf("emergency %v of %s", strategy, k.name)
	}
	o.command(who, at, what, func(ctx context.Context, l *life) error {
		_, err := l.engine.Rotate(ctx, actor(who), request)
		return err
	})
}

func (o *operators) steer(who string, at *node, id key.RotationID, steer engine.Steer) {
	what := map[engine.Steer]string{engine.SteerApprove: "approve", engine.SteerPause: "pause", engine.SteerResume: "resume", engine.SteerCancel: "cancel"}[steer]
	o.command(who, at, what+" "+short(id), func(ctx context.Context, l *life) error {
		return l.engine.Steer(ctx, actor(who), id, steer, "because")
	})
}

func short(id key.RotationID) string { return id.String()[:8] + id.String()[len(id.String())-4:] }

// act has an operator do something.
func (o *operators) act(who string) {
	w := o.w
	k := w.keys[w.rng.IntN(len(w.keys))]
	at := w.anyNode()
	open := k.state.Rotations
	pick := func() key.RotationID {
		if len(open) == 0 {
			return key.RotationID{}
		}
		return open[w.rng.IntN(len(open))].ID
	}
	if k.state.Standing() && w.rng.IntN(2) == 0 {
		o.reconcile(who, at, k, []rotation.Resolution{rotation.Replace, rotation.Replace, rotation.AsFound}[w.rng.IntN(3)])
		return
	}
	if gone := w.gone(); gone != nil && w.rng.IntN(4) == 0 {
		o.remove(who, at, gone)
		return
	}
	switch n := w.rng.IntN(20); {
	case n < 9:
		o.rotate(who, at, k, false, 0)
	case n < 10:
		o.rotate(who, at, k, true, rotation.ReplaceFirst)
	case n < 11:
		o.rotate(who, at, k, true, rotation.ContainFirst)
	case n < 13:
		id := pick()
		o.command(who, at, "roll back "+short(id), func(ctx context.Context, l *life) error {
			_, err := l.engine.Rollback(ctx, actor(who), id, "because")
			return err
		})
	case n < 14:
		o.steer(who, at, pick(), engine.SteerPause)
	case n < 16:
		o.steer(who, at, pick(), engine.SteerResume)
	case n < 17:
		o.steer(who, at, pick(), engine.SteerCancel)
	case n < 18:
		o.steer(who, at, pick(), engine.SteerApprove)
	case n < 19:
		o.variant++
		o.apply(who, at, "another policy", o.documents()...)
	default:
		choices := [][]string{{"e1"}, {"e1", "e2"}, {"e1", "e2", "e3"}, {"e1", "e3"}}
		o.applied[k.name] = choices[w.rng.IntN(2*len(k.endpoints)-2)]
		o.apply(who, at, "other endpoints of "+string(k.name), o.documents()...)
	}
}

// reconcile has an operator settle what differs after a restore.
func (o *operators) reconcile(who string, at *node, k *keyTruth, how rotation.Resolution) {
	o.command(who, at, fmt.Sprintf("reconcile %s %v", k.name, how), func(ctx context.Context, l *life) error {
		_, err := l.engine.Reconcile(ctx, actor(who), engine.ReconcileRequest{Key: k.name, How: how, Reason: "restored"})
		return err
	})
}

// contain has an operator refuse a version, whoever uses it.
func (o *operators) contain(who string, at *node, k *keyTruth, v key.Version) {
	request := engine.RotateRequest{
		Key: k.name, Emergency: true, Strategy: rotation.ContainFirst, Compromised: []key.Version{v}, RequestID: fmt.Sprint("request ", o.commands),
	}
	request.Reason = who + "'s " + request.RequestID
	o.command(who, at, fmt.Sprintf("contain %v of %s", v, k.name), func(ctx context.Context, l *life) error {
		_, err := l.engine.Rotate(ctx, actor(who), request)
		return err
	})
}

// remove has an operator forget a party that is gone for good.
func (o *operators) remove(who string, at *node, a *agent) {
	o.command(who, at, "remove "+a.id, func(ctx context.Context, l *life) error {
		return l.hub.Leave(ctx, actor(who), a.id, "it is gone")
	})
}

// gone returns a presenter that has vanished and is still waited for.
func (w *world) gone() *agent {
	for _, a := range w.agents {
		if a.vanished && a.registered() {
			return a
		}
	}
	return nil
}

// registered reports whether any key waits for the agent.
func (a *agent) registered() bool {
	return slices.ContainsFunc(a.keys, func(k *keyTruth) bool {
		_, waits := k.state.Presenter(a.id)
		return waits
	})
}

// disturb draws whether something befalls the fleet as a whole, and does it.
func (w *world) disturb() bool {
	if w.calm {
		return false
	}
	if w.mem != nil && w.plan.rate[restore] > 0 && w.rng.IntN(100) == 0 {
		w.keepBackup()
	}
	if plain := w.plain(); w.plan.rate[agentBack] > 0 && len(plain) > 0 && w.rng.IntN(100) == 0 {
		a := plain[w.rng.IntN(len(plain))]
		a.mu.Lock()
		a.copied = maps.Clone(a.disk)
		a.mu.Unlock()
	}
	if w.plan.gateway && w.rng.IntN(80) == 0 {
		w.note(0, "one more client starts")
		w.gateway.newClient()
		return true
	}
	often, changing := w.plan.commands, w.changing()
	switch {
	case w.idle():
		often = 0.2
	case changing == slow:
		often = max(often, 0.05) // they do not like to wait
	}
	if w.rng.Float64() < often {
		w.ops.act("alice")
		return true
	}
	for _, f := range []fault{partition, serverStop, clockForward, clockBack, keeperOutage, vanished, twoOperators, restore, clockSkewed, agentBack} {
		happens := w.happens(f)
		for range 8 {
			// What is under way then, and arrives later, is what matters of a restore.
			happens = happens || f == restore && changing != 0 && w.happens(f)
		}
		if happens && w.befall(f) {
			w.met(f)
			return true
		}
	}
	return false
}

// change says whether a change at a system is under way. The zero value is no.
type change uint8

const (
	quick change = iota + 1
	slow
)

// changing reports whether any server waits for a change at a system.
func (w *world) changing() change {
	w.mu.Lock()
	defer w.mu.Unlock()
	is := change(0)
	for _, r := range w.waiting {
		switch {
		case r.effect != nil && r.repeat:
			return slow
		case r.effect != nil:
			is = quick
		}
	}
	return is
}

// idle reports whether no rotation is on its way: there is none, or all are held.
func (w *world) idle() bool {
	for _, k := range w.keys {
		for i := range k.state.Rotations {
			if r := &k.state.Rotations[i]; r.Hold.Reason == "" && r.Phase != rotation.Planned {
				return false
			}
		}
	}
	return true
}

func (w *world) befall(f fault) bool {
	n := w.anyNode()
	switch f { //nolint:exhaustive // the others befall requests
	case partition:
		cut := [2]string{"east", "west"}
		if w.plan.gateway && w.rng.IntN(4) > 0 {
			cut = [2]string{"east", edge}
		}
		if w.cuts[cut] {
			return false
		}
		if cut[1] == edge {
			w.cutOff()
			w.note(f, "the gateway | east, west")
			return true
		}
		w.cuts[cut] = true
		w.later(w.some(60*time.Second), "regions see each other again", func() { delete(w.cuts, cut) })
		w.note(f, "east | west")
	case serverStop:
		l := n.up()
		if l == nil {
			return false
		}
		l.stop()
		w.note(f, n.name)
	case clockForward, clockBack:
		jump := w.some(2 * time.Minute)
		if f == clockBack {
			jump = -jump
		}
		n.ahead.Add(int64(jump))
		w.note(f, fmt.Sprintf("%s by %v", n.name, jump))
	case clockSkewed:
		// The machine's clock is minutes off; package server asks that of the database
		// every ten seconds, and goes by it.
		skew := w.some(5 * time.Minute)
		if w.coin() {
			skew = -skew
		}
		n.skew.Store(int64(skew))
		w.later(w.some(10*time.Second), n.name+" sets its clock by the database's", func() { n.skew.Store(0) })
		w.note(f, fmt.Sprintf("%s by %v", n.name, skew))
	case keeperOutage:
		if n.keeperDown.Load() {
			return false
		}
		n.keeperDown.Store(true)
		w.later(w.some(60*time.Second), n.name+" reaches its keeper again", func() { n.keeperDown.Store(false) })
		w.note(f, n.name)
	case vanished:
		plain := w.plain()
		if len(w.agents) < 2 || len(plain) == 0 {
			return false
		}
		a := plain[w.rng.IntN(len(plain))]
		if a.vanished {
			return false
		}
		a.vanish()
		w.note(f, a.id)
	case agentBack:
		plain := w.plain()
		if len(plain) == 0 {
			return false
		}
		a := plain[w.rng.IntN(len(plain))]
		if a.vanished || a.copied == nil {
			return false
		}
		a.putBack(w.some(30 * time.Second))
		w.note(f, a.id)
	case restore:
		if w.backup == nil {
			return false
		}
		w.putBack()
		w.note(f, fmt.Sprint("of step ", w.backup.step))
		w.backup = nil
	case twoOperators:
		w.ops.act("alice")
		w.ops.act("bob")
		w.note(f, "")
	}
	return true
}

// vanish ends an agent and its applications for good.
func (a *agent) vanish() {
	a.stop()
	a.mu.Lock()
	a.vanished = true
	a.mu.Unlock()
	a.w.dirty = true
}

// settleDown ends all faults.
func (w *world) settleDown() {
	w.mu.Lock()
	w.calm = true
	clear(w.cuts)
	w.mu.Unlock()
	w.note(0, "faults stop")
	for _, n := range w.nodes {
		n.keeperDown.Store(false)
		n.skew.Store(0)
		if n.ahead.Load() < 0 {
			n.ahead.Store(0)
		}
		if n.life == nil || n.life.dead.Load() {
			n.start()
		}
	}
	for _, k := range w.keys {
		for _, e := range k.endpoints {
			e.down = false
		}
	}
	for _, a := range w.agents {
		if a.client && a.vanished {
			continue // it is forgotten
		}
		if a.vanished {
			w.ops.remove("carol", w.nodes[0], a)
			// What it asked for last may arrive only now, and register it again.
			w.later(2*connectLate, "carol looks for "+a.id, func() {
				if a.registered() {
					w.ops.remove("carol", w.nodes[0], a)
				}
			})
			continue
		}
		if a.life == nil {
			// In a step of its own: whether a server is ready must not depend on who is faster.
			w.later(0, a.id+" starts", a.start)
		}
	}
}
