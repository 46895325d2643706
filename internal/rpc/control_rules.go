package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
)

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
