package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Document is a file to apply.
type Document struct {
	Name    string
	Content []byte
}

// ApplyRequest asks to make policies, freezes, rules and keys as documents say.
type ApplyRequest struct {
	Documents []Document
	// DryRun only says what would change, and what rules would have found in the
	// recorded past.
	DryRun bool
	// PastSince leaves out of that what was before; the zero value leaves out nothing.
	// Without a document it is about the rules in force.
	PastSince time.Time
	// Prune also deletes policies, freezes, rules and keys that no document names.
	Prune bool
	// Allowed says whether the caller may write the key with this name; nil allows
	// all. A caller who may not write a key sees nothing of it, prunes it not, and
	// may not change a policy, freeze or rule that concerns it.
	Allowed func(key.Name) bool
}

// ApplyResult is what changed, or would change. With a problem of severity error
// nothing did.
type ApplyResult struct {
	Changes  []policy.Change
	Problems policy.Problems
}

// maxResources bounds one call of Apply.
const maxResources = 10_000

// Apply checks documents and stores them in one transaction: all or nothing.
// Applying begins no rotation.
func (e *Engine) Apply(ctx context.Context, actor audit.Actor, request ApplyRequest) (ApplyResult, error) {
	var result ApplyResult
	var resources []policy.Resource
	for _, document := range request.Documents {
		parsed, err := policy.Parse(document.Name, document.Content)
		var problems policy.Problems
		if errors.As(err, &problems) {
			result.Problems = append(result.Problems, problems...)
		} else if err != nil {
			return result, err
		}
		resources = append(resources, parsed...)
	}
	if len(resources) > maxResources {
		return result, fmt.Errorf("%w: %d resources at once, at most %d are allowed; apply them in parts", ErrInvalid, len(resources), maxResources)
	}
	if result.Problems.Err() != nil {
		return result, nil //nolint:nilerr // the problems are the answer
	}
	parseProblems := result.Problems
	apply := func(c *change) error {
		result = ApplyResult{Problems: slices.Clone(parseProblems)}
		return c.apply(request, resources, &result)
	}
	if request.DryRun {
		return result, e.store.View(ctx, func(tx store.Tx) error {
			return apply(&change{e: e, ctx: ctx, tx: tx, actor: actor, now: e.now()})
		})
	}
	return result, e.update(ctx, actor, apply)
}

func (c *change) apply(request ApplyRequest, resources []policy.Resource, result *ApplyResult) error {
	before, err := c.existing(resources, request)
	if err != nil {
		return err
	}
	result.Problems = append(result.Problems, policy.Lint(resources, policy.LintOptions{
		Known: before, Providers: c.e.providers(), CheckConfig: c.e.checkConfig, Now: c.now,
	})...)
	result.Changes = policy.Diff(before, resources)
	if !request.Prune {
		result.Changes = slices.DeleteFunc(result.Changes, func(change policy.Change) bool { return change.Op == policy.Deleted })
	}
	if err := c.checkChanges(request, resources, before, result); err != nil {
		return err
	}
	if request.DryRun {
		if err := c.tryRules(request, resources, result); err != nil {
			return err
		}
	}
	if request.DryRun || result.Problems.Err() != nil {
		return nil //nolint:nilerr // the problems are the answer
	}
	wanted := index(resources)
	for _, change := range result.Changes {
		if change.Op == policy.Unchanged {
			continue
		}
		if err := c.applyChange(change, wanted, before); err != nil {
			return err
		}
	}
	return nil
}

// named identifies a resource.
type named struct {
	kind policy.Kind
	name string
}

// index finds resources by kind and name.
func index(resources []policy.Resource) map[named]policy.Resource {
	byName := make(map[named]policy.Resource, len(resources))
	for _, resource := range resources {
		byName[named{resource.Kind(), resource.Name()}] = resource
	}
	return byName
}

