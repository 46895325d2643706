package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Learned is what rules know of the use of a key.
type Learned struct {
	// Since is when its first use was seen, Sources when each source told of the first;
	// both are zero when it never was used.
	Since   time.Time
	Sources map[string]time.Time
	// Networks and Applications are sorted by when they were used last, the last one first.
	Networks, Applications []anomaly.Seen
	// More is how many further networks are known by their hashes.
	More int
	// Roaming: new networks are usual for the key, to rules that never fired.
	Roaming bool
	// Rules are those that watch the key, by name.
	Rules []LearnedRule
}

// LearnedRule is what a rule knows by itself.
type LearnedRule struct {
	Name    string
	Roaming bool
	Doubts  []anomaly.Doubt
	// LearnsUntil is when something can be new to the rule first, if that is to come;
	// zero also for a rule that asks for nothing new.
	LearnsUntil time.Time
}

// Learned returns what rules know of the use of a key.
func (e *Engine) Learned(ctx context.Context, name key.Name) (learned Learned, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		_, k, _, err := e.readKey(ctx, tx, name)
		if err != nil {
			return err
		}
		c := &change{e: e, ctx: ctx, tx: tx, now: e.now()}
		_, m, err := c.memory(name)
		if err != nil {
			return err
		}
		lastFirst := func(list []anomaly.Seen) []anomaly.Seen {
			slices.SortStableFunc(list, func(a, b anomaly.Seen) int { return b.Last.Compare(a.Last) })
			return list
		}
		learned = Learned{
			Since: m.Since, Sources: m.Sources, Networks: lastFirst(m.Networks), Applications: lastFirst(m.Applications),
			More: m.Older.Len(), Roaming: m.Roams("", 0, c.now),
		}
		rules, err := c.rules()
		if err != nil {
			return err
		}
		for _, rule := range rules {
			if is, err := rule.Watches(k.Info()); err != nil || !is {
				continue // one that cannot tell has paged
			}
			spec := rule.Spec()
			one := LearnedRule{Name: rule.Name(), Roaming: m.Roams(rule.Name(), spec.Confirm.Std(), c.now), Doubts: m.Doubts(rule.Name(), c.now)}
			for _, since := range m.Sources {
				if until := since.Add(spec.Learn.Std()); asksForNews(&spec) && until.After(c.now) && until.After(one.LearnsUntil) {
					one.LearnsUntil = until
				}
			}
			learned.Rules = append(learned.Rules, one)
		}
		return nil
	})
	return learned, err
}

// RelearnRequest says what to accept or to forget of what is known of a key.
type RelearnRequest struct {
	Key key.Name
	// Forget what is known; else accept what is doubted.
	Forget bool
	Which  anomaly.Selection
	Reason string
}

// maxToldNames bounds the names in the audit entry of a Relearn.
const maxToldNames = 10

// Relearn accepts what rules doubt of a key, or forgets what they know, and returns
// the names of what that was, sorted. Its error wraps ErrNotFound when there is none.
func (e *Engine) Relearn(ctx context.Context, actor audit.Actor, request RelearnRequest) (names []string, err error) {
	err = e.update(ctx, actor, func(c *change) error {
		if _, _, _, err := e.readKey(c.ctx, c.tx, request.Key); err != nil {
			return err
		}
		doc, before, err := c.memory(request.Key)
		if err != nil {
			return err
		}
		var after anomaly.Memory
		action := audit.Action("learned.accepted")
		if request.Forget {
			action = "learned.forgotten"
			after, names = before.Forget(request.Which)
		} else {
			var accepted []anomaly.Doubt
			after, accepted = before.Accept(request.Which, c.now)
			names = nil
			for _, d := range accepted {
				names = append(names, d.Name)
			}
			slices.Sort(names)
			names = slices.Compact(names)
		}
		if len(names) == 0 && !(request.Forget && (request.Which.Roaming || request.Which.All)) {
			return fmt.Errorf("%w: nothing that was named is %s of key %s; keyturn rule learned %s shows what is", ErrNotFound,
				map[bool]string{true: "known", false: "doubted"}[request.Forget], request.Key, request.Key)
		}
		if doc.Body, err = encode(after); err != nil {
			return err
		}
		doc.Due = c.now.Add(usesKept)
		if _, err := c.tx.Docs.Put(c.ctx, doc); err != nil {
			return err
		}
		told := strings.Join(names[:min(len(names), maxToldNames)], " ")
		if more := len(names) - maxToldNames; more > 0 {
			told += fmt.Sprintf(" and %d more", more)
		}
		detail := map[string]string{}
		if request.Which.Roaming || request.Forget && request.Which.All {
			detail["roaming"] = "forgotten"
		}
		c.audit(audit.Entry{Action: action, Target: told, Key: request.Key, Reason: request.Reason, Detail: nonEmpty(detail)})
		return nil
	})
	return names, err
}

// memory reads what is remembered of a key.
func (c *change) memory(name key.Name) (doc store.Doc, m anomaly.Memory, err error) {
	doc, err = c.tx.Docs.Get(c.ctx, kindMemory, string(name))
	if errors.Is(err, store.ErrNotFound) {
		return store.Doc{Kind: kindMemory, Name: string(name)}, m, nil
	}
	if err == nil {
		err = decodeInto(doc.Body, &m)
	}
	return doc, m, err
}
