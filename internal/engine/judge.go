package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// kindMemory is the kind of the documents of what the rules remember of a key, by
// its name.
const kindMemory = "use-memory"

const (
	// observeEvery is how often observations are written and judged.
	observeEvery = time.Second
	// keysAtOnce bounds the keys that share a transaction; observePause is how long
	// the store is left to others between two.
	keysAtOnce   = 50
	observePause = 20 * time.Millisecond
	// maxNamedParties bounds the parties of a key among which a user is looked for.
	maxNamedParties = 1000
)

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
		err := e.judgeUses(ctx, false)
		if err != nil && ctx.Err() == nil && !failing {
			e.log.WarnContext(ctx, "uses of keys could not be recorded and judged; trying again", "error", err)
		}
		failing = err != nil
	}
}

func (e *Engine) judgeLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, observeEvery)
	defer cancel()
	if err := e.judgeUses(ctx, true); err != nil {
		e.log.WarnContext(ctx, "the last uses of keys could not be recorded", "error", err)
	}
}

// judgeUses records and judges what waits, all of it or what need not be patient. What
// fails waits again.
func (e *Engine) judgeUses(ctx context.Context, all bool) error {
	e.uses.judging.Lock()
	defer e.uses.judging.Unlock()
	byKey, lost := e.takeUses(e.now(), all)
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
	verdicts, err := c.remember(name, k.Info(), rules, uses)
	if err != nil {
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

// remember folds uses into what is remembered of a key, and returns what the rules
// say of them.
func (c *change) remember(name key.Name, info policy.KeyInfo, rules []*policy.CompiledRule, uses []anomaly.Use) ([]anomaly.Verdict, error) {
	doc, before, err := c.memory(name)
	if err != nil {
		return nil, err
	}
	memory, verdicts := anomaly.Fold(before, rules, info, uses)
	if doc.Body, err = encode(memory); err != nil {
		return nil, err
	}
	doc.Due = c.now.Add(usesKept)
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return verdicts, err
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
		if u.Version == 0 {
			u.Version = state.Labelled(key.Current)
		}
		if v, ok := state.Version(u.Version); ok {
			u.State = v.State.String()
			if v.Label != 0 {
				u.Label = v.Label.String()
			}
		} else if u.Version != 0 && u.Version < state.Next {
			u.State = key.Destroyed.String()
		}
		u.Revoked = o.Refused && revoked(state, u.Version)
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

// revoked reports whether every verifier that was asked to accept a version is proven
// to refuse it by now. One that drains, or whose refusal is not proven yet, is not
// revoked: who is refused with it meanwhile is refused for another reason, or early.
func revoked(state *rotation.State, number key.Version) bool {
	v, ok := state.Version(number)
	if !ok {
		return number != 0 && number < state.Next // destroyed, and forgotten
	}
	asked := false
	for i := range state.Verifiers {
		slot, ok := state.Verifiers[i].Slot(number)
		if ok && slot.Acceptance != rotation.Refused {
			return false
		}
		asked = asked || ok
	}
	return asked || v.State == key.Destroyed
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
