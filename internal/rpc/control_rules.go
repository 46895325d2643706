package rpc

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
)

// GetLearned implements ControlService.
func (c Control) GetLearned(ctx context.Context, request *keyturnv1.GetLearnedRequest) (*keyturnv1.GetLearnedResponse, error) {
	name, _, err := c.allowKey(ctx, authz.Read, request.GetName())
	if err != nil {
		return nil, err
	}
	learned, err := c.config.Engine.Learned(ctx, name)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.GetLearnedResponse{
		Since: timestamp(learned.Since), Sources: map[string]*timestamppb.Timestamp{}, MoreNetworks: uint32(learned.More), Roaming: learned.Roaming,
	}
	for source, at := range learned.Sources {
		response.Sources[source] = timestamp(at)
	}
	add := func(kind anomaly.Kind, list []anomaly.Seen) {
		for _, s := range list {
			response.Uses = append(response.Uses, &keyturnv1.LearnedUse{
				Kind: string(kind), Source: s.Source, Name: s.Name, First: timestamp(s.First), Last: timestamp(s.Last),
			})
		}
	}
	add(anomaly.KindNetwork, learned.Networks)
	add(anomaly.KindApplication, learned.Applications)
	for _, r := range learned.Rules {
		rule := &keyturnv1.LearnedRule{Name: r.Name, Roaming: r.Roaming, LearnsUntil: timestamp(r.LearnsUntil)}
		for _, d := range r.Doubts {
			rule.Doubts = append(rule.Doubts, &keyturnv1.Doubt{Kind: string(d.Kind), Source: d.Source, Name: d.Name, First: timestamp(d.First), Until: timestamp(d.Until)})
		}
		response.Rules = append(response.Rules, rule)
	}
	return response, nil
}

// maxLearned bounds the names that one call accepts or forgets.
const maxLearned = 200

// ChangeLearned implements ControlService.
func (c Control) ChangeLearned(ctx context.Context, request *keyturnv1.ChangeLearnedRequest) (*keyturnv1.ChangeLearnedResponse, error) {
	name, principal, err := c.allowKey(ctx, authz.Operate, request.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkText("reason", request.GetReason(), maxReason); err != nil {
		return nil, err
	}
	which := anomaly.Selection{Networks: request.GetNetworks(), Applications: request.GetApplications(), All: request.GetAll(), Roaming: request.GetRoaming()}
	n := len(which.Networks) + len(which.Applications)
	switch {
	case n > maxLearned:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d names, at most %d are allowed; name fewer, or all", n, maxLearned))
	case which.All == (n > 0) && !(request.GetForget() && which.Roaming && n == 0):
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("name networks or applications, or all, and not both"))
	case which.Roaming && !request.GetForget():
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("roaming: it can be forgotten only; accept the networks"))
	}
	names, err := c.config.Engine.Relearn(ctx, actorOf(principal), engine.RelearnRequest{
		Key: name, Forget: request.GetForget(), Which: which, Reason: request.GetReason(),
	})
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.ChangeLearnedResponse{Names: names}, nil
}

// ListRules implements ControlService.
func (c Control) ListRules(ctx context.Context, _ *keyturnv1.ListRulesRequest) (*keyturnv1.ListRulesResponse, error) {
	principal, err := c.allow(ctx, authz.Read, "")
	if err != nil {
		return nil, err
	}
	views, err := c.config.Engine.Rules(ctx)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ListRulesResponse{}
	for i := range views {
		v := &views[i]
		rule := &keyturnv1.Rule{
			Name: v.Name, Match: v.Spec.Match, When: v.Spec.When, Then: v.Spec.Then.String(), Mode: v.Spec.Mode.String(),
			Window: durationpb.New(v.Spec.Window.Std()), AtLeast: int64(v.Spec.AtLeast), Findings: v.Results, FindingsSince: timestamp(v.Since),
		}
		if last := v.Last; last != nil {
			rule.LastAt, rule.LastResult = timestamp(last.At), last.Result
			if authz.Covers(principal.Keys, last.Key) {
				rule.LastKey, rule.LastVersion, rule.LastMessage = string(last.Key), uint64(last.Version), last.Message
			}
		}
		response.Rules = append(response.Rules, rule)
	}
	return response, nil
}
