package sim

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/key"
)

// Of the fleets, one in gatewayEvery has a gateway; the others know nothing of it.
const (
	gatewayEvery = 6
	gatewayFirst = 3
)

const (
	// edge is where the gateway is, with the agents and clients behind it.
	edge = "edge"
	// forget is after how long without a connection a client counts as ended, at the
	// servers and at the gateway.
	forget = 2 * time.Minute
	// maxClients bounds the clients that run at the same time, everClients those that ever
	// did.
	maxClients, everClients = 5, 30
)

// gateway stands between the agents and clients of a place and the servers. It follows
// the rules of internal/gateway/relay: it passes on what is asked while a server
// answers. It hands out by itself what it was told to present as a party, once that is
// on its disk, to those whom a server has let in through it before; that it does so is
// on its disk before the first answer, and what it hands to an agent before that leaves.
// It acknowledges a version when that is on its disk and nobody whom it has served by
// itself may be using another one, of which the servers do not know.
type gateway struct {
	w *world
	// party is the gateway as a presenter. What it uses is what it hands out.
	party *agent

	// mu is taken after that of an agent.
	mu sync.Mutex
	// On its disk: own says that it may have served somebody by itself who is not done
	// with, granted whom a server has let in, for which key; notes are what it handed to
	// agents, with the epoch.
	own     bool
	granted map[string]bool
	notes   map[note]uint64
	// In memory, for one life: debts are those whom it has served; until is when those
	// of the life before are gone; pending are acknowledgements.
	debts   map[string]*debt
	until   time.Time
	pending map[key.Name]hub.Outcome
	news    chan struct{}
	wake    chan struct{}
	clients int
	// handed counts what was handed out, held the acknowledgements that had to wait.
	handed, held int
}

// note is one version that an agent was handed.
type note struct {
	party   string
	key     key.Name
	version key.Version
}

// debt is what somebody whom the gateway has served may be using.
type debt struct {
	agent bool
	here  int
	gone  time.Time
	uses  map[key.Name]map[key.Version]uint64
}

// buildGateway draws the gateway, who is behind it, and its clients.
func (w *world) buildGateway() {
	g := &gateway{w: w, granted: map[string]bool{}, notes: map[note]uint64{}, wake: make(chan struct{}, 1)}
	w.gateway = g
	for _, a := range w.agents {
		if w.coin() {
			a.via, a.place = g, edge
		}
	}
	g.party = newAgent(w, "g1", []string{"east", "west"}[w.rng.IntN(2)])
	g.party.keys, g.party.serves, g.party.place = w.keys, g, edge
	w.agents = append(w.agents, g.party)
	w.later(time.Second, "g1 starts", g.party.start)
	for range 1 + w.rng.IntN(2) {
		w.later(w.some(40*time.Second), "a client starts", g.newClient)
	}
}

// newClient starts a process of a client: a party that nobody knows, with a token that
// others have as well, which has in memory what it uses.
func (g *gateway) newClient() {
	running := 0
	for _, a := range g.w.agents {
		if a.client && !a.vanished {
			running++
		}
	}
	if running == maxClients || g.clients == everClients {
		return
	}
	g.clients++
	c := newAgent(g.w, fmt.Sprint("c", g.clients), "")
	c.client, c.via, c.place = true, g, edge
	g.w.agents = append(g.w.agents, c)
	c.start()
}

// plain are the agents with a machine of their own, which may be lost or put back.
func (w *world) plain() []*agent {
	return slices.DeleteFunc(slices.Clone(w.agents), func(a *agent) bool { return a.serves != nil || a.via != nil })
}

// cutOff cuts the gateway's place off, and has clients come and a key be rotated
// meanwhile.
func (w *world) cutOff() {
	for _, other := range []string{"east", "west"} {
		cut := [2]string{min(edge, other), max(edge, other)}
		w.cuts[cut] = true
	}
	lasts := w.some(5 * time.Minute)
	k := w.keys[w.rng.IntN(len(w.keys))]
	w.later(lasts/4, "a client starts", w.gateway.newClient)
	w.later(lasts/2, "a rotation while the gateway is cut off", func() { w.ops.rotate("alice", w.anyNode(), k, false, 0) })
	w.later(lasts*3/4, "a client starts", w.gateway.newClient)
	w.later(lasts, "the gateway sees the servers again", func() {
		delete(w.cuts, [2]string{"east", edge})
		delete(w.cuts, [2]string{edge, "west"})
	})
}

