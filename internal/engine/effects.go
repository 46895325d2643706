package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// carryOut does what an effect asks for. It writes nothing to the store.
func (e *Engine) carryOut(ctx context.Context, job store.Job, effect rotation.Effect) done {
	call := provider.Call{Key: job.Key, Rotation: effect.Rotation, Fence: job.Fence}
	switch effect.Kind {
	case rotation.Preflight:
		return e.preflight(ctx, call, effect)
	case rotation.Mint:
		return e.mint(ctx, call, effect)
	case rotation.Accept, rotation.Refuse:
		return e.instruct(ctx, call, effect)
	case rotation.ProbeAccept, rotation.ProbeRefuse:
		return e.probe(ctx, call, job, effect)
	case rotation.Judge:
		return e.judge(ctx, call, effect)
	case rotation.Measure:
		return e.measure(ctx, call, effect)
	case rotation.Destroy:
		return e.destroy(ctx, call, effect)
	case rotation.Reconcile:
		return e.reconcile(ctx, call, effect)
	case rotation.Tell:
	}
	return failed(provider.Permanent(fmt.Errorf("effect %v is not one that a worker carries out", effect.Kind), "report this as a bug"))
}

func (e *Engine) preflight(ctx context.Context, call provider.Call, effect rotation.Effect) done {
	system, err := e.system(ctx, call.Key)
	if err != nil {
		return failed(err)
	}
	checker, ok := system.(provider.Preflighter)
	if !ok {
		return done{outcome: rotation.OK}
	}
	live, err := e.live(ctx, call.Key, true)
	if err != nil {
		return failed(err)
	}
	findings, err := checker.Preflight(ctx, call, live)
	if err != nil {
		return asked(failed(err))
	}
	return done{outcome: rotation.OK, asked: true, write: func(c *change) error {
		return c.editRotation(effect.Rotation, func(r *RotationRecord) { r.Findings = findings })
	}}
}

func (e *Engine) mint(ctx context.Context, call provider.Call, effect rotation.Effect) done {
	system, err := e.system(ctx, call.Key)
	if err != nil {
		return failed(err)
	}
	live, err := e.live(ctx, call.Key, false)
	if err != nil {
		return failed(err)
	}
	material, err := system.Mint(ctx, call, provider.MintRequest{Number: effect.Version, Live: live})
	if err != nil {
		return asked(failed(err))
	}
	sealed, err := e.seal(ctx, call.Key, effect.Version, material)
	if err != nil {
		return failed(err)
	}
	prints, err := e.fingerprintsOf(ctx, call.Key, effect.Version, material)
	if err != nil {
		return failed(err)
	}
	return done{outcome: rotation.OK, asked: true, write: func(c *change) error {
		body, err := encode(VersionRecord{Number: effect.Version, Rotation: effect.Rotation, Created: c.now, Attributes: material.Attributes})
		if err != nil {
			return err
		}
		if err := c.tx.Materials.Put(c.ctx, call.Key, effect.Version, sealed); err != nil {
			return err
		}
		if err := putFingerprints(c.ctx, c.tx, call.Key, effect.Version, prints); err != nil {
			return err
		}
		_, err = c.tx.Docs.Put(c.ctx, store.Doc{Kind: kindVersion, Name: versionName(call.Key, effect.Version), Body: body})
		return err
	}}
}

// instruct makes a verifier accept or refuse a version.
func (e *Engine) instruct(ctx context.Context, call provider.Call, effect rotation.Effect) done {
	system, version, err := e.open(ctx, call.Key, effect.Version)
	if err != nil {
		return failed(err)
	}
	if effect.Kind == rotation.Accept {
		err = system.Accept(ctx, call, effect.Verifier, version)
	} else {
		err = system.Refuse(ctx, call, effect.Verifier, version)
	}
	if err != nil {
		return asked(failed(err))
	}
	return done{outcome: rotation.OK, asked: true}
}

func (e *Engine) probe(ctx context.Context, call provider.Call, job store.Job, effect rotation.Effect) done {
	system, version, err := e.open(ctx, call.Key, effect.Version)
	if err != nil {
		return failed(err)
	}
	verdict, err := tryVersion(ctx, system, call, effect.Verifier, version)
	if err != nil {
		return asked(failed(err))
	}
	want := provider.Accepted
	if effect.Kind == rotation.ProbeRefuse {
		want = provider.Refused
	}
	if verdict == want {
		return done{outcome: rotation.OK, asked: true}
	}
	err = fmt.Errorf("%s was tried at %s and was %v", effect.Version, effect.Verifier, verdict)
	if job.Attempt < maxProbeTries {
		return done{err: err, asked: true} // it may take effect a moment later
	}
	return done{outcome: rotation.Contradicted, err: err, asked: true}
}

func (e *Engine) measure(ctx context.Context, call provider.Call, effect rotation.Effect) done {
	system, version, err := e.open(ctx, call.Key, effect.Version)
	if err != nil {
		return done{outcome: rotation.NoData, err: err}
	}
	meter, ok := system.(provider.Meter)
	if !ok {
		return done{outcome: rotation.NoData, err: errors.New("the provider cannot say who uses a version")}
	}
	usage, err := meter.Usage(ctx, call, version)
	if err != nil {
		return done{outcome: rotation.NoData, err: err, asked: true}
	}
	if err := e.complete(ctx, effect, usage); err != nil {
		return done{outcome: rotation.NoData, err: err, asked: true}
	}
	e.observeUsage(call.Key, effect.Version, usage.Holders)
	return done{outcome: rotation.OK, asked: true, uses: usage.Sessions, write: func(c *change) error {
		return c.editRotation(effect.Rotation, func(r *RotationRecord) {
			r.Uses, r.Holders, r.MeasuredAt = usage.Sessions, usage.Holders[:min(len(usage.Holders), provider.MaxHolders)], c.now
		})
	}}
}