// existing reads the resources that the new ones change or refer to: all
// policies, freezes and rules, and of the keys those that are named, or all. Keys that
// the caller may not write are left out.
func (c *change) existing(resources []policy.Resource, request ApplyRequest) ([]policy.Resource, error) {
	var list []policy.Resource
	add := func(body []byte) error {
		resource, err := parseStored(body)
		if err != nil {
			return fmt.Errorf("a stored resource is damaged: %w", err)
		}
		list = append(list, resource)
		return nil
	}
	for _, kind := range []string{kindPolicy, kindFreeze, kindRule} {
		docs, err := c.tx.Index.List(c.ctx, kind, "", "", maxResources)
		if err != nil {
			return nil, err
		}
		for _, doc := range docs {
			if err := add(doc.Body); err != nil {
				return nil, err
			}
		}
	}
	if request.Prune {
		docs, err := c.tx.Index.List(c.ctx, kindKey, "", "", maxResources)
		if err != nil {
			return nil, err
		}
		if len(docs) == maxResources {
			return nil, fmt.Errorf("%w: more than %d keys exist; apply without prune", ErrInvalid, maxResources)
		}
		for _, doc := range docs {
			if !request.allows(key.Name(doc.Name)) {
				continue
			}
			var record KeyRecord
			if err := decodeInto(doc.Body, &record); err != nil {
				return nil, err
			}
			if err := add(record.Resource); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	for _, resource := range resources {
		if resource.Key == nil || !request.allows(resource.Key.Metadata.Name) {
			continue
		}
		record, _, _, err := c.e.readKey(c.ctx, c.tx, resource.Key.Metadata.Name)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := add(record.Resource); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func find(resources []policy.Resource, kind policy.Kind, name string) (policy.Resource, bool) {
	for _, resource := range resources {
		if resource.Kind() == kind && resource.Name() == name {
			return resource, true
		}
	}
	return policy.Resource{}, false
}

func (c *change) applyChange(change policy.Change, wanted map[named]policy.Resource, before []policy.Resource) error {
	entry := audit.Entry{Action: audit.ActionApply, Target: change.Kind.String() + " " + change.Name, To: change.Op.String()}
	if change.Kind == policy.KindKey {
		entry.Key = key.Name(change.Name)
	}
	c.audit(entry)
	kinds := map[policy.Kind]string{policy.KindPolicy: kindPolicy, policy.KindFreeze: kindFreeze, policy.KindRule: kindRule, policy.KindKey: kindKey}
	doc, err := c.tx.Docs.Get(c.ctx, kinds[change.Kind], change.Name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if change.Op == policy.Deleted {
		if err := c.tx.Docs.Delete(c.ctx, doc.Kind, doc.Name, doc.Rev); err != nil {
			return err
		}
		if change.Kind == policy.KindKey {
			return c.touchState(doc.Name)
		}
		if change.Kind == policy.KindRule {
			return nil
		}
		return c.reschedule(change, before, policy.Resource{})
	}
	resource, ok := wanted[named{change.Kind, change.Name}]
	if !ok {
		return fmt.Errorf("resource %s %s vanished while it was applied", change.Kind, change.Name)
	}
	if change.Kind == policy.KindKey {
		return c.applyKey(doc, resource)
	}
	doc.Kind, doc.Name = kinds[change.Kind], change.Name
	if doc.Body, err = rawResource(resource); err != nil {
		return err
	}
	if _, err := c.tx.Docs.Put(c.ctx, doc); err != nil || change.Kind == policy.KindRule {
		return err
	}
	return c.reschedule(change, before, resource)
}

// touchState writes the state of a deleted key as it is: who follows changes by
// their revisions hears of the deletion.
func (c *change) touchState(name string) error {
	doc, err := c.tx.Docs.Get(c.ctx, kindState, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

func (c *change) applyKey(doc store.Doc, resource policy.Resource) error {
	k := resource.Key
	name := k.Metadata.Name
	record := KeyRecord{Created: c.now, Scheduled: c.now}
	if doc.Rev != 0 {
		old, was, _, err := c.e.readKey(c.ctx, c.tx, name)
		if err != nil {
			return err
		}
		record = old
		if was.PolicyName() != k.PolicyName() {
			record.Scheduled = c.now
		}
	}
	raw, err := rawResource(resource)
	if err != nil {
		return err
	}
	record.Resource, record.Applied = raw, c.now
	// Considered at once only if there may be something to do.
	doc.Due = c.now
	if decision, err := c.decide(&record, k); err == nil && !decision.Due {
		doc.Due = lookAgain(c.now, decision.At)
	}
	if err := c.putKey(doc, &record, k); err != nil {
		return err
	}
	topology, err := c.e.config.Drivers[k.Spec.Provider].Check(k.Spec.Config)
	if err != nil {
		return fmt.Errorf("%w: key %s: %w", ErrInvalid, name, err)
	}
	return c.configure(name, topology)
}

// configure tells the machine what the system consists of, if that is news.
func (c *change) configure(name key.Name, topology provider.Topology) error {
	body := rotation.Configured{Capacity: topology.Capacity, Gap: topology.Gap}
	for _, endpoint := range topology.Endpoints {
		body.Verifiers = append(body.Verifiers, rotation.VerifierRef{ID: endpoint.Name, Region: endpoint.Region})
	}
	state, _, err := c.state(name)
	if err != nil {
		return err
	}
	same := state.Next != 0 && state.Capacity == body.Capacity && state.Gap == body.Gap && len(state.Verifiers) == len(body.Verifiers)
	for _, ref := range body.Verifiers {
		w, ok := state.Verifier(ref.ID)
		same = same && ok && w.Region == ref.Region
	}
	if same {
		return nil
	}
	isNew := state.Next == 0
	if state, err = c.step(name, key.RotationID{}, body); err != nil || !isNew {
		return err
	}
	return c.bornAgain(name, &state)
}

func (e *Engine) providers() []string {
	var names []string
	for name := range e.config.Drivers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// checkConfig checks a key's config block by its provider.
func (e *Engine) checkConfig(name string, config map[string]any) (policy.Topology, []policy.ConfigProblem) {
	return CheckConfig(e.config.Drivers)(name, config)
}

// CheckConfig returns the check of config blocks that policy.Lint asks for.
func CheckConfig(drivers map[string]provider.Driver) func(string, map[string]any) (policy.Topology, []policy.ConfigProblem) {
	return func(name string, config map[string]any) (policy.Topology, []policy.ConfigProblem) {
		driver, ok := drivers[name]
		if !ok {
			return policy.Topology{}, nil // Lint says that the provider is unknown
		}
		topology, err := driver.Check(config)
		converted := policy.Topology{Capacity: topology.Capacity, Gap: topology.Gap}
		for _, endpoint := range topology.Endpoints {
			converted.Endpoints = append(converted.Endpoints, policy.Endpoint{Name: endpoint.Name, Region: endpoint.Region})
		}
		return converted, configProblems(err)
	}
}

// configProblems takes a provider's joined errors apart.
func configProblems(err error) []policy.ConfigProblem {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var problems []policy.ConfigProblem
		for _, e := range joined.Unwrap() {
			problems = append(problems, configProblems(e)...)
		}
		return problems
	}
	var problem *provider.ConfigError
	if errors.As(err, &problem) {
		return []policy.ConfigProblem{{Path: problem.Path, Problem: problem.Problem, Hint: problem.Hint}}
	}
	return []policy.ConfigProblem{{Problem: err.Error()}}
}