// begin begins a life of the gateway with what is on its disk.
func (g *gateway) begin(l *agentLife) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.debts, g.pending, g.until, g.news = map[string]*debt{}, map[key.Name]hub.Outcome{}, time.Time{}, make(chan struct{})
	if g.own {
		g.until = time.Now().Add(forget)
		for n, epoch := range g.notes {
			g.debtOf(n.party, true).vouch(n.key, n.version, epoch)
		}
	}
	go g.answers(l)
}

// debtOf returns what somebody owes; the caller holds the lock.
func (g *gateway) debtOf(party string, agent bool) *debt {
	d := g.debts[party]
	if d == nil {
		d = &debt{agent: agent, gone: time.Now(), uses: map[key.Name]map[key.Version]uint64{}}
		g.debts[party] = d
	}
	return d
}

func (d *debt) vouch(name key.Name, v key.Version, epoch uint64) {
	if v == 0 {
		return
	}
	if d.uses[name] == nil {
		d.uses[name] = map[key.Version]uint64{}
	}
	d.uses[name][v] = max(d.uses[name][v], epoch)
}

// strike forgets that somebody may be using versions; the caller holds the lock.
func (g *gateway) strike(party string, name key.Name, gone func(v key.Version, epoch uint64) bool) {
	d := g.debts[party]
	if d == nil {
		return
	}
	maps.DeleteFunc(d.uses[name], func(v key.Version, epoch uint64) bool {
		if !gone(v, epoch) {
			return false
		}
		delete(g.notes, note{party, name, v})
		return true
	})
	signal(g.wake)
}

// known notes that the servers know that a party may be using a version.
func (g *gateway) known(party string, name key.Name, v key.Version) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.strike(party, name, func(used key.Version, _ uint64) bool { return used == v })
}

// heard notes what a party said that it uses; told: a server has taken it.
func (g *gateway) heard(party string, batch []hub.Outcome, told bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, o := range batch {
		if o.OK {
			g.strike(party, o.Key, func(v key.Version, epoch uint64) bool { return epoch < o.Epoch && (v != o.Using || told) })
		}
	}
}

// holds reports whether somebody may be using another version, of which no server
// knows; the caller holds the lock.
func (g *gateway) holds(name key.Name, version key.Version) bool {
	if time.Now().Before(g.until) {
		return true
	}
	for _, d := range g.debts {
		for v := range d.uses[name] {
			if v != version {
				return true
			}
		}
	}
	return false
}

// expire forgets clients that are gone for long, as the servers do.
func (g *gateway) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.debts, func(_ string, d *debt) bool {
		return d.here == 0 && (!d.agent && time.Since(d.gone) >= forget || d.agent && !slices.ContainsFunc(slices.Collect(maps.Values(d.uses)), func(m map[key.Version]uint64) bool { return len(m) > 0 }))
	})
	if len(g.debts) == 0 && !time.Now().Before(g.until) {
		g.own = false
	}
}

// apply keeps an assignment, and has it acknowledged.
func (g *gateway) apply(l *agentLife, d hub.Delivery) {
	if !g.write(l, d) {
		return
	}
	g.pend(l, d)
}

// write puts an assignment to disk, and reports whether it is there.
func (g *gateway) write(l *agentLife, d hub.Delivery) bool {
	label := fmt.Sprintf("%s keeps %s %v/%d", l.id, d.Key, d.Version, d.Epoch)
	met, err := g.w.wait(l.ctx, &request{kind: kindApply, label: label, faults: []fault{gatewayCrash, cacheFull}})
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch met { //nolint:exhaustive // the others do not happen to a disk
	case cacheFull:
		go l.retry(d, retryAfter)
		return false
	case gatewayCrash:
		go l.crash(g.w.some(30 * time.Second))
		if !g.w.coin() {
			return false
		}
	}
	h := holding{version: d.Version, epoch: d.Epoch, password: d.Material.Secrets["password"]}
	l.disk[d.Key], l.using[d.Key] = h, h
	delete(l.stranger, d.Key)
	g.w.dirty = true
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.news)
	g.news = make(chan struct{})
	return met == 0
}

