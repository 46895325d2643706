package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// agent is one presenter with its applications. It follows the rules of package
// client: it drops an epoch that is not larger than the largest it has seen, puts
// a version to disk before it says that it uses it, repeats an outcome until the
// server has it, and comes back after a crash with what is on its disk.
type agent struct {
	w      *world
	id     string
	region string
	cohort string
	keys   []*keyTruth
	// place is where it is, between which and others messages pass.
	place string
	// via is the gateway behind which it is, serves the one that it is the party of; client:
	// it has in memory what it uses, and another ID in each life.
	via, serves *gateway
	client      bool

	// owedMu guards what follows: own says that its gateway serves it by itself, ownUntil
	// until when it counts as if it did; lent are the tellings that it had from there,
	// false those to which nobody owes anything.
	owedMu   sync.Mutex
	own      bool
	ownUntil time.Time
	lent     map[telling]bool

	// mu guards what the goroutines of a life share.
	mu sync.Mutex
	// disk is what survives a crash; using what the applications use.
	disk, using map[key.Name]holding
	// copied is a copy of the disk, nil if there is none.
	copied map[key.Name]holding
	// stranger: the fleet forgot the agent, or it came with a version that was being
	// revoked: nobody owes it that this version is accepted. back: its machine was put
	// back, and it uses another version than what it has answered.
	stranger, back map[key.Name]bool
	vanished       bool
	// reported are the newest versions that a server heard reports on.
	reported map[key.Name]key.Version
	life     *agentLife
	lives    int
	// order numbers the answers; said is the latest answer to each telling.
	order uint64
	said  map[telling]hub.Outcome
	// well are the versions that it has reported on since its latest answer.
	well map[key.Name]key.Version
}

// telling is one telling of a party.
type telling struct {
	key   key.Name
	epoch uint64
}

type holding struct {
	version  key.Version
	epoch    uint64
	password secret.Value
}

// agentLife is one process of an agent.
type agentLife struct {
	*agent
	ctx    context.Context
	cancel context.CancelFunc
	// seen are the largest epochs, box the newest assignments that wait.
	seen map[key.Name]uint64
	box  map[key.Name]hub.Delivery
	// last are the outcomes of the newest assignments; unsent those that no server has.
	last, unsent map[key.Name]hub.Outcome
	work, send   chan struct{}
	// at is the server of the session.
	at       *life
	messages map[string]int
	life     int
	tries    int
}

func newAgent(w *world, id, region string) *agent {
	a := &agent{
		w: w, id: id, region: region, place: region, lent: map[telling]bool{}, cohort: []string{"canary", "rest"}[w.rng.IntN(2)],
		disk: map[key.Name]holding{}, using: map[key.Name]holding{}, stranger: map[key.Name]bool{}, back: map[key.Name]bool{}, reported: map[key.Name]key.Version{},
		said: map[telling]hub.Outcome{}, well: map[key.Name]key.Version{},
	}
	for _, k := range w.keys {
		if len(a.keys) == 0 || w.rng.IntN(2) == 0 {
			a.keys = append(a.keys, k)
		}
	}
	return a
}

func (a *agent) uses(name key.Name) holding {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.vanished {
		return holding{}
	}
	return a.using[name]
}

func (a *agent) presents(name key.Name) bool {
	return slices.ContainsFunc(a.keys, func(k *keyTruth) bool { return k.name == name })
}

// start begins a life with what is on disk.
func (a *agent) start() {
	if a.life != nil || a.vanished {
		return
	}
	a.lives++
	l := &agentLife{
		agent: a, messages: map[string]int{}, life: a.lives, seen: map[key.Name]uint64{}, box: map[key.Name]hub.Delivery{}, last: map[key.Name]hub.Outcome{},
		unsent: map[key.Name]hub.Outcome{}, work: make(chan struct{}, 1), send: make(chan struct{}, 1),
	}
	l.ctx, l.cancel = context.WithCancel(a.w.ctx)
	a.mu.Lock()
	for name, h := range a.disk {
		l.seen[name] = h.epoch
	}
	a.using = maps.Clone(a.disk)
	a.mu.Unlock()
	a.life = l
	a.w.dirty = true
	if a.serves != nil {
		a.serves.begin(l)
	}
	go l.connect()
	go l.handle()
	go l.tell()
}

