package relay

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
)

// subject is a keyed hash of a token: it tells tokens apart and is of no use elsewhere.
type subject [sha256.Size]byte

func subjectOf(secretKey []byte, token string) subject {
	h := hmac.New(sha256.New, secretKey)
	_, _ = h.Write([]byte(token)) // never fails
	return subject(h.Sum(nil))
}

// grants remember which tokens the centre accepted for which keys, and when. A party of
// kind agent is remembered by its name as well: rotations wait for those that the centre
// knows, however long they are away, and not for others that show the same token.
type grants struct {
	most     int
	serveFor time.Duration
	now      func() time.Time

	mu    sync.Mutex
	by    map[subject]*grant
	count int
	// dirty are those that differ from what is stored.
	dirty map[subject]struct{}
	// changed has room for one token.
	changed chan struct{}
}

// grant is what the centre accepted of one token.
type grant struct {
	accepted map[string]time.Time
	// stored is what the cache holds: it may lag.
	stored map[string]time.Time
}

func newGrants(c *Config, now func() time.Time) *grants {
	return &grants{most: c.MaxGrants, serveFor: c.ServeFor, now: now, by: map[subject]*grant{}, dirty: map[subject]struct{}{}, changed: make(chan struct{}, 1)}
}

// mark notes that a token differs from what is stored; the caller holds the lock.
func (g *grants) mark(of subject) {
	g.dirty[of] = struct{}{}
	nudge(g.changed)
}

// pairOf names a key, and the party unless it is a client.
func pairOf(name key.Name, agent string) string {
	if agent == "" {
		return string(name)
	}
	return string(name) + "\x00" + agent
}

// accept notes that the centre has accepted a token for keys; agent is the party, or
// empty for a client.
func (g *grants) accept(of subject, agent string, names []key.Name) {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.by[of]
	if one == nil {
		one = &grant{accepted: map[string]time.Time{}, stored: map[string]time.Time{}}
		g.by[of] = one
	}
	for _, name := range names {
		pair := pairOf(name, agent)
		if _, known := one.accepted[pair]; !known {
			g.count++
		}
		one.accepted[pair] = now
		// The time on disk lags by a part of what it stands for, and never leads.
		if at, stored := one.stored[pair]; !stored || now.Sub(at) >= g.serveFor/24 {
			g.mark(of)
		}
	}
	g.bound()
}

// bound drops the oldest when there are too many; the caller holds the lock.
func (g *grants) bound() {
	if g.count <= g.most {
		return
	}
	type pair struct {
		of   subject
		name string
		at   time.Time
	}
	var all []pair
	for of, one := range g.by {
		for name, at := range one.accepted {
			all = append(all, pair{of, name, at})
		}
	}
	slices.SortFunc(all, func(a, b pair) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.name, b.name)) })
	// A sixteenth more, so that this is rare.
	for _, p := range all[:g.count-g.most+g.most/16] {
		g.drop(p.of, p.name)
	}
}

// drop forgets one pair; the caller holds the lock.
func (g *grants) drop(of subject, pair string) {
	one := g.by[of]
	if one == nil {
		return
	}
	if _, known := one.accepted[pair]; !known {
		return
	}
	delete(one.accepted, pair)
	g.count--
	g.mark(of)
	if len(one.accepted) == 0 {
		delete(g.by, of)
	}
}

// deny forgets what the centre refuses: the keys, for every party, or all of the token
// when there are none. It reports whether there was anything.
func (g *grants) deny(of subject, names []key.Name) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	one, before := g.by[of], g.count
	if one == nil {
		return false
	}
	for pair := range maps.Clone(one.accepted) {
		if names == nil || slices.ContainsFunc(names, func(name key.Name) bool { return keyOf(pair) == string(name) }) {
			g.drop(of, pair)
		}
	}
	return g.count != before
}

// leave forgets an agent that is registered no more: rotations do not wait for it.
func (g *grants) leave(of subject, agent string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.by[of]
	if one == nil {
		return
	}
	for pair := range maps.Clone(one.accepted) {
		if pair == pairOf(key.Name(keyOf(pair)), agent) {
			g.drop(of, pair)
		}
	}
}

func keyOf(pair string) string {
	for i := range len(pair) {
		if pair[i] == 0 {
			return pair[:i]
		}
	}
	return pair
}

// allows reports whether a token may be served for all of the keys, and whether it is
// known at all.
func (g *grants) allows(of subject, agent string, names []key.Name) (all, known bool) {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.by[of]
	if one == nil {
		return false, false
	}
	for _, at := range one.accepted {
		known = known || g.lasts(at, now)
	}
	for _, name := range names {
		at, is := one.accepted[pairOf(name, agent)]
		if !is || !g.lasts(at, now) {
			return false, known
		}
	}
	return true, known
}

func (g *grants) lasts(at, now time.Time) bool { return !at.After(now) && now.Sub(at) < g.serveFor }

// expire forgets what does not last.
func (g *grants) expire() {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for of, one := range g.by {
		for pair, at := range maps.Clone(one.accepted) {
			if !g.lasts(at, now) {
				g.drop(of, pair)
			}
		}
	}
}

// load takes in what the cache held of one token.
func (g *grants) load(of subject, accepted map[string]time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(accepted) == 0 || g.count+len(accepted) > g.most {
		g.mark(of)
		return
	}
	g.by[of] = &grant{accepted: accepted, stored: maps.Clone(accepted)}
	g.count += len(accepted)
}

// change is what the cache is to hold of one token; nothing: no document.
type change struct {
	of       subject
	accepted map[string]time.Time
}

// changes takes what differs from the cache, at most n.
func (g *grants) changes(n int) []change {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []change
	for of := range g.dirty {
		if len(list) == n {
			break
		}
		one := change{of: of}
		if is := g.by[of]; is != nil {
			one.accepted = maps.Clone(is.accepted)
		}
		list = append(list, one)
		delete(g.dirty, of)
	}
	return list
}

// settle notes what was stored, or that it was not.
func (g *grants) settle(list []change, stored bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, one := range list {
		if !stored {
			g.mark(one.of)
		} else if is := g.by[one.of]; is != nil {
			is.stored = one.accepted
		}
	}
}

func (g *grants) number() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count
}
