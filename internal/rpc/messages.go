package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// timestamp is t as a message, nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func applied(result engine.ApplyResult) *keyturnv1.ApplyResponse {
	response := &keyturnv1.ApplyResponse{Problems: problemMessages(result.Problems)}
	for _, change := range result.Changes {
		message := &keyturnv1.Change{Action: change.Op.String(), Kind: change.Kind.String(), Name: change.Name}
		for _, field := range change.Fields {
			message.Fields = append(message.Fields, &keyturnv1.FieldChange{Path: field.Path, Old: field.Old, New: field.New})
		}
		response.Changes = append(response.Changes, message)
	}
	return response
}

func problemMessages(problems []policy.Problem) []*keyturnv1.Problem {
	var list []*keyturnv1.Problem
	for _, p := range problems {
		list = append(list, &keyturnv1.Problem{
			Severity: p.Severity.String(), Code: p.Code, File: p.File, Line: int32(p.Line), Column: int32(p.Col),
			Path: p.Path, Message: p.Message, Hint: p.Hint,
		})
	}
	return list
}

// maxDifferences bounds what a key tells of its differences after a restore.
const maxDifferences = 100

func keyMessage(view *engine.KeyView) *keyturnv1.Key {
	k := &view.Resource
	message := &keyturnv1.Key{
		Name: string(k.Metadata.Name), Owner: k.Metadata.Owner, Labels: k.Metadata.Labels,
		Provider: k.Spec.Provider, Policy: k.PolicyName(), NextRotation: timestamp(view.Next.At),
	}
	if current, ok := view.State.Version(view.State.Labelled(key.Current)); ok {
		message.Current = uint64(current.Number)
		message.CurrentSince = timestamp(current.CurrentSince)
	}
	for i := range view.State.Rotations {
		message.RotationIds = append(message.RotationIds, view.State.Rotations[i].ID.String())
	}
	message.Standing = view.State.WhyStanding()
	for i, difference := range view.State.Differences() {
		if i == maxDifferences {
			break
		}
		message.Differences = append(message.Differences, difference.String())
	}
	for _, record := range view.Versions {
		version := &keyturnv1.KeyVersion{
			Number: uint64(record.Number), State: key.Destroyed.String(), CreatedAt: timestamp(record.Created),
			Attributes: record.Attributes, RotationId: record.Rotation.String(),
		}
		if !record.Escrowed.IsZero() {
			version.State = key.Deactivated.String()
		}
		if live, ok := view.State.Version(record.Number); ok {
			version.State = live.State.String()
			if live.Label != 0 {
				version.Label = live.Label.String()
			}
		}
		message.Versions = append(message.Versions, version)
	}
	return message
}

// maxNames bounds the names in one message.
const maxNames = 20

func rotationMessage(view *engine.RotationView) *keyturnv1.Rotation {
	r := &view.RotationRecord
	message := &keyturnv1.Rotation{
		Id: r.ID.String(), Key: string(r.Key), Kind: r.Kind.String(), Phase: r.Phase.String(), From: uint64(r.From), To: uint64(r.To),
		Reason: r.Reason, Actor: r.Actor, StartedAt: timestamp(r.StartedAt), PhaseSince: timestamp(r.PhaseSince),
		CutOverAt: timestamp(r.CutOverAt), EndedAt: timestamp(r.EndedAt), MeasuredAt: timestamp(r.MeasuredAt),
		Approvals: r.Approvals, Ended: r.Ended(), Behind: view.Behind, BehindTotal: int32(view.BehindTotal),
	}
	if r.Plan.Strategy != 0 {
		message.Strategy = r.Plan.Strategy.String()
	}
	if r.Phase == rotation.Presenting {
		message.Stage = r.Plan.Stages[r.Stage].Name
	}
	if r.Hold.Reason != "" {
		message.Hold = &keyturnv1.Hold{
			Reason: string(r.Hold.Reason), Message: r.Hold.Message, Human: r.Hold.Human, Since: timestamp(r.Hold.Since),
		}
	}
	for _, w := range view.Waiting {
		message.Waiting = append(message.Waiting, &keyturnv1.Waiting{
			Reason: w.Reason, Message: w.Message, Region: w.Region, Names: w.Names[:min(len(w.Names), maxNames)], Total: int32(len(w.Names)),
		})
	}
	for _, h := range r.Holders {
		message.Holders = append(message.Holders, &keyturnv1.Holder{
			Endpoint: h.Endpoint, Address: h.Address, Application: h.Application, Sessions: int64(h.Sessions),
		})
	}
	for i := range view.Regions {
		p := &view.Regions[i]
		message.Regions = append(message.Regions, &keyturnv1.RegionProgress{
			Region: p.Region, Verifiers: int32(p.Verifiers), Accepting: int32(p.Accepting), Refusing: int32(p.Refusing),
			Presenters: int32(p.Presenters), Using: int32(p.Using), LateVerifiers: int32(len(p.LateVerifiers)), LatePresenters: int32(len(p.LatePresenters)),
			LateSince: timestamp(p.Since), Trouble: p.Trouble, OldUses: int64(p.Uses),
		})
	}
	for _, stage := range view.Stages {
		message.Stages = append(message.Stages, &keyturnv1.StageProgress{
			Name: stage.Name, State: stage.State, Presenters: int32(stage.Presenters), Acknowledged: int32(stage.Acknowledged),
			BakeEndsAt: timestamp(stage.BakeEnds),
		})
	}
	return message
}