func (a *agent) stop() {
	if a.life != nil {
		a.life.cancel()
		a.life = nil
	}
}

// crash ends the agent's process; its applications go on with what they have.
func (l *agentLife) crash(down time.Duration) {
	if l.agent.life != l {
		return
	}
	l.stop()
	if l.client {
		l.vanish()
		l.w.later(down, "another client starts", l.via.newClient)
		return
	}
	l.w.later(down, l.id+" starts again", l.start)
}

// putBack puts the copy of the agent's disk in its place; the applications go on with
// what is there, and the agent starts again later.
func (a *agent) putBack(down time.Duration) {
	a.stop()
	a.mu.Lock()
	for name, h := range a.using {
		if a.copied[name].version != h.version {
			a.stranger[name], a.back[name] = true, true
		}
	}
	a.disk, a.using, a.copied = a.copied, maps.Clone(a.copied), nil
	a.mu.Unlock()
	a.w.dirty = true
	a.w.later(down, a.id+" starts from a copy", a.start)
}

// message passes a message between the agent and a server.
func (l *agentLife) message(to *life, toAgent bool, what string, faults ...fault) (fault, error) {
	l.mu.Lock()
	verb, _, _ := strings.Cut(what, " ")
	l.messages[verb]++
	number := l.messages[verb]
	l.mu.Unlock()
	label := fmt.Sprintf("%s -> %s: %s (%d.%d)", l.id, to.name, what, l.life, number)
	if toAgent {
		label = fmt.Sprintf("%s -> %s: %s (%d.%d)", to.name, l.id, what, l.life, number)
	}
	met, err := l.w.wait(l.ctx, &request{kind: kindMessage, label: label, from: l.place, to: to.region, faults: faults})
	if err == nil && (met == lostMessage || met == partition) {
		err = errTimeout
	}
	return met, err
}

// pause waits before the next try.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// reach returns a server to speak to: another one after every failure.
func (l *agentLife) reach() *life {
	if l.via != nil && l.via.party.life == nil {
		return nil
	}
	nodes := l.w.nodes
	for i := range nodes {
		n := nodes[(l.life+l.tries+i)%len(nodes)]
		if up := n.up(); up != nil && !l.w.cut(l.place, n.region) {
			return up
		}
	}
	return nil
}

// connect keeps a session, and connects again for ever.
func (l *agentLife) connect() {
	for l.ctx.Err() == nil {
		if l.via != nil {
			l.through(l.via)
		} else if at := l.reach(); at != nil {
			l.session(at)
		}
		l.tries++
		pause(l.ctx, time.Duration(1+l.tries%4)*time.Second)
	}
}

func (l *agentLife) party() engine.PartyRecord {
	kind := hub.KindAgent
	if l.client {
		kind = hub.KindClient
	}
	return engine.PartyRecord{ID: l.id, Kind: kind, Region: l.region, Labels: map[string]string{"cohort": l.cohort}}
}

func (l *agentLife) holdings() []engine.Holding {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []engine.Holding
	for _, k := range l.keys {
		list = append(list, engine.Holding{Key: k.name, Version: l.using[k.name].version, Epoch: l.seen[k.name]})
	}
	return list
}

func (l *agentLife) actor() audit.Actor { return audit.Actor{ID: l.id, Kind: "party"} }

// connectLate is how late a request to connect may arrive.
const connectLate = 5 * time.Second

// sessionLasts is after how long a session is opened anew.
const sessionLasts = 30 * time.Minute

// session connects to a server and takes what it sends, until that fails.
func (l *agentLife) session(at *life) {
	holdings := l.holdings()
	met, err := l.message(at, false, "connect", lostMessage, twiceMessage, reordered)
	if err != nil {
		return
	}
	if met == twiceMessage || met == reordered {
		// The request is still on its way when the agent has long connected anew.
		l.w.straggle(fmt.Sprintf("%s connects to %s with %v", l.id, at.name, held(holdings)), connectLate, func() {
			if s, err := at.hub.Connect(at.ctx, l.actor(), l.party(), slices.Clone(holdings)); err == nil {
				s.Close()
			}
		})
	}
	l.meet(holdings)
	s, err := at.hub.Connect(l.ctx, l.actor(), l.party(), slices.Clone(holdings))
	if err != nil {
		return
	}
	defer s.Close()
	l.mu.Lock()
	l.at = at
	l.mu.Unlock()
	for until := time.Now().Add(sessionLasts); time.Now().Before(until); {
		deliveries, err := s.Next(l.ctx, 20*time.Second)
		if err != nil || l.w.cut(l.place, at.region) {
			return
		}
		if len(deliveries) == 0 {
			l.report(at)
			continue
		}
		met, err := l.message(at, true, "assign "+assigned(deliveries), lostMessage, twiceMessage, agentCrash)
		if err != nil {
			return
		}
		if met == agentCrash {
			l.crash(l.w.some(30 * time.Second))
			return
		}
		if met == twiceMessage {
			l.w.straggle(fmt.Sprintf("%s -> %s: assign %s", at.name, l.id, assigned(deliveries)), l.w.some(20*time.Second), func() { l.take(deliveries) })
		}
		l.take(deliveries)
	}
}

