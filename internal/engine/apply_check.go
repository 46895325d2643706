package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

func (r *ApplyRequest) allows(name key.Name) bool { return r.Allowed == nil || r.Allowed(name) }

// checkChanges adds problems that only the server can see.
func (c *change) checkChanges(request ApplyRequest, resources, before []policy.Resource, result *ApplyResult) error {
	for _, change := range result.Changes {
		if change.Op == policy.Unchanged {
			continue
		}
		var problem *policy.Problem
		var err error
		switch change.Kind {
		case policy.KindKey:
			problem, err = c.checkKeyChange(&request, change)
		case policy.KindPolicy, policy.KindFreeze, policy.KindRule:
			problem, err = c.checkRuleChange(&request, change, resources, before)
		}
		if err != nil {
			return err
		}
		if problem != nil {
			problem.Resource, problem.Severity = change.Kind.String()+" "+change.Name, policy.Error
			result.Problems = append(result.Problems, *problem)
		}
	}
	return nil
}

func (c *change) checkKeyChange(request *ApplyRequest, change policy.Change) (*policy.Problem, error) {
	name := key.Name(change.Name)
	if !request.allows(name) {
		return &policy.Problem{
			Code: "not-allowed", Message: "your token does not cover this key", Hint: "ask for a token whose key patterns match it",
		}, nil
	}
	if change.Op != policy.Deleted {
		return nil, nil //nolint:nilnil // no problem is the answer
	}
	state, _, err := c.state(name)
	if err != nil {
		return nil, err
	}
	switch {
	case len(state.Versions) > 0:
		return &policy.Problem{
			Code: "key-in-use", Message: fmt.Sprintf("it cannot be deleted: %d of its versions are not destroyed", len(state.Versions)),
			Hint: "keep its document; a key whose versions are in use is not forgotten",
		}, nil
	case len(state.Presenters) > 0:
		return &policy.Problem{
			Code: "key-in-use", Message: fmt.Sprintf("it cannot be deleted: %d parties present it, for example %s", len(state.Presenters), state.Presenters[0].ID),
			Hint: "stop them, or take the key out of their configuration, first",
		}, nil
	}
	return nil, nil //nolint:nilnil // no problem is the answer
}

// checkRuleChange checks that a policy or freeze concerns no key that the caller
// may not write, before and after the change, and that no key loses its policy.
func (c *change) checkRuleChange(request *ApplyRequest, change policy.Change, resources, before []policy.Resource) (*policy.Problem, error) {
	if change.Kind == policy.KindRule && change.Op == policy.Created && ruleCount(resources, before) > policy.MaxRules {
		return &policy.Problem{
			Code: "too-many", Message: fmt.Sprintf("there would be more than %d rules", policy.MaxRules), Hint: "join rules with || in one condition, or delete some",
		}, nil
	}
	inUse := change.Kind == policy.KindPolicy && change.Op == policy.Deleted && change.Name != policy.DefaultName
	if request.Allowed == nil && !inUse {
		return nil, nil //nolint:nilnil // no problem is the answer
	}
	concerns, err := concernedBy(change, resources, before)
	if err != nil {
		return nil, err
	}
	replaced := index(resources)
	var problem *policy.Problem
	err = eachKeyDoc(c.ctx, c.tx, func(doc store.Doc) error {
		name := key.Name(doc.Name)
		var k *policy.Key
		if r, ok := replaced[named{policy.KindKey, doc.Name}]; ok && request.allows(name) {
			k = r.Key
		} else if request.Prune && request.allows(name) {
			return nil // it is deleted, too
		} else {
			follows, err := policyNamed(doc)
			if err != nil || change.Kind == policy.KindPolicy && follows != change.Name {
				return err
			}
			_, resource, err := c.e.decodeKey(doc)
			if err != nil {
				return err
			}
			k = &resource
		}
		concerned, err := concerns(k)
		switch {
		case err != nil || !concerned:
			return err
		case !request.allows(name):
			problem = &policy.Problem{
				Code: "not-allowed", Message: "it concerns keys that your token does not cover", Hint: "ask somebody whose token covers them all to apply it",
			}
			return errEnough
		case inUse:
			problem = &policy.Problem{
				Code: "policy-in-use", Message: fmt.Sprintf("it cannot be deleted: key %s follows it", name), Hint: "let the key follow another policy, or keep this one",
			}
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return problem, err
}

// concernedBy returns a function that says whether a policy or freeze concerns a
// key, in its old form or its new one.
func concernedBy(change policy.Change, resources, before []policy.Resource) (func(*policy.Key) (bool, error), error) {
	if change.Kind == policy.KindPolicy {
		return func(k *policy.Key) (bool, error) { return k.PolicyName() == change.Name, nil }, nil
	}
	if change.Kind == policy.KindRule {
		return watchedBy(change, resources, before)
	}
	var forms []*policy.CompiledFreeze
	for _, list := range [][]policy.Resource{before, resources} {
		resource, ok := find(list, change.Kind, change.Name)
		if !ok {
			continue
		}
		compiled, err := policy.CompileFreeze(*resource.Freeze)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		forms = append(forms, compiled)
	}
	return func(k *policy.Key) (bool, error) {
		for _, form := range forms {
			_, applies, err := form.Applies(k.Info())
			if err != nil || applies {
				return true, nil //nolint:nilerr // what cannot be told apart concerns the key
			}
		}
		return false, nil
	}, nil
}

// ruleCount is how many rules there would be.
func ruleCount(lists ...[]policy.Resource) int {
	names := map[string]bool{}
	for _, list := range lists {
		for i := range list {
			if list[i].Rule != nil {
				names[list[i].Name()] = true
			}
		}
	}
	return len(names)
}

// watchedBy is concernedBy of a rule.
func watchedBy(change policy.Change, resources, before []policy.Resource) (func(*policy.Key) (bool, error), error) {
	var forms []*policy.CompiledRule
	for _, list := range [][]policy.Resource{before, resources} {
		resource, ok := find(list, change.Kind, change.Name)
		if !ok {
			continue
		}
		compiled, err := policy.CompileRule(*resource.Rule)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		forms = append(forms, compiled)
	}
	return func(k *policy.Key) (bool, error) {
		for _, form := range forms {
			watches, err := form.Watches(k.Info())
			if err != nil || watches {
				return true, nil //nolint:nilerr // what cannot be told apart concerns the key
			}
		}
		return false, nil
	}, nil
}

// errEnough ends eachKeyDoc early.
var errEnough = errors.New("enough")

// eachKeyDoc visits the documents of all keys in the order of their names.
func eachKeyDoc(ctx context.Context, tx store.Tx, visit func(store.Doc) error) error {
	after := ""
	for {
		docs, err := tx.Index.List(ctx, kindKey, "", after, 1000)
		if err != nil || len(docs) == 0 {
			return err
		}
		after = docs[len(docs)-1].Name
		for _, doc := range docs {
			if err := visit(doc); err != nil {
				return err
			}
		}
	}
}
