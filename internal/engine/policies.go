package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// readKey reads a key's record and resource. The resource is shared and must not
// be changed.
func (e *Engine) readKey(ctx context.Context, tx store.Tx, name key.Name) (KeyRecord, policy.Key, store.Doc, error) {
	var record KeyRecord
	doc, err := tx.Docs.Get(ctx, kindKey, string(name))
	if errors.Is(err, store.ErrNotFound) {
		return record, policy.Key{}, doc, fmt.Errorf("%w: key %s; apply it first", ErrNotFound, name)
	}
	if err != nil {
		return record, policy.Key{}, doc, err
	}
	record, k, err := e.decodeKey(doc)
	return record, k, doc, err
}

// decodeKey reads the document of a key. The resource is shared and must not be changed.
func (e *Engine) decodeKey(doc store.Doc) (KeyRecord, policy.Key, error) {
	var record KeyRecord
	if err := decodeInto(doc.Body, &record); err != nil {
		return record, policy.Key{}, err
	}
	k, err := e.keys.get(doc.Name, record.Resource, func() (*policy.Key, error) {
		resource, err := parseStored(record.Resource)
		if err == nil && resource.Key == nil {
			err = errors.New("it is no key")
		}
		return resource.Key, err
	})
	if err != nil {
		return record, policy.Key{}, fmt.Errorf("stored key %s is damaged: %w", doc.Name, err)
	}
	return record, *k, nil
}

// storedSpec is what can be read of a stored key at a fraction of the cost of
// parsing it.
type storedSpec struct {
	Provider string          `json:"provider"`
	Policy   string          `json:"policy"`
	Config   provider.Config `json:"config"`
}

func specNamed(doc store.Doc) (storedSpec, error) {
	var record struct {
		Resource struct {
			Spec storedSpec `json:"spec"`
		} `json:"resource"`
	}
	err := decodeInto(doc.Body, &record)
	return record.Resource.Spec, err
}

// policyNamed returns the name of the policy that a stored key follows.
func policyNamed(doc store.Doc) (string, error) {
	spec, err := specNamed(doc)
	if err != nil {
		return "", err
	}
	if spec.Policy == "" {
		return policy.DefaultName, nil
	}
	return spec.Policy, nil
}

// parseStored reads one resource in the form in which it is stored.
func parseStored(body []byte) (policy.Resource, error) {
	resources, err := policy.Parse("stored.json", body)
	if err != nil {
		return policy.Resource{}, err
	}
	if len(resources) != 1 {
		return policy.Resource{}, fmt.Errorf("%d resources where one is expected", len(resources))
	}
	return resources[0], nil
}

// policyOf returns the compiled policy that a key follows.
func (e *Engine) policyOf(ctx context.Context, tx store.Tx, k *policy.Key) (*policy.Compiled, error) {
	name := k.PolicyName()
	doc, err := tx.Docs.Get(ctx, kindPolicy, name)
	if errors.Is(err, store.ErrNotFound) && name == policy.DefaultName {
		doc, err = store.Doc{}, nil
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%w: policy %s, which key %s follows; apply it first", ErrNotFound, name, k.Metadata.Name)
	}
	if err != nil {
		return nil, err
	}
	return e.rules.get(name, doc.Body, func() (*policy.Compiled, error) {
		p := policy.Default()
		if doc.Rev != 0 {
			resource, err := parseStored(doc.Body)
			if err != nil || resource.Policy == nil {
				return nil, fmt.Errorf("stored policy %s is damaged: %w", name, err)
			}
			p = *resource.Policy
		}
		compiled, err := policy.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", name, err)
		}
		return compiled, nil
	})
}

// specOf reads the policy that a key follows now.
func (e *Engine) specOf(ctx context.Context, name key.Name) (spec policy.Spec, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		_, k, _, err := e.readKey(ctx, tx, name)
		if err != nil {
			return err
		}
		compiled, err := e.policyOf(ctx, tx, &k)
		if err != nil {
			return err
		}
		spec = compiled.Spec()
		return nil
	})
	return spec, err
}

