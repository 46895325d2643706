package keytable

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/key"
)

// ErrTaken: another version has the same hash. Mint another key.
var ErrTaken = errors.New("another version has the same hash")

// Rules are what a client's keys may do.
type Rules struct {
	// Client says who it is, for people.
	Client string   `json:"client"`
	Scopes []string `json:"scopes,omitempty"`
	// PerSecond is how often the client's keys may be used together, Burst how often
	// at once; 0: no limit.
	PerSecond float64   `json:"perSecond,omitempty"`
	Burst     int       `json:"burst,omitempty"`
	Expires   time.Time `json:"expires,omitzero"`
}

// Entry is one version of an API key.
type Entry struct {
	Key     key.Name
	Version key.Version
	// Hash is what the version is found by; Other is a hash under another pepper
	// that goes with it.
	Hash, Other Hash
	// Accepted versions are let in.
	Accepted bool
	Rules    Rules
}

// Reason is why a key is let in or not. The zero value is invalid.
type Reason uint8

// The reasons.
const (
	// Good: the key is let in.
	Good Reason = iota + 1
	// Malformed: it has not the form of a key.
	Malformed
	// Unknown: no version has its hash.
	Unknown
	// Suspended: the version is refused.
	Suspended
	// Expired: the client's keys have expired.
	Expired
	// Limited: the client has used up its rate.
	Limited
)

// String returns the reason as metrics name it.
func (r Reason) String() string {
	names := [...]string{"invalid", "good", "malformed", "unknown", "suspended", "expired", "limited"}
	if int(r) >= len(names) {
		return names[0]
	}
	return names[r]
}

// Found is the answer of a look-up. Only with Good and Limited may anything of it
// but the reason be told to who showed the key.
type Found struct {
	Reason  Reason
	Key     key.Name
	Version key.Version
	Client  string
	// Scopes must not be changed.
	Scopes  []string
	Expires time.Time
	// Left is how many further uses are allowed now, -1 without a limit; Retry is
	// when the next one is, if none is.
	Left  int
	Retry time.Duration
	// ID names the version for Use until the version is deleted.
	ID uint32
}

// Table finds versions by hash. Its methods may be called concurrently; the zero
// value is not usable.
type Table struct {
	seed maphash.Seed

	mu       sync.RWMutex
	versions chunks[version]
	clients  chunks[client]
	// byHash and byName are open-addressing tables of numbers of versions and clients.
	byHash, byName []uint32
	hashes, names  int // taken places, deleted ones included
	freeVersions   []uint32
	freeClients    []uint32
	plans          map[string]*plan
	live           int

	dirty struct {
		sync.Mutex
		list []uint32
	}
}

// version is an entry without what it shares with others of its client. Number 0
// is the decoy.
type version struct {
	hash, other Hash
	number      key.Version
	client      uint32
	accepted    bool
	present     bool
	used        atomic.Uint32
	seen        atomic.Int64
}

type client struct {
	name    key.Name
	who     string
	plan    *plan
	expires int64 // nanoseconds; 0: never
	// tat is when, by the generic cell rate algorithm, the client's next use is due.
	tat  atomic.Int64
	refs uint32
}

// plan is what many clients have in common.
type plan struct {
	name     string
	scopes   []string
	interval int64 // nanoseconds between uses; 0: no limit
	burst    int64
	refs     int
}

const (
	empty   = 0
	deleted = ^uint32(0)
)

// New returns an empty table.
func New() *Table {
	t := &Table{seed: maphash.MakeSeed(), byHash: make([]uint32, 64), byName: make([]uint32, 64), plans: map[string]*plan{}}
	decoy := t.versions.at(t.versions.grow())
	at := t.clients.grow()
	decoy.client = at
	t.clients.at(at).plan = &plan{}
	return t
}

// Clear removes everything. Uses that were not drained are lost.
func (t *Table) Clear() {
	fresh := New()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.versions, t.clients, t.byHash, t.byName, t.plans = fresh.versions, fresh.clients, fresh.byHash, fresh.byName, fresh.plans
	t.hashes, t.names, t.live, t.freeVersions, t.freeClients = 0, 0, 0, nil, nil
	t.dirty.Lock()
	t.dirty.list = nil
	t.dirty.Unlock()
}

// Len is the number of versions.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.live
}

// Put adds a version or changes it. It fails with ErrTaken when another version
// has its hash, and then changes nothing.
func (t *Table) Put(e *Entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.find(&e.Hash)
	if at != 0 {
		v := t.versions.at(at)
		if v.number != e.Version || t.clients.at(v.client).name != e.Key {
			return ErrTaken
		}
	} else {
		at = take(&t.freeVersions, &t.versions)
		v := t.versions.at(at)
		v.hash, v.number, v.client, v.present = e.Hash, e.Version, t.clientOf(e.Key), true
		v.used.Store(0)
		v.seen.Store(0)
		t.clients.at(v.client).refs++
		t.enter(at)
		t.live++
	}
	v := t.versions.at(at)
	v.other, v.accepted = e.Other, e.Accepted
	t.rule(t.clients.at(v.client), &e.Rules)
	return nil
}