func timeline(moves []engine.Moved) []*keyturnv1.TimelineEntry {
	var list []*keyturnv1.TimelineEntry
	for i := range moves {
		list = append(list, &keyturnv1.TimelineEntry{At: timestamp(moves[i].At), Event: string(moves[i].Kind), Message: describe(&moves[i])})
	}
	return list
}

// describe says in words what moved.
func describe(moved *engine.Moved) string {
	t := &moved.Transition
	s := t.Subject
	if s == "" && t.Version != 0 && t.Kind != rotation.RotationPhase {
		s = t.Version.String()
	}
	switch {
	case t.From != "" && t.To != "":
		s += fmt.Sprintf(" %s → %s", t.From, t.To)
	case t.To != "":
		s += " " + t.To
	case t.From != "":
		s += " " + t.From + " is over"
	}
	if t.Subject != "" && t.Version != 0 {
		s += fmt.Sprintf(" (%v)", t.Version)
	}
	if t.Message != "" {
		s += ": " + t.Message
	}
	if s != "" && s[0] == ' ' {
		s = s[1:]
	}
	return s
}

func planMessage(plan policy.Timeline) *keyturnv1.PlanResponse {
	response := &keyturnv1.PlanResponse{Problems: problemMessages(plan.Problems)}
	for _, step := range plan.Steps {
		response.Steps = append(response.Steps, &keyturnv1.PlanStep{
			Phase: step.Phase, Stage: step.Stage, Earliest: timestamp(step.Begin), Lasts: durationpb.New(step.End.Sub(step.Begin)),
			Message: step.What, Names: step.Who[:min(len(step.Who), 100)], Total: int32(len(step.Who)),
		})
	}
	return response
}

// partyStatus describes a party and those of its keys that are visible; nil if
// none is.
func (c Control) partyStatus(ctx context.Context, party *engine.PartyRecord, visible func(key.Name) bool, states map[key.Name]*rotation.State) (*keyturnv1.PartyStatus, error) {
	kind := keyturnv1.PartyKind_PARTY_KIND_AGENT
	if party.Kind == hub.KindClient {
		kind = keyturnv1.PartyKind_PARTY_KIND_CLIENT
	}
	connected, seen := c.config.Hub.Presence(party.ID)
	status := &keyturnv1.PartyStatus{
		Party:     &keyturnv1.Party{Id: party.ID, Kind: kind, Region: party.Region, Labels: party.Labels},
		Connected: connected, LastSeen: timestamp(seen), Gateway: party.Gateway,
	}
	for _, name := range party.Keys {
		if !visible(name) {
			continue
		}
		if states[name] == nil {
			view, err := c.config.Engine.Key(ctx, name)
			if errors.Is(err, engine.ErrNotFound) {
				continue // deleted meanwhile
			}
			if err != nil {
				return nil, err
			}
			states[name] = &view.State
		}
		if p, ok := states[name].Presenter(party.ID); ok {
			status.Keys = append(status.Keys, partyKey(name, p))
		}
	}
	if len(status.GetKeys()) == 0 {
		return nil, nil //nolint:nilnil // no status is the answer
	}
	return status, nil
}

func partyKey(name key.Name, p *rotation.Presenter) *keyturnv1.PartyKey {
	message := &keyturnv1.PartyKey{Key: string(name), Told: uint64(p.Told)}
	if p.Acked && len(p.Maybe) == 1 {
		message.Using = uint64(p.Maybe[0])
	}
	if p.Failed {
		message.Trouble = p.Detail
	}
	return message
}
