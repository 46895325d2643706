package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// The kinds of documents about uses: those recorded, by "KEY@DAY", and what the
// rules remember of a key, by its name.
const (
	kindUses   = "use-record"
	kindMemory = "use-memory"
)

const (
	// observeEvery is how often observations are written and judged.
	observeEvery = time.Second
	// maxWaiting bounds the observations that wait, of all keys; what is beyond is
	// logged. maxOfKey bounds those of one key that say by whom.
	maxWaiting = 20_000
	maxOfKey   = 64
	// maxRecorded bounds the uses recorded of a key in one day.
	maxRecorded = 256
	// recordSpan is within which the same use is recorded once, with its count.
	recordSpan = time.Minute
	// usesKept is how long uses are recorded.
	usesKept = 30 * 24 * time.Hour
	// keysAtOnce bounds the keys that share a transaction; observePause is how long
	// the store is left to others between two.
	keysAtOnce   = 50
	observePause = 20 * time.Millisecond
	// maxNamedParties bounds the parties of a key among which a user is looked for.
	maxNamedParties = 1000
)

// Observation is one use of a version, or several of the same kind.
type Observation struct {
	Key     key.Name
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
	At         time.Time
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
// the rules within about a second.
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

func (e *Engine) takeUses() (byKey map[key.Name][]Observation, lost int) {
	e.uses.mu.Lock()
	defer e.uses.mu.Unlock()
	byKey, lost = e.uses.byKey, e.uses.lost
	e.uses.byKey, e.uses.waiting, e.uses.lost = nil, 0, 0
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

// keepUses records and judges what is observed, until ctx ends; then once more.
func (e *Engine) keepUses(ctx context.Context) {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			e.judgeLast(context.WithoutCancel(ctx))
			return
		case <-ticker.C:
		}
		err := e.judgeUses(ctx)
		if err != nil && ctx.Err() == nil && !failing {
			e.log.WarnContext(ctx, "uses of keys could not be recorded and judged; trying again", "error", err)
		}
		failing = err != nil
	}
}

func (e *Engine) judgeLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, observeEvery)
	defer cancel()
	if err := e.judgeUses(ctx); err != nil {
		e.log.WarnContext(ctx, "the last uses of keys could not be recorded", "error", err)
	}
}