// complete fails when no use is reported by a system that cannot know yet of what was
// used since the rotation waits for the version to be unused.
func (e *Engine) complete(ctx context.Context, effect rotation.Effect, usage provider.Usage) error {
	if usage.Sessions > 0 || usage.Until.IsZero() {
		return nil
	}
	var record RotationRecord
	err := e.store.View(ctx, func(tx store.Tx) (err error) {
		record, err = viewRotation(ctx, tx, effect.Rotation)
		return err
	})
	if err != nil {
		return err
	}
	if usage.Until.Before(record.PhaseSince) {
		return fmt.Errorf("the system tells of uses late: it knows of those until %s, and %v should be unused since %s",
			usage.Until.UTC().Format(time.RFC3339), effect.Version, record.PhaseSince.UTC().Format(time.RFC3339))
	}
	return nil
}

func (e *Engine) destroy(ctx context.Context, call provider.Call, effect rotation.Effect) done {
	system, err := e.system(ctx, call.Key)
	if err != nil {
		return failed(err)
	}
	if destroyer, ok := system.(provider.Destroyer); ok {
		_, version, err := e.open(ctx, call.Key, effect.Version)
		if err != nil {
			return failed(err)
		}
		live, err := e.live(ctx, call.Key, false)
		if err != nil {
			return failed(err)
		}
		if err := destroyer.Destroy(ctx, call, version, live); err != nil {
			return asked(failed(err))
		}
	}
	escrow, err := e.escrowed(ctx, call.Key)
	if err != nil {
		return failed(err)
	}
	return done{outcome: rotation.OK, write: func(c *change) error {
		if escrow {
			return c.editVersion(call.Key, effect.Version, func(r *VersionRecord) { r.Destroyed, r.Escrowed = time.Time{}, c.now })
		}
		if err := errors.Join(deleteFingerprints(c.ctx, c.tx, call.Key, effect.Version), deleteLeak(c.ctx, c.tx, call.Key, effect.Version)); err != nil {
			return err
		}
		return c.tx.Materials.Delete(c.ctx, call.Key, effect.Version)
	}}
}

// escrowed reports whether the key's policy keeps material in escrow, sealed,
// instead of destroying it.
func (e *Engine) escrowed(ctx context.Context, name key.Name) (bool, error) {
	spec, err := e.specOf(ctx, name)
	return spec.Retain.Escrow, err
}

// judge compares what the stage's presenters reported with the rotation's rules.
func (e *Engine) judge(ctx context.Context, call provider.Call, effect rotation.Effect) done {
	var state rotation.State
	var record RotationRecord
	err := e.store.View(ctx, func(tx store.Tx) error {
		var err error
		if state, err = e.readState(ctx, tx, call.Key); err != nil {
			return err
		}
		record, err = viewRotation(ctx, tx, effect.Rotation)
		return err
	})
	if err != nil {
		return failed(err)
	}
	r, ok := state.Rotation(effect.Rotation)
	if !ok || r.Phase != rotation.Presenting {
		return done{outcome: rotation.NoData, err: errors.New("the rotation presents no more")}
	}
	samples, err := e.config.Fleet.Samples(ctx, call.Key, r.To, r.BakeSince)
	if err != nil {
		return done{outcome: rotation.NoData, err: fmt.Errorf("the reports could not be read: %w", err)}
	}
	return verdict(&state, r, record.Judges, samples)
}

// verdict judges: every presenter of the stages so far must have reported, and
// each rule must hold. Missing reports are "no data", never a pass.
func verdict(state *rotation.State, r *rotation.Rotation, rules []JudgeRule, samples []Sample) done {
	type sum struct{ samples, attempts, failures int }
	sums := map[string]*sum{}
	for _, s := range samples {
		if _, is := state.Presenter(s.Presenter); !is {
			continue // it has left meanwhile
		}
		if !s.Healthy {
			return done{outcome: rotation.Contradicted, err: fmt.Errorf("%s is not well: %s", s.Presenter, s.Detail)}
		}
		if sums[s.Presenter] == nil {
			sums[s.Presenter] = &sum{}
		}
		sums[s.Presenter].samples += max(s.Reports, 1)
		sums[s.Presenter].attempts += int(s.Attempts)
		sums[s.Presenter].failures += int(s.AuthFailures)
	}
	failures, reports, silent := 0, 0, ""
	for i := range state.Presenters {
		p := &state.Presenters[i]
		if p.Stage > r.Stage && r.Stage < len(r.Plan.Stages)-1 {
			continue
		}
		if s := sums[p.ID]; s != nil && s.attempts > 0 {
			failures += s.failures
			reports += s.samples
		} else if silent == "" {
			silent = p.ID
		}
	}
	for _, rule := range rules {
		if failures > rule.Max {
			return done{outcome: rotation.Contradicted, err: fmt.Errorf("%s: %d authentication failures, %d are allowed", rule.Name, failures, rule.Max)}
		}
	}
	if silent != "" {
		return done{outcome: rotation.NoData, err: fmt.Errorf("%s has not reported yet; give it a health check, or remove the judge", silent)}
	}
	for _, rule := range rules {
		if reports < rule.MinSamples {
			return done{outcome: rotation.NoData, err: fmt.Errorf("%s: %d samples, %d are needed", rule.Name, reports, rule.MinSamples)}
		}
	}
	return done{outcome: rotation.OK}
}

// editRotation changes a rotation's record, if there is one.
func (c *change) editRotation(id key.RotationID, edit func(*RotationRecord)) error {
	record, doc, err := c.rotation(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	edit(&record)
	return c.putRotation(doc, &record)
}