// Owner returns whose hash it is, if it is anybody's.
func (t *Table) Owner(hash *Hash) (name key.Name, v key.Version, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	at := t.find(hash)
	if at == 0 {
		return "", 0, false
	}
	found := t.versions.at(at)
	return t.clients.at(found.client).name, found.number, true
}

// Get returns the version that has the hash, if there is one.
func (t *Table) Get(hash *Hash) (e Entry, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	at := t.find(hash)
	if at == 0 {
		return e, false
	}
	return t.entry(t.versions.at(at)), true
}

// Delete removes the version that has the hash, if there is one.
func (t *Table) Delete(hash *Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.find(hash)
	if at == 0 {
		return
	}
	mask := uint64(len(t.byHash) - 1)
	for i := place(hash) & mask; ; i = (i + 1) & mask {
		if t.byHash[i] == at {
			t.byHash[i] = deleted
			break
		}
	}
	v := t.versions.at(at)
	t.leave(v.client)
	v.hash, v.other, v.number, v.client, v.accepted, v.present = Hash{}, Hash{}, 0, 0, false, false
	t.freeVersions = append(t.freeVersions, at)
	t.live--
}

// leave drops a client that has no version any more.
func (t *Table) leave(at uint32) {
	c := t.clients.at(at)
	if c.refs--; c.refs > 0 {
		return
	}
	mask := uint64(len(t.byName) - 1)
	for i := t.placeOf(c.name) & mask; t.byName[i] != empty; i = (i + 1) & mask {
		if t.byName[i] == at {
			t.byName[i] = deleted
			break
		}
	}
	t.drop(c.plan)
	c.name, c.who, c.plan, c.expires = "", "", nil, 0
	c.tat.Store(0)
	t.freeClients = append(t.freeClients, at)
}

// Look finds the version with the hash and counts one use against the client's
// rate, at now. Whatever the reason, it takes the same steps.
func (t *Table) Look(hash *Hash, now time.Time) Found {
	nanos := now.UnixNano()
	t.mu.RLock()
	at := t.find(hash)
	v := t.versions.at(at) // of nobody's hash it is the decoy
	c := t.clients.at(v.client)
	f := Found{
		Reason: Good, Key: c.name, Version: v.number, Client: c.who, Scopes: c.plan.scopes, Expires: at64(c.expires), Left: -1, ID: at,
	}
	// Each test is made, whatever the others say; the last one that fails counts.
	if c.expires != 0 && nanos >= c.expires {
		f.Reason = Expired
	}
	if !v.accepted {
		f.Reason = Suspended
	}
	if !v.present {
		f.Reason = Unknown
	}
	if f.Reason == Good && c.plan.interval != 0 {
		c.spend(nanos, &f)
	}
	t.mu.RUnlock()
	return f
}

func at64(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

// spend counts one use by the generic cell rate algorithm: one number for each
// client, no lock.
func (c *client) spend(now int64, f *Found) {
	for {
		tat := c.tat.Load()
		next := max(tat, now) + c.plan.interval
		if wait := next - c.plan.interval*c.plan.burst - now; wait > 0 {
			f.Reason, f.Left, f.Retry = Limited, 0, time.Duration(wait)
			return
		}
		if c.tat.CompareAndSwap(tat, next) {
			f.Left = int((now + c.plan.interval*c.plan.burst - next) / c.plan.interval)
			return
		}
	}
}

// Used counts one use of the version that a look-up found, at now.
func (t *Table) Used(id uint32, n uint32, now time.Time) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := t.versions.at(id)
	if !v.present {
		return
	}
	v.seen.Store(now.UnixNano())
	if v.used.Add(n) == n {
		t.dirty.Lock()
		t.dirty.list = append(t.dirty.list, id)
		t.dirty.Unlock()
	}
}

// Use is how often a version was used since the last Drain.
type Use struct {
	ID      uint32
	Key     key.Name
	Version key.Version
	Count   uint32
	Last    time.Time
}

// Drain returns the uses since the last Drain, at most limit versions, those that
// wait longest first, and whether there are more.
func (t *Table) Drain(limit int) (uses []Use, more bool) {
	t.dirty.Lock()
	n := min(limit, len(t.dirty.list))
	list := slices.Clone(t.dirty.list[:n])
	t.dirty.list = slices.Delete(t.dirty.list, 0, n)
	more = len(t.dirty.list) > 0
	t.dirty.Unlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, id := range list {
		v := t.versions.at(id)
		count := v.used.Swap(0)
		if !v.present || count == 0 {
			continue
		}
		uses = append(uses, Use{ID: id, Key: t.clients.at(v.client).name, Version: v.number, Count: count, Last: at64(v.seen.Load())})
	}
	return uses, more
}