// meet notes whether the fleet owes the agent anything for what it comes with.
func (l *agentLife) meet(holdings []engine.Holding) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range holdings {
		k := l.w.key(h.Key)
		if _, known := k.state.Presenter(l.id); !known && h.Version != 0 && !l.owed(telling{h.Key, l.using[h.Key].epoch}) {
			l.stranger[h.Key] = true
		}
	}
}

func held(holdings []engine.Holding) string {
	s := ""
	for _, h := range holdings {
		s += fmt.Sprintf(" %s %v/%d", h.Key, h.Version, h.Epoch)
	}
	return s
}

func assigned(deliveries []hub.Delivery) string {
	s := ""
	for _, d := range deliveries {
		s += fmt.Sprintf(" %s %v/%d", d.Key, d.Version, d.Epoch)
	}
	return s
}

// take puts what is new into the box.
func (l *agentLife) take(deliveries []hub.Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return
	}
	for _, d := range deliveries {
		if d.Epoch <= l.seen[d.Key] {
			if last, ok := l.last[d.Key]; ok && last.Epoch == d.Epoch {
				l.unsent[d.Key] = last
				signal(l.send)
			} else if h := l.using[d.Key]; !ok && d.Epoch == l.seen[d.Key] && l.box[d.Key].Epoch != d.Epoch && h.version == d.Version {
				// Told again what is on disk, from before a crash.
				l.answer(hub.Outcome{Key: d.Key, Epoch: d.Epoch, OK: true, Using: d.Version})
			}
			continue
		}
		l.seen[d.Key] = d.Epoch
		l.box[d.Key] = d
		signal(l.work)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// answer answers, or has the gateway do so when it may; the caller holds the lock.
func (l *agentLife) answer(o hub.Outcome) {
	if l.serves != nil {
		l.serves.hold(o)
		return
	}
	l.outcome(o)
}

// outcome queues an answer; the caller holds the lock.
func (l *agentLife) outcome(o hub.Outcome) {
	l.order++
	o.Order = l.order
	l.said[telling{o.Key, o.Epoch}] = o
	delete(l.well, o.Key)
	l.last[o.Key], l.unsent[o.Key] = o, o
	signal(l.send)
}

// handle applies assignments one after the other.
func (l *agentLife) handle() {
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.work:
		}
		for {
			l.mu.Lock()
			names := slices.Sorted(maps.Keys(l.box))
			if len(names) == 0 {
				l.mu.Unlock()
				break
			}
			d := l.box[names[0]]
			delete(l.box, names[0])
			l.mu.Unlock()
			if l.serves != nil {
				l.serves.apply(l, d)
				continue
			}
			l.apply(d)
		}
	}
}