// pend has an assignment acknowledged as soon as that may be.
func (g *gateway) pend(l *agentLife, d hub.Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer(hub.Outcome{Key: d.Key, Epoch: d.Epoch, OK: true, Using: d.Version})
}

// hold keeps an answer until it may leave.
func (g *gateway) hold(o hub.Outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending[o.Key].Epoch <= o.Epoch {
		g.pending[o.Key] = o
	}
	if g.holds(o.Key, o.Using) {
		g.held++
	}
	signal(g.wake)
}

// answers lets acknowledgements go that may.
func (g *gateway) answers(l *agentLife) {
	for l.ctx.Err() == nil {
		g.expire()
		g.flush(l)
		timer := time.NewTimer(time.Second)
		select {
		case <-l.ctx.Done():
		case <-timer.C:
		case <-g.wake:
		}
		timer.Stop()
	}
}

func (g *gateway) flush(l *agentLife) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.ctx.Err() != nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(g.pending)) {
		if o := g.pending[name]; !g.holds(name, o.Using) {
			l.outcome(o)
			delete(g.pending, name)
		}
	}
}

// served notes whether the gateway serves the party by itself now: from then on, and
// for some time after, what it uses must be accepted, whether or not the servers know
// the party.
func (a *agent) served(now bool) {
	a.owedMu.Lock()
	defer a.owedMu.Unlock()
	if a.own && !now {
		a.ownUntil = time.Now().Add(forget)
	}
	a.own = now
}

// settled notes that the servers know the party.
func (a *agent) settled() {
	a.owedMu.Lock()
	defer a.owedMu.Unlock()
	a.own, a.ownUntil = false, time.Time{}
}

// owed reports whether what the party has of a telling must be accepted although no
// server knows the party: its gateway has handed it out, and serves the party, or did a
// moment ago. What a server told it before counts as long as the server knows it, as
// without a gateway.
func (a *agent) owed(t telling) bool {
	a.owedMu.Lock()
	defer a.owedMu.Unlock()
	return a.lent[t] && (a.own || time.Now().Before(a.ownUntil))
}

// lend notes that a telling comes from the gateway; good: from one to which the servers
// owe what it has.
func (a *agent) lend(t telling, good bool) {
	a.owedMu.Lock()
	defer a.owedMu.Unlock()
	a.lent[t] = good
}

// isBad reports whether a telling comes from a gateway to which nobody owes anything.
func (a *agent) isBad(t telling) bool {
	a.owedMu.Lock()
	defer a.owedMu.Unlock()
	good, lent := a.lent[t]
	return lent && !good
}

// vouched: the servers know that somebody may be using what is used behind a gateway:
// the party itself, or the gateway, whose word it has. Excepted is what noLockout excepts.
func (k *keyTruth) vouched() {
	if k.w.gateway == nil || k.kind == oneUser || k.state.Standing() {
		return
	}
	g := k.w.gateway.party
	for _, a := range k.w.agents {
		h := a.uses(k.name)
		if a.via == nil || h.version == 0 || a.stranger[k.name] || g.stranger[k.name] || k.contained[h.version] || k.lost[h.version] {
			continue
		}
		p, registered := k.state.Presenter(a.id)
		if registered && p.MayUse(h.version) || !registered && !a.owed(telling{k.name, h.epoch}) {
			continue
		}
		if p, ok := k.state.Presenter(g.id); ok && p.MayUse(h.version) {
			continue
		}
		k.w.violate("vouched", "%s uses %v of %s, and no server knows that it or its gateway may", a.id, h.version, k.name)
	}
}
