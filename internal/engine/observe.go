package engine

import (
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

const (
	// maxWaiting bounds the observations that wait, of all keys; what is beyond is
	// logged. maxOfKey bounds those of one key that say by whom.
	maxWaiting = 20_000
	maxOfKey   = 64
	// patience is how long what is patient may wait.
	patience = 2 * time.Minute
	// recordSpan is within which the same use is observed and recorded once, with its
	// count.
	recordSpan = time.Minute
)

// Observation is one use of a version, or several of the same kind.
type Observation struct {
	Key key.Name
	// Version is the one that was used; 0 means the current one.
	Version key.Version
	// Source is who observed it, for example SourceSessions.
	Source string
	// Application is what the user calls itself, Address its IP address; both may be
	// empty.
	Application, Address, Region string
	Count                        int
	// Refused: the verifier let nobody in.
	Refused bool
	// Identified: the key itself says whose it is, so that its user is known.
	Identified bool
	Replay     policy.Known
	// Patient: it may wait for others of its key, for patience, so that what is told of
	// often is written seldom.
	Patient bool
	At      time.Time
}

// SourceSessions are the sessions that a system reports of a version.
const SourceSessions = "sessions"

// observed are observations that wait to be judged.
type observed struct {
	// judging: one goroutine judges at a time.
	judging sync.Mutex

	mu      sync.Mutex
	byKey   map[key.Name][]Observation
	waiting int
	lost    int
}

// Observe takes observations. It does not block; they are recorded and judged by
// the rules within about a second, or their patience.
func (e *Engine) Observe(list ...Observation) {
	e.uses.mu.Lock()
	defer e.uses.mu.Unlock()
	for i := range list {
		e.uses.add(list[i])
	}
}

func (o *observed) add(one Observation) {
	if one.Count <= 0 {
		return
	}
	one.Application, one.Address, one.Region = clipUse(one.Application), clipUse(one.Address), clipUse(one.Region)
	of := o.byKey[one.Key]
	if merge(of, &one) {
		return
	}
	if len(of) >= maxOfKey {
		// Nobody hides in a crowd: a condition that asks who it was has no data.
		one.Application, one.Address, one.Region = "", "", ""
		if merge(of, &one) {
			return
		}
	}
	if o.waiting >= maxWaiting || len(of) >= 2*maxOfKey {
		o.lost += one.Count
		return
	}
	if o.byKey == nil {
		o.byKey = map[key.Name][]Observation{}
	}
	o.byKey[one.Key] = append(of, one)
	o.waiting++
}

// merge adds an observation to one of the same kind, if there is one.
func merge(list []Observation, one *Observation) bool {
	for i := range list {
		same := *one
		same.At, same.Count = list[i].At, list[i].Count
		if same == list[i] && one.At.Sub(same.At).Abs() < recordSpan {
			list[i].Count += one.Count
			return true
		}
	}
	return false
}

func clipUse(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), anomaly.MaxText)], "?"))
}

// takeUses takes what waits, by key; of keys of which all is patient only what has
// waited for long enough, unless all is asked for.
func (e *Engine) takeUses(now time.Time, all bool) (byKey map[key.Name][]Observation, lost int) {
	e.uses.mu.Lock()
	defer e.uses.mu.Unlock()
	byKey, lost = map[key.Name][]Observation{}, e.uses.lost
	e.uses.lost = 0
	for name, list := range e.uses.byKey {
		urgent := func(o Observation) bool { return !o.Patient || now.Sub(o.At).Abs() >= patience }
		if all || slices.ContainsFunc(list, urgent) {
			byKey[name] = list
			e.uses.waiting -= len(list)
			delete(e.uses.byKey, name)
		}
	}
	return byKey, lost
}

// observeUsage observes who a system says uses a version.
func (e *Engine) observeUsage(name key.Name, v key.Version, holders []provider.Holder) {
	now := e.now()
	for i := range holders {
		h := &holders[i]
		e.Observe(Observation{
			Key: name, Version: v, Source: SourceSessions, Application: h.Application, Address: h.Address, Count: h.Sessions, At: now,
		})
	}
}
