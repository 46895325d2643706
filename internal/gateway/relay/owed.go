package relay

import (
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
)

// owed knows who was served by the relay itself and may be using a version of which the
// centre does not know that it does. It is condition (b) of an acknowledgement.
//
// A version is struck from a party's list when
//
//   - the centre has answered a request in which the party says that it uses it;
//   - the centre has told the party to use it;
//   - the party acknowledges a later telling, and thereby that it uses another one;
//   - the party left.
//
// The party itself is struck when its last connection ended long ago: a client after the
// time after which the centre would forget it too; an agent, for which rotations wait
// otherwise, only when nothing is handed out any more that it got its version by.
type owed struct {
	now            func() time.Time // monotonic
	forget, longer time.Duration

	mu      sync.Mutex
	parties map[string]*debtor
	// uses counts the parties that may be using a version.
	uses map[key.Name]map[key.Version]int
	// changed has room for one token.
	changed chan struct{}
	// said is when late last returned something.
	said time.Time
	// until is when who was served before the start is gone.
	until time.Time
}

// debtor is a party that was served.
type debtor struct {
	// of is the token that it showed; mixed: not always the same one, so that only the
	// centre's word counts.
	of    subject
	mixed bool
	agent bool
	// here counts its open streams and polls; gone is when there were none any more.
	here int
	gone time.Time
	uses map[key.Name]map[key.Version]uint64 // the epoch it was told under, at most
}

func newOwed(c *Config) *owed {
	return &owed{
		now: c.Monotonic, forget: c.ForgetClients, longer: c.ServeFor,
		parties: map[string]*debtor{}, uses: map[key.Name]map[key.Version]int{}, changed: make(chan struct{}, 1),
	}
}

func (o *owed) wake() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// arrive notes a connection of a party; leave must be called when it ends. serving says
// that the relay is about to serve it by itself.
func (o *owed) arrive(party string, of subject, agent, serving bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.parties[party]
	if d == nil {
		if !serving {
			return false
		}
		d = &debtor{uses: map[key.Name]map[key.Version]uint64{}}
		o.parties[party] = d
	}
	d.here++
	if serving {
		d.mixed = d.mixed || d.of != subject{} && d.of != of
		d.of, d.agent = of, d.agent || agent
	}
	return true
}

func (o *owed) leave(party string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := o.parties[party]; d != nil && d.here > 0 {
		d.here--
		d.gone = o.now()
		o.prune(party, d)
	}
}

// full reports whether there are so many parties that another one has no room.
func (o *owed) full(most int, party string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.parties[party] == nil && len(o.parties) >= most
}

// vouch notes that a party, which has arrived, may be using a version.
func (o *owed) vouch(party string, name key.Name, v key.Version, epoch uint64) {
	if v == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.parties[party]
	if d == nil {
		d = &debtor{uses: map[key.Name]map[key.Version]uint64{}, gone: o.now()}
		o.parties[party] = d
	}
	if d.uses[name] == nil {
		d.uses[name] = map[key.Version]uint64{}
	}
	before, known := d.uses[name][v]
	d.uses[name][v] = max(before, epoch)
	if !known {
		if o.uses[name] == nil {
			o.uses[name] = map[key.Version]int{}
		}
		o.uses[name][v]++
	}
}

// restore notes a hand-out to an agent before the start.
func (o *owed) restore(party string, name key.Name, v key.Version, epoch uint64) {
	o.vouch(party, name, v, epoch)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.parties[party].agent, o.parties[party].mixed = true, true
}

// strike removes versions for which gone is true; the caller holds the lock.
func (o *owed) strike(d *debtor, name key.Name, gone func(v key.Version, epoch uint64) bool) {
	for v, epoch := range d.uses[name] {
		if !gone(v, epoch) {
			continue
		}
		delete(d.uses[name], v)
		if o.uses[name][v]--; o.uses[name][v] == 0 {
			delete(o.uses[name], v)
		}
		if len(o.uses[name]) == 0 {
			delete(o.uses, name)
		}
		o.wake()
	}
	if len(d.uses[name]) == 0 {
		delete(d.uses, name)
	}
}

// prune forgets a party that owes nothing and is not here; the caller holds the lock.
func (o *owed) prune(party string, d *debtor) {
	if d.here == 0 && len(d.uses) == 0 {
		delete(o.parties, party)
	}
}

// known notes that the centre knows that the party may be using the version.
func (o *owed) known(party string, name key.Name, v key.Version) {
	o.settle(party, name, func(used key.Version, _ uint64) bool { return used == v })
}

// acked notes that a party, which showed the token, says that it uses a version since it
// was told under an epoch; told says that the centre took it.
func (o *owed) acked(party string, of subject, name key.Name, epoch uint64, using key.Version, told bool) {
	o.mu.Lock()
	d := o.parties[party]
	credible := d != nil && (told || d.of == of && !d.mixed)
	o.mu.Unlock()
	if !credible {
		return
	}
	o.settle(party, name, func(v key.Version, under uint64) bool { return under < epoch && (v != using || told) })
}

func (o *owed) settle(party string, name key.Name, gone func(key.Version, uint64) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := o.parties[party]; d != nil {
		o.strike(d, name, gone)
		o.prune(party, d)
	}
}

// left notes that a party presents nothing any more.
func (o *owed) left(party string, of subject, told bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := o.parties[party]; d != nil && (told || d.of == of && !d.mixed) {
		o.clear(party, d)
	}
}

func (o *owed) clear(party string, d *debtor) {
	for name := range d.uses {
		o.strike(d, name, func(key.Version, uint64) bool { return true })
	}
	o.prune(party, d)
}

// expire strikes the parties that are gone for long. It returns how many are left.
func (o *owed) expire() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	for party, d := range o.parties {
		after := o.forget
		if d.agent {
			after = o.longer
		}
		if d.here == 0 && now.Sub(d.gone) >= after {
			o.clear(party, d)
		}
	}
	return len(o.parties)
}

// lateEvery is how often it is told for whom acknowledgements wait.
const lateEvery = 10 * time.Minute

// late returns some of the parties that are away for long and not forgotten, now and then.
func (o *owed) late() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	if !o.said.IsZero() && now.Sub(o.said) < lateEvery {
		return nil
	}
	var list []string
	for party, d := range o.parties {
		if d.here == 0 && len(d.uses) > 0 && now.Sub(d.gone) >= o.forget && len(list) < 5 {
			list = append(list, party)
			o.said = now
		}
	}
	return list
}

// holds reports whether somebody may be using another version than v.
func (o *owed) holds(name key.Name, v key.Version) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.now().Before(o.until) {
		return true
	}
	for used := range o.uses[name] {
		if used != v {
			return true
		}
	}
	return false
}

// owes reports whether a party may be using a version unknown to the centre.
func (o *owed) owes(party string, name key.Name, v key.Version) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.parties[party]
	if d == nil {
		return false
	}
	_, is := d.uses[name][v]
	return is
}

// any reports whether somebody may be using any version of the key.
func (o *owed) any(name key.Name) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now().Before(o.until) || len(o.uses[name]) > 0
}
