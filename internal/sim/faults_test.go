package sim

import (
	"math/rand/v2"
	"time"
)

// fault is one kind of misfortune. The zero value means none.
type fault uint8

const (
	lostMessage fault = iota + 1
	lateMessage
	twiceMessage
	reordered
	partition
	serverCrash
	serverStop
	agentCrash
	targetCrash
	diskFull
	syncError
	syncUnknown
	clockForward
	clockBack
	keeperOutage
	lostCall
	lostAnswer
	lateCall
	slowCall
	falseSuccess
	slowProbe
	lyingProbe
	cannotFollow
	vanished
	twoOperators
	pauseAll
	restore
	clockSkewed
	overtaken
	agentBack
	// These befall gateways and their clients only; their rates are drawn apart.
	gatewayCrash
	cacheFull
	unanswered
	clings
	faultKinds
)

func (f fault) String() string {
	return [...]string{
		"", "message lost", "message late", "message twice", "messages reordered", "partition", "server crash", "server stop",
		"agent crash", "target crash", "disk full", "sync error", "commit unknown", "clock forward", "clock back", "keeper outage",
		"call lost", "answer lost", "call late", "call slow", "false success", "probe slow", "probe lies", "agent cannot follow",
		"party vanished", "two operators", "pause", "backup restored", "clock skewed", "answer overtaken", "agent put back",
		"gateway crash", "cache full", "gateway not answered", "client clings",
	}[f]
}

// profile is what one seed makes more or less likely: a fleet in which
// everything fails all the time finds less than many fleets that each fail in a
// few ways.
type profile struct {
	nodes, agents, keys int
	// rate is how likely each fault is where it may happen.
	rate [faultKinds]float64
	// trouble is how many steps the faults last.
	trouble int
	// commands is how likely an operator acts at a step.
	commands float64
	judged   bool
	approved bool
	holding  bool
	staged   bool
	regional bool
	lag      time.Duration
	// unfenced: systems compare no fences. What is sent to them happens in time or
	// never, and the clocks by which leases are measured are right.
	unfenced bool
	// gateway: some are behind one.
	gateway bool
}

func drawProfile(rng *rand.Rand) profile {
	p := profile{
		nodes: 1 + rng.IntN(2), agents: 1 + rng.IntN(3), keys: 1 + rng.IntN(2), trouble: 200 + rng.IntN(300),
		commands: []float64{0.003, 0.006, 0.012}[rng.IntN(3)],
		judged:   rng.IntN(4) == 0, approved: rng.IntN(5) == 0, holding: rng.IntN(3) == 0, staged: rng.IntN(3) == 0, regional: rng.IntN(4) == 0,
		lag: time.Duration(rng.IntN(3)) * time.Second,
	}
	base := map[fault]float64{
		// Of requests of their kind.
		lostMessage: 0.05, lateMessage: 0.05, twiceMessage: 0.05, reordered: 0.05, serverCrash: 0.01, agentCrash: 0.04, targetCrash: 0.02,
		diskFull: 0.02, syncError: 0.02, syncUnknown: 0.01, lostCall: 0.04, lostAnswer: 0.04, lateCall: 0.03, slowCall: 0.04, falseSuccess: 0.02,
		slowProbe: 0.04, lyingProbe: 0.06, cannotFollow: 0.04,
		// Of answers that a version could not be followed.
		overtaken: 0.3,
		// Of steps.
		partition: 0.004, serverStop: 0.003, clockForward: 0.003, clockBack: 0.003, keeperOutage: 0.003, vanished: 0.001,
		twoOperators: 0.003, pauseAll: 0.02, restore: 0.002, clockSkewed: 0.003, agentBack: 0.003,
	}
	for f := fault(1); f < gatewayCrash; f++ {
		switch rng.IntN(5) {
		case 0, 1:
		case 2, 3:
			p.rate[f] = base[f]
		case 4:
			p.rate[f] = 3 * base[f]
		}
	}
	if rng.IntN(5) == 0 {
		p.unfenced = true
		for _, f := range []fault{lateCall, clockForward, clockBack, clockSkewed} {
			p.rate[f] = 0
		}
		// Order is all that protects here.
		p.rate[slowCall] = 3 * base[slowCall]
	}
	return p
}

// behindGateway makes it a fleet with a gateway, whose place is cut off now and then
// while keys are rotated.
func (p *profile) behindGateway(rng *rand.Rand) {
	p.gateway, p.regional, p.approved, p.commands, p.trouble = true, false, false, 0.02, 2*p.trouble
	if rng.IntN(3) > 0 { // what befalls systems and servers is found elsewhere
		for _, f := range []fault{
			serverCrash, targetCrash, diskFull, syncError, syncUnknown, lostCall, lostAnswer, lateCall, slowCall, falseSuccess, slowProbe, lyingProbe, keeperOutage, restore,
		} {
			p.rate[f] = 0
		}
	}
	p.rate[partition] = max(p.rate[partition], 0.008)
	p.rate[gatewayCrash] = []float64{0, 0.04, 0.12}[rng.IntN(3)]
	p.rate[cacheFull] = []float64{0, 0.05, 0.2}[rng.IntN(3)]
	p.rate[clings] = []float64{0, 0.1, 0.4}[rng.IntN(3)]
	p.rate[unanswered] = []float64{0, 0.1, 0.5}[rng.IntN(3)]
}

// happens draws whether a fault that is possible now happens.
func (w *world) happens(f fault) bool {
	return !w.calm && w.plan.rate[f] > 0 && w.rng.Float64() < w.plan.rate[f]
}

// some draws a duration, most of them short.
func (w *world) some(most time.Duration) time.Duration {
	d := most
	for range w.rng.IntN(4) {
		d /= 6
	}
	return d/2 + time.Duration(w.rng.Int64N(int64(d/2)+1))
}