// judgeUses records and judges what waits. What fails waits again.
func (e *Engine) judgeUses(ctx context.Context) error {
	e.uses.judging.Lock()
	defer e.uses.judging.Unlock()
	byKey, lost := e.takeUses()
	if lost > 0 {
		e.log.WarnContext(ctx, "more uses of keys were observed than can be judged; the rest was left out", "uses", lost)
	}
	var errs []error
	for part := range slices.Chunk(slices.Sorted(maps.Keys(byKey)), keysAtOnce) {
		err := e.judgePart(ctx, part, byKey)
		if err != nil && len(part) > 1 {
			err = nil
			for i := range part { // one damaged key keeps no other from being judged
				err = errors.Join(err, e.judgePart(ctx, part[i:i+1], byKey))
			}
		}
		errs = append(errs, err)
		if len(part) == keysAtOnce {
			select { // the store is left to rotations
			case <-time.After(observePause):
			case <-ctx.Done():
			}
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) judgePart(ctx context.Context, names []key.Name, byKey map[key.Name][]Observation) error {
	err := e.update(ctx, Server(), func(c *change) error {
		rules, err := c.rules()
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := c.judgeKey(name, byKey[name], rules); err != nil {
				return fmt.Errorf("key %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil && len(names) == 1 {
		e.Observe(byKey[names[0]]...)
	}
	return err
}

// rules reads the rules there are.
func (c *change) rules() ([]*policy.CompiledRule, error) {
	docs, err := c.tx.Index.List(c.ctx, kindRule, "", "", policy.MaxRules)
	if err != nil {
		return nil, err
	}
	list := make([]*policy.CompiledRule, 0, len(docs))
	for _, doc := range docs {
		rule, err := c.e.anomalies.get(doc.Name, doc.Body, func() (*policy.CompiledRule, error) {
			resource, err := parseStored(doc.Body)
			if err == nil && resource.Rule == nil {
				err = errors.New("it is no rule")
			}
			if err != nil {
				return nil, err
			}
			return policy.CompileRule(*resource.Rule)
		})
		if err != nil {
			return nil, fmt.Errorf("stored rule %s is damaged: %w", doc.Name, err)
		}
		list = append(list, rule)
	}
	return list, nil
}

// judgeKey records uses of a key, and does what the rules say of them.
func (c *change) judgeKey(name key.Name, list []Observation, rules []*policy.CompiledRule) error {
	_, k, _, err := c.e.readKey(c.ctx, c.tx, name)
	if errors.Is(err, ErrNotFound) {
		return nil // it was deleted meanwhile
	}
	if err != nil {
		return err
	}
	state, _, err := c.state(name)
	if err != nil {
		return err
	}
	uses := usesOf(&state, list)
	doc, err := c.tx.Docs.Get(c.ctx, kindMemory, string(name))
	if errors.Is(err, store.ErrNotFound) {
		doc, err = store.Doc{Kind: kindMemory, Name: string(name)}, nil
	}
	if err != nil {
		return err
	}
	var memory anomaly.Memory
	if doc.Rev != 0 {
		if err := decodeInto(doc.Body, &memory); err != nil {
			return err
		}
	}
	memory, verdicts := anomaly.Fold(memory, rules, k.Info(), uses)
	if doc.Body, err = encode(memory); err != nil {
		return err
	}
	doc.Due = c.now.Add(usesKept)
	if _, err := c.tx.Docs.Put(c.ctx, doc); err != nil {
		return err
	}
	if err := c.recordUses(name, uses); err != nil {
		return err
	}
	for i := range verdicts {
		if err := c.react(&k, &verdicts[i]); err != nil {
			return err
		}
	}
	return nil
}

// usesOf adds what the machine knows of the versions that were used.
func usesOf(state *rotation.State, list []Observation) []anomaly.Use {
	names, whole := presenterNames(state)
	uses := make([]anomaly.Use, 0, len(list))
	for i := range list {
		o := &list[i]
		u := anomaly.Use{
			At: o.At.UTC(), Source: o.Source, Version: o.Version, Application: o.Application, Address: o.Address, Region: o.Region,
			Count: o.Count, Refused: o.Refused, Replay: o.Replay,
		}
		if v, ok := state.Version(o.Version); ok {
			u.State = v.State.String()
			if v.Label != 0 {
				u.Label = v.Label.String()
			}
		} else if o.Version != 0 && o.Version < state.Next {
			u.State = key.Destroyed.String()
		}
		u.Revoked = o.Refused && u.State != ""
		switch {
		case o.Identified || names[o.Application]:
			u.Known = policy.Yes
		case o.Application != "" && whole:
			u.Known = policy.No
		}
		uses = append(uses, u)
	}
	anomaly.Sort(uses)
	return uses
}

// presenterNames are the IDs of the parties that present a key; whole reports
// whether these are all of them.
func presenterNames(state *rotation.State) (names map[string]bool, whole bool) {
	names = map[string]bool{}
	for i := range state.Presenters {
		if i >= maxNamedParties {
			return names, false
		}
		names[state.Presenters[i].ID] = true
	}
	return names, true
}

// recordUses adds to the record of a key, day by day. Where a day is full, what is
// there already is counted on.
func (c *change) recordUses(name key.Name, uses []anomaly.Use) error {
	for len(uses) > 0 {
		day := uses[0].At.Truncate(24 * time.Hour)
		n := slices.IndexFunc(uses, func(u anomaly.Use) bool { return !u.At.Truncate(24 * time.Hour).Equal(day) })
		if n < 0 {
			n = len(uses)
		}
		id := string(name) + "@" + day.Format(time.DateOnly)
		doc, err := c.tx.Docs.Get(c.ctx, kindUses, id)
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindUses, Name: id}, nil
		}
		if err != nil {
			return err
		}
		var list []anomaly.Use
		if doc.Rev != 0 {
			if err := decodeInto(doc.Body, &list); err != nil {
				return err
			}
		}
		for i := range uses[:n] {
			list = record(list, uses[i])
		}
		if doc.Body, err = encode(list); err != nil {
			return err
		}
		doc.Due = day.Add(24*time.Hour + usesKept)
		if _, err := c.tx.Docs.Put(c.ctx, doc); err != nil {
			return err
		}
		uses = uses[n:]
	}
	return nil
}

func record(list []anomaly.Use, one anomaly.Use) []anomaly.Use {
	for i := len(list) - 1; i >= 0; i-- {
		same := one
		same.At, same.Count = list[i].At, list[i].Count
		if same == list[i] && (one.At.Sub(list[i].At) < recordSpan || len(list) >= maxRecorded) {
			list[i].Count += one.Count
			return list
		}
	}
	if len(list) < maxRecorded {
		list = append(list, one)
	}
	return list
}

// maxPast bounds the keys of which one dry run reads the past.
const maxPast = 2000

// tryRules adds what rules would have found in the recorded past to the problems of
// a dry run, as warnings.
func (c *change) tryRules(request ApplyRequest, resources []policy.Resource, result *ApplyResult) error {
	var rules []*policy.CompiledRule
	for i := range resources {
		if resources[i].Rule == nil || result.Problems.Err() != nil {
			continue
		}
		rule, err := policy.CompileRule(*resources[i].Rule)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		rules = append(rules, rule)
	}
	if len(rules) == 0 {
		return nil
	}
	found := map[string][]string{}
	counts := map[string]int{}
	keys := 0
	err := eachKeyDoc(c.ctx, c.tx, func(doc store.Doc) error {
		if !request.allows(key.Name(doc.Name)) {
			return nil
		}
		if keys++; keys > maxPast {
			return errEnough
		}
		_, k, err := c.e.decodeKey(doc)
		if err != nil {
			return err
		}
		uses, err := c.past(k.Metadata.Name)
		if err != nil {
			return err
		}
		_, verdicts := anomaly.Fold(anomaly.Memory{}, rules, k.Info(), uses)
		for _, v := range verdicts {
			if counts[v.Rule]++; counts[v.Rule] <= maxExamples {
				found[v.Rule] = append(found[v.Rule], fmt.Sprintf("%s, key %s: %s", v.Use.At.Format(time.RFC3339), doc.Name, v))
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	for _, rule := range rules {
		name := rule.Name()
		message := fmt.Sprintf("rule %s would have found %d anomalies over the recorded past (%d days at most)", name, counts[name], int(usesKept.Hours()/24))
		if keys > maxPast {
			message += fmt.Sprintf(" at the first %d keys", maxPast)
		}
		result.Problems = append(result.Problems, past(name, message))
		for _, one := range found[name] {
			result.Problems = append(result.Problems, past(name, one))
		}
	}
	return err
}

// maxExamples bounds the anomalies of each rule that a dry run tells of.
const maxExamples = 20

func past(rule, message string) policy.Problem {
	return policy.Problem{Resource: policy.KindRule.String() + " " + rule, Severity: policy.Warning, Code: "rule-past", Message: message}
}

// past reads the recorded uses of a key.
func (c *change) past(name key.Name) ([]anomaly.Use, error) {
	docs, err := c.tx.Index.List(c.ctx, kindUses, string(name)+"@", "", int(usesKept.Hours()/24)+2)
	if err != nil {
		return nil, err
	}
	var uses []anomaly.Use
	for _, doc := range docs {
		var list []anomaly.Use
		if err := decodeInto(doc.Body, &list); err != nil {
			return nil, err
		}
		uses = append(uses, list...)
	}
	anomaly.Sort(uses)
	return uses, nil
}

func (e *Engine) sweepUses(ctx context.Context, tx store.Tx) (int, error) {
	return e.sweepDue(ctx, tx, kindUses)
}

func (e *Engine) sweepMemories(ctx context.Context, tx store.Tx) (int, error) {
	return e.sweepDue(ctx, tx, kindMemory)
}