// Each calls fn for every version, without its scopes, until fn returns false. fn
// must not call the table.
func (t *Table) Each(fn func(e *Entry) bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for at := uint32(1); at < t.versions.n; at++ {
		v := t.versions.at(at)
		if v.present {
			e := t.entry(v)
			if !fn(&e) {
				return
			}
		}
	}
}

func (t *Table) entry(v *version) Entry {
	c := t.clients.at(v.client)
	rules := Rules{Client: c.who, Scopes: c.plan.scopes, Burst: int(c.plan.burst), Expires: at64(c.expires)}
	if c.plan.interval != 0 {
		rules.PerSecond = float64(time.Second) / float64(c.plan.interval)
	}
	return Entry{Key: c.name, Version: v.number, Hash: v.hash, Other: v.other, Accepted: v.accepted, Rules: rules}
}

// place is where the search for a hash begins: it is random already, and whoever
// does not know the pepper cannot choose it.
func place(hash *Hash) uint64 { return binary.LittleEndian.Uint64(hash[:]) }

func (t *Table) placeOf(name key.Name) uint64 { return maphash.String(t.seed, string(name)) }

// find returns the number of the version with the hash, or 0.
func (t *Table) find(hash *Hash) uint32 {
	mask := uint64(len(t.byHash) - 1)
	for i := place(hash) & mask; ; i = (i + 1) & mask {
		switch at := t.byHash[i]; at {
		case empty:
			return 0
		case deleted:
		default:
			// The place follows from a hash under a secret pepper: whom a comparison's time
			// tells of it learns nothing that could be shown.
			if t.versions.at(at).hash == *hash {
				return at
			}
		}
	}
}

// clientOf returns the number of a client, of a new one if there is none.
func (t *Table) clientOf(name key.Name) uint32 {
	mask := uint64(len(t.byName) - 1)
	for i := t.placeOf(name) & mask; t.byName[i] != empty; i = (i + 1) & mask {
		if at := t.byName[i]; at != deleted && t.clients.at(at).name == name {
			return at
		}
	}
	at := take(&t.freeClients, &t.clients)
	c := t.clients.at(at)
	c.name, c.refs = name, 0
	c.tat.Store(0)
	if t.names++; 4*t.names > 3*len(t.byName) {
		t.growNames()
	}
	mask = uint64(len(t.byName) - 1)
	i := t.placeOf(name) & mask
	for t.byName[i] != empty {
		i = (i + 1) & mask
	}
	t.byName[i] = at
	return at
}

func (t *Table) growNames() {
	old := t.byName
	present := 0
	for _, at := range old {
		if at != empty && at != deleted {
			present++
		}
	}
	t.byName, t.names = make([]uint32, sizeFor(present+1)), present+1
	mask := uint64(len(t.byName) - 1)
	for _, at := range old {
		if at == empty || at == deleted {
			continue
		}
		i := t.placeOf(t.clients.at(at).name) & mask
		for t.byName[i] != empty {
			i = (i + 1) & mask
		}
		t.byName[i] = at
	}
}

// enter puts a version into the table of hashes.
func (t *Table) enter(at uint32) {
	if t.hashes++; 4*t.hashes > 3*len(t.byHash) {
		old := t.byHash
		t.byHash, t.hashes = make([]uint32, sizeFor(t.live+1)), t.live+1
		for _, other := range old {
			if other != empty && other != deleted {
				t.place(other)
			}
		}
	}
	t.place(at)
}

func (t *Table) place(at uint32) {
	mask := uint64(len(t.byHash) - 1)
	i := place(&t.versions.at(at).hash) & mask
	for t.byHash[i] != empty {
		i = (i + 1) & mask
	}
	t.byHash[i] = at
}

// sizeFor is a power of two of which n places are at most half.
func sizeFor(n int) int {
	size := 64
	for size < 2*n {
		size *= 2
	}
	return size
}

// rule gives a client its rules.
func (t *Table) rule(c *client, rules *Rules) {
	c.who, c.expires = rules.Client, 0
	if !rules.Expires.IsZero() {
		c.expires = rules.Expires.UnixNano()
	}
	p := t.planOf(rules)
	if c.plan != nil {
		t.drop(c.plan)
	}
	c.plan = p
}

// planOf returns the plan with the rules: clients that may do the same share one.
func (t *Table) planOf(rules *Rules) *plan {
	name := planName(rules)
	p := t.plans[name]
	if p == nil {
		p = &plan{name: name, scopes: slices.Clone(rules.Scopes), burst: int64(max(rules.Burst, 1))}
		if rules.PerSecond > 0 {
			// Rounded, so that what entry makes of it leads to the same interval again.
			p.interval = max(int64(math.Round(float64(time.Second)/rules.PerSecond)), 1)
		}
		t.plans[name] = p
	}
	p.refs++
	return p
}

func (t *Table) drop(p *plan) {
	if p.refs--; p.refs == 0 {
		delete(t.plans, p.name)
	}
}