// facts gathers what policy.Due knows about a key.
func (e *Engine) facts(ctx context.Context, tx store.Tx, k *policy.Key, record *KeyRecord, state *rotation.State) (policy.Facts, error) {
	facts := policy.Facts{
		Key: k.Metadata.Name, Scheduled: record.Scheduled, LastStarted: record.LastStart, LastFinished: record.LastEnd,
	}
	if current, ok := state.Version(state.Labelled(key.Current)); ok {
		facts.Created = current.MintedAt
	}
	for i := range state.Rotations {
		facts.Open = facts.Open || !state.Rotations[i].Phase.Retiring()
	}
	since, err := cadenceSince(ctx, tx, k.PolicyName())
	if err != nil {
		return facts, err
	}
	if since.After(facts.Scheduled) {
		facts.Scheduled = since
	}
	freezes, err := tx.Index.List(ctx, kindFreeze, "", "", 1000)
	if err != nil {
		return facts, err
	}
	for _, doc := range freezes {
		compiled, err := e.freezes.get(doc.Name, doc.Body, func() (*policy.CompiledFreeze, error) {
			resource, err := parseStored(doc.Body)
			if err != nil || resource.Freeze == nil {
				return nil, fmt.Errorf("stored freeze %s is damaged: %w", doc.Name, err)
			}
			return policy.CompileFreeze(*resource.Freeze)
		})
		if err != nil {
			return facts, err
		}
		interval, applies, err := compiled.Applies(k.Info())
		if err != nil || applies {
			facts.Freezes = append(facts.Freezes, interval)
		}
	}
	return facts, nil
}

// planOf turns a policy into the plan of one rotation, and its judges.
func planOf(compiled *policy.Compiled, k *policy.Key, emergency bool) (rotation.Plan, []JudgeRule, error) {
	spec := compiled.Spec()
	plan := rotation.Plan{
		JudgeEvery:         judgeEvery,
		HoldOnFailure:      spec.OnFailure == policy.FailureHold,
		DrainMin:           spec.Drain.Min.Std(),
		DrainQuiet:         spec.Drain.Quiet.Std(),
		DrainMax:           spec.Drain.Max.Std(),
		RevokeAtMax:        spec.Drain.OnMax == policy.MaxRevoke,
		MeasureEvery:       max(spec.Drain.Every.Std(), minMeasureEvery),
		Quarantine:         spec.Quarantine.Std(),
		EndQuarantineEarly: spec.EndQuarantineEarly,
		DestroyAfter:       spec.Retain.DestroyAfter.Std(),
	}
	if emergency {
		plan.Stages = []rotation.Stage{{Name: "all", AckTimeout: spec.Emergency.Grace.Std(), SkipEmpty: true}}
		plan.Grace = spec.Emergency.Grace.Std()
		plan.Strategy = rotation.ReplaceFirst
		if spec.Emergency.Strategy == policy.ContainFirst {
			plan.Strategy = rotation.ContainFirst
		}
		return plan, nil, nil
	}
	for _, stage := range compiled.Stages() {
		plan.Stages = append(plan.Stages, rotation.Stage{
			Name: stage.Name, Bake: stage.Bake.Std(), AckTimeout: stage.AckTimeout.Std(), SkipEmpty: stage.OnEmpty == policy.EmptySkip,
		})
	}
	var err error
	if plan.Approvals, err = compiled.Approvals(k.Info()); err != nil {
		return plan, nil, err
	}
	var judges []JudgeRule
	for _, judge := range spec.Judge {
		judges = append(judges, JudgeRule{Name: judge.Name, Signal: judge.Signal.String(), Max: judge.Max, MinSamples: judge.MinSamples})
	}
	plan.Judged = len(judges) > 0
	return plan, judges, nil
}

const (
	// judgeEvery is how long to wait for reports before judging again.
	judgeEvery = time.Second
	// minMeasureEvery bounds how often a system is asked who uses a version.
	minMeasureEvery = 100 * time.Millisecond
)

// rawResource is the stored form of a resource.
func rawResource(resource policy.Resource) (json.RawMessage, error) {
	body, err := resource.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return body, nil
}
