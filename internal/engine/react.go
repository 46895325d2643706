package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindAlarm is the kind of the documents of what a human is told of, by "RULE KEY".
const kindAlarm = "anomaly-alarm"

// alarmKept is how long a human is told of an anomaly.
const alarmKept = time.Hour

// MaxAlarms bounds the alarms that are told of at a time.
const MaxAlarms = 100

// Alarm tells a human what a rule found.
type Alarm struct {
	Rule    string    `json:"rule"`
	Key     key.Name  `json:"key"`
	Owner   string    `json:"owner,omitempty"`
	Message string    `json:"message"`
	At      time.Time `json:"at"`
}

// Finding is what became of one verdict of a rule: "dry-run", "no-data", "alert",
// "suspend", "emergency", "limit", "misfire" or "failed".
type Finding struct {
	Rule   string
	Key    key.Name
	Result string
}

// AnomalyObserver is an Observer that wants to hear what rules found.
type AnomalyObserver interface {
	// Found tells of one committed finding; it must not block.
	Found(Finding)
}

// react does what a rule says, and enters it into the audit log, in the transaction
// in which the use was judged.
func (c *change) react(k *policy.Key, v *anomaly.Verdict) error {
	name := k.Metadata.Name
	then := v.Spec.Then
	if v.Repeated {
		then = policy.ReactAlert // what follows has followed; the rest is for a human
	}
	result, message := then.String(), v.String()
	if v.Repeated {
		message += "; keyturn rule learned " + string(name) + " shows it"
	}
	var err error
	switch {
	case v.NoData != nil:
		result = "no-data"
	case v.Spec.Mode == policy.ModeDryRun:
		result, message = "dry-run", message+"; enforced, it would be "+then.String()
	case then == policy.ReactSuspend, then == policy.ReactEmergency:
		if result, message, err = c.contain(name, v, message); err != nil {
			return err
		}
	}
	if result != "dry-run" {
		if err := c.alarm(Alarm{Rule: v.Rule, Key: name, Owner: k.Metadata.Owner, Message: message, At: c.now}); err != nil {
			return err
		}
	}
	c.audit(audit.Entry{
		Action: "rule.found", Actor: ruleActor(v.Rule), Target: "Rule " + v.Rule, Key: name, Version: v.Use.Version, To: result, Reason: message,
		Detail: nonEmpty(map[string]string{"source": v.Use.Source, "address": v.Use.Address, "application": v.Use.Application}),
	})
	c.found = append(c.found, Finding{Rule: v.Rule, Key: name, Result: result})
	return c.countFinding(v, LastFinding{At: c.now, Key: name, Version: v.Use.Version, Result: result, Message: message})
}

func ruleActor(rule string) audit.Actor { return audit.Actor{ID: "rule/" + rule, Kind: "rule"} }

// contain declares the version that was used compromised. A version that no
// verifier accepts is contained already: whoever tries it brings about nothing but
// an alert.
func (c *change) contain(name key.Name, v *anomaly.Verdict, message string) (result, told string, err error) {
	state, _, err := c.state(name)
	if err != nil {
		return "", "", err
	}
	version, ok := state.Version(v.Use.Version)
	switch {
	case v.Use.Refused || !ok || !slices.Contains(state.Live(), v.Use.Version):
		return "alert", message + "; the version is refused, nothing more is done", nil
	case version.State == key.Compromised && (version.Contained || v.Spec.Then == policy.ReactEmergency):
		return "alert", message + "; an emergency is under way already", nil
	}
	bounds, err := c.limits(name, v)
	if err != nil {
		return "", "", err
	}
	human := ", a human must decide: keyturn rotate " + string(name) + " --emergency"
	if by, ok := bounds.broughtIn(version.Rotation, c.now); ok {
		return "misfire", message + "; an emergency of rule " + by + " brought this version in, replacing it again would not help" + human, nil
	}
	if why := bounds.reached(c.now); why != "" {
		return "limit", message + "; " + why + human, nil
	}
	request := RotateRequest{Key: name, Reason: message, Emergency: true, Compromised: []key.Version{v.Use.Version}}
	switch {
	case v.Spec.Then == policy.ReactSuspend, v.Spec.Strategy == policy.ContainFirst:
		request.Strategy = rotation.ContainFirst
	case v.Spec.Strategy == policy.ReplaceFirst:
		request.Strategy = rotation.ReplaceFirst
	}
	id, err := c.e.newID()
	if err != nil {
		return "", "", err
	}
	before := c.actor
	c.actor = ruleActor(v.Rule)
	err = c.declare(request, id)
	c.actor = before
	for _, refusal := range []error{ErrState, ErrInvalid, rotation.ErrBusy, rotation.ErrUnknown, rotation.ErrPhase, rotation.ErrRestored, rotation.ErrLockOut, rotation.ErrInvalid} {
		if errors.Is(err, refusal) {
			return "failed", message + "; the emergency is not possible, a human must decide: " + err.Error(), nil
		}
	}
	if err != nil {
		return "", "", err
	}
	return v.Spec.Then.String(), message, c.acted(bounds, act{Rule: v.Rule, Rotation: id, At: c.now})
}

// alarm tells a human, or again of the same rule and key.
func (c *change) alarm(a Alarm) error {
	id := a.Rule + " " + string(a.Key)
	doc, err := c.tx.Docs.Get(c.ctx, kindAlarm, id)
	if errors.Is(err, store.ErrNotFound) {
		doc, err = store.Doc{Kind: kindAlarm, Name: id}, nil
	}
	if err != nil {
		return err
	}
	if doc.Body, err = encode(a); err != nil {
		return err
	}
	doc.Due = c.now.Add(alarmKept)
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

// Alarms returns what rules found within the last hour, at most MaxAlarms.
func (e *Engine) Alarms(ctx context.Context) (list []Alarm, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindAlarm, "", "", MaxAlarms)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			var a Alarm
			if err := decodeInto(doc.Body, &a); err != nil {
				return err
			}
			if e.now().Sub(a.At) < alarmKept {
				list = append(list, a)
			}
		}
		return nil
	})
	return list, err
}
