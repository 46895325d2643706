package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// visit is a session of an agent or client at the gateway.
type visit struct {
	*agentLife
	g       *gateway
	process *agentLife
	ctx     context.Context
	// knows is what the party holds as far as the gateway knows, by key.
	knows map[key.Name]holding
}

// through keeps a session at the gateway, until that or the party ends.
func (l *agentLife) through(g *gateway) {
	process := g.party.life
	if process == nil || !l.hop("connects to g1") || process.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	defer context.AfterFunc(process.ctx, cancel)()
	v := &visit{agentLife: l, g: g, process: process, ctx: ctx, knows: map[key.Name]holding{}}
	for _, h := range l.holdings() {
		v.knows[h.Key] = holding{version: h.Version, epoch: h.Epoch}
	}
	g.arrive(l.agent)
	defer g.leave(l.agent)
	defer l.served(false)
	for until := time.Now().Add(sessionLasts); ctx.Err() == nil && time.Now().Before(until); {
		if at := l.reach(); at != nil {
			v.relayed(at)
			l.tries++
		}
		if ctx.Err() != nil || !v.serve() {
			return
		}
	}
}

// hop passes something between the gateway and who is behind it.
func (l *agentLife) hop(what string) bool {
	l.mu.Lock()
	l.messages["hop"]++
	label := fmt.Sprintf("%s %s (%d.%d)", l.id, what, l.life, l.messages["hop"])
	l.mu.Unlock()
	met, err := l.w.wait(l.ctx, &request{kind: kindMessage, label: label, faults: []fault{lostMessage, agentCrash}})
	if met == agentCrash {
		l.crash(l.w.some(30 * time.Second))
	}
	return err == nil && met == 0
}

func (g *gateway) arrive(a *agent) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := g.debts[a.id]; d != nil {
		d.here++
	}
}

func (g *gateway) leave(a *agent) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := g.debts[a.id]; d != nil && d.here > 0 {
		d.here--
		d.gone = time.Now()
	}
}

func (v *visit) holdings() []engine.Holding {
	var list []engine.Holding
	for _, k := range v.keys {
		h := v.knows[k.name]
		list = append(list, engine.Holding{Key: k.name, Version: h.version, Epoch: h.epoch})
	}
	return list
}

func (v *visit) token(name key.Name) string {
	if v.client {
		return "clients " + string(name)
	}
	return v.id + " " + string(name)
}

// relayed has a server serve the party, until that or the way to it ends.
func (v *visit) relayed(at *life) {
	holdings := v.holdings()
	if met, err := v.message(at, false, "connect through g1", lostMessage, unanswered); err != nil || met == unanswered || v.ctx.Err() != nil {
		return
	}
	v.meet(holdings)
	s, err := at.hub.Connect(v.ctx, v.actor(), v.party(), slices.Clone(holdings))
	if err != nil {
		return
	}
	defer s.Close()
	for _, h := range holdings {
		v.g.mu.Lock()
		v.g.granted[v.token(h.Key)] = true
		v.g.mu.Unlock()
		v.g.known(v.id, h.Key, h.Version)
	}
	v.settled()
	for v.ctx.Err() == nil {
		deliveries, err := s.Next(v.ctx, 20*time.Second)
		if err != nil || v.w.cut(v.place, at.region) {
			return
		}
		if len(deliveries) == 0 {
			v.report(at)
			continue
		}
		met, err := v.message(at, true, "assign through g1"+assigned(deliveries), lostMessage, agentCrash)
		if err != nil || v.ctx.Err() != nil {
			return
		}
		for _, d := range deliveries {
			v.knows[d.Key] = holding{version: d.Version, epoch: d.Epoch}
			v.g.known(v.id, d.Key, d.Version)
		}
		if met == agentCrash {
			v.crash(v.w.some(30 * time.Second))
			return
		}
		v.take(deliveries)
	}
}

// serve has the gateway serve the party by itself for a while. It returns false when it
// does not.
func (v *visit) serve() bool {
	if !v.mayServe() || !v.serving() {
		return false
	}
	retry := time.NewTimer(time.Duration(3+v.tries%4) * time.Second)
	defer retry.Stop()
	for {
		v.g.mu.Lock()
		news := v.g.news
		v.g.mu.Unlock()
		if !v.handOut() {
			return false
		}
		select {
		case <-v.ctx.Done():
			return false
		case <-retry.C:
			return true
		case <-news:
		}
	}
}

// mayServe reports whether a server has let the party in, and the gateway has what it
// lacks.
func (v *visit) mayServe() bool {
	for _, k := range v.keys {
		has := v.g.party.uses(k.name)
		v.g.mu.Lock()
		granted := v.g.granted[v.token(k.name)]
		v.g.mu.Unlock()
		if !granted || v.knows[k.name].version == 0 && has.version == 0 {
			return false
		}
	}
	return true
}

// serving puts to disk that the gateway serves by itself, and notes what a client may
// be using, since the servers may forget it meanwhile.
func (v *visit) serving() bool {
	g := v.g
	met, err := v.w.wait(v.process.ctx, &request{kind: kindApply, label: "g1 serves " + v.id, faults: []fault{gatewayCrash}})
	if err != nil || v.ctx.Err() != nil {
		return false
	}
	if met == gatewayCrash {
		v.process.crash(v.w.some(30 * time.Second))
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own = true
	known := g.debts[v.id] != nil
	d := g.debtOf(v.id, !v.client)
	if !known {
		d.here = 1
	}
	if v.client {
		for name, h := range v.knows {
			d.vouch(name, h.version, h.epoch)
		}
	}
	v.served(true)
	return true
}

// handOut hands out what the party does not have yet. It returns false when that fails.
func (v *visit) handOut() bool {
	list := v.offer()
	if len(list) == 0 {
		return true
	}
	met, err := v.w.wait(v.process.ctx, &request{kind: kindApply, label: "g1 notes for " + v.id + assigned(list), faults: []fault{gatewayCrash}})
	if err != nil || v.ctx.Err() != nil {
		return false
	}
	if met != gatewayCrash || v.w.coin() {
		v.g.mu.Lock()
		for _, d := range list {
			if !v.client {
				v.g.notes[note{v.id, d.Key, d.Version}] = d.Epoch
			}
		}
		v.g.mu.Unlock()
	}
	if met == gatewayCrash {
		v.process.crash(v.w.some(30 * time.Second))
		return false
	}
	v.g.mu.Lock()
	v.g.handed += len(list)
	v.g.mu.Unlock()
	for _, d := range list {
		v.knows[d.Key] = holding{version: d.Version, epoch: d.Epoch}
	}
	if !v.hop("is handed" + assigned(list)) {
		return false
	}
	v.take(list)
	return true
}

// offer returns what the gateway has that the party does not, and notes that the party
// may be using it before anything else can take its place.
func (v *visit) offer() []hub.Delivery {
	p := v.g.party
	p.mu.Lock()
	defer p.mu.Unlock()
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	var list []hub.Delivery
	for _, k := range v.keys {
		has, knows := p.disk[k.name], v.knows[k.name]
		if has.version == 0 || has.version == knows.version || has.epoch <= knows.epoch {
			continue
		}
		v.g.debtOf(v.id, !v.client).vouch(k.name, has.version, has.epoch)
		v.lend(telling{k.name, has.epoch}, !p.stranger[k.name])
		list = append(list, hub.Delivery{
			Key: k.name, Tell: engine.Tell{Presenter: v.id, Version: has.version, Epoch: has.epoch},
			Material: provider.Material{Secrets: map[string]secret.Value{"password": has.password}},
		})
	}
	return list
}