// apply writes one assignment to disk, makes the applications use it, and says so.
func (l *agentLife) apply(d hub.Delivery) {
	label := fmt.Sprintf("%s applies %s %v/%d", l.id, d.Key, d.Version, d.Epoch)
	faults := []fault{agentCrash, cannotFollow}
	if l.client {
		faults = []fault{agentCrash, clings}
	}
	met, err := l.w.wait(l.ctx, &request{kind: kindApply, label: label, faults: faults})
	if err != nil {
		return
	}
	if met == clings {
		// Connections stay open, and nobody is told.
		go l.retry(d, l.w.some(time.Minute))
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	done := met != cannotFollow && (met != agentCrash || l.w.coin())
	if done {
		h := holding{version: d.Version, epoch: d.Epoch, password: d.Material.Secrets["password"]}
		l.disk[d.Key], l.using[d.Key] = h, h
		delete(l.stranger, d.Key)
		delete(l.back, d.Key)
		if l.isBad(telling{d.Key, d.Epoch}) {
			l.stranger[d.Key] = true
		}
		l.w.dirty = true
	}
	switch {
	case met == agentCrash:
		go l.crash(l.w.some(30 * time.Second))
	case done:
		l.outcome(hub.Outcome{Key: d.Key, Epoch: d.Epoch, OK: true, Using: d.Version})
	default:
		l.outcome(hub.Outcome{Key: d.Key, Epoch: d.Epoch, Using: l.using[d.Key].version, Detail: "reload failed"})
		go l.retry(d, retryAfter)
	}
}

// retryAfter is how long an agent waits before it tries an assignment again.
const retryAfter = 10 * time.Second

// retry tries an assignment again that could not be followed, while it is the newest.
func (l *agentLife) retry(d hub.Delivery, after time.Duration) {
	pause(l.ctx, after)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, waits := l.box[d.Key]; !waits && l.seen[d.Key] == d.Epoch && l.ctx.Err() == nil {
		l.box[d.Key] = d
		signal(l.work)
	}
}

// tell sends outcomes until a server has made them durable.
func (l *agentLife) tell() {
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.send:
		}
		for l.ctx.Err() == nil {
			l.mu.Lock()
			var batch []hub.Outcome
			for _, name := range slices.Sorted(maps.Keys(l.unsent)) {
				batch = append(batch, l.unsent[name])
			}
			at := l.at
			l.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			if at == nil || at.dead.Load() || at.stopping.Load() || l.via != nil {
				at = l.reach()
			}
			told := at != nil && l.acknowledge(at, batch)
			if l.via != nil && l.via.party.life != nil {
				l.via.heard(l.id, batch, told)
			}
			if !told {
				pause(l.ctx, 2*time.Second)
				continue
			}
			l.mu.Lock()
			for _, o := range batch {
				if l.unsent[o.Key] == o {
					delete(l.unsent, o.Key)
				}
			}
			l.mu.Unlock()
		}
	}
}

// acknowledge sends outcomes once and reports whether they are settled.
func (l *agentLife) acknowledge(at *life, batch []hub.Outcome) bool {
	what, faults := "ack", []fault{lostMessage, twiceMessage, reordered}
	for _, o := range batch {
		what += fmt.Sprintf(" %s %v/%d %v", o.Key, o.Using, o.Epoch, o.OK)
		if !o.OK && faults[0] != overtaken {
			faults = slices.Insert(faults, 0, overtaken)
		}
	}
	met, err := l.message(at, false, what, faults...)
	if err != nil {
		return false
	}
	late := func(after time.Duration) {
		l.w.straggle(fmt.Sprintf("%s -> %s: %s", l.id, at.name, what), after, func() { _ = at.hub.Acknowledge(at.ctx, l.id, batch) })
	}
	switch met { //nolint:exhaustive // the others do not happen to answers
	case twiceMessage, reordered:
		late(l.w.some(40 * time.Second))
	case overtaken:
		// It comes a second time when the next try has been answered as well.
		late(retryAfter + l.w.some(20*time.Second))
	}
	if met == reordered {
		return false // to the agent it looks lost
	}
	err = at.hub.Acknowledge(l.ctx, l.id, batch)
	if err != nil && !forGood(err) {
		return false
	}
	_, err = l.message(at, true, "acked", lostMessage)
	return err == nil
}

func forGood(err error) bool {
	return errors.Is(err, engine.ErrInvalid) || errors.Is(err, engine.ErrNotFound) || errors.Is(err, rotation.ErrInvalid)
}

// report says how the versions fare, as seen at the endpoints.
func (l *agentLife) report(at *life) {
	if !l.w.plan.judged {
		return
	}
	for _, k := range l.keys {
		h := l.uses(k.name)
		if h.version == 0 {
			continue
		}
		if _, err := l.message(at, false, "report "+string(k.name), lostMessage); err != nil {
			return
		}
		sample := engine.Sample{Presenter: l.id, Attempts: 1, Healthy: true}
		l.mu.Lock()
		l.reported[k.name] = max(l.reported[k.name], h.version)
		l.well[k.name] = h.version
		l.mu.Unlock()
		_ = at.hub.Report(l.ctx, k.name, h.version, sample)
	}
}
