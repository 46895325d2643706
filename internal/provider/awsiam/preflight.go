package awsiam

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/keyturn/keyturn/provider"
)

// nobody is the ID of no access key: it has lower case letters, as none has. Calls
// for it change nothing, and tell whether the administrator may make them.
const nobody = "AKIAkeyturnpreflight"

// Preflight implements provider.Preflighter. The rights to create an access key and
// to tag the user cannot be tried without doing so; a rotation that lacks them
// fails at its first step.
func (s *system) Preflight(ctx context.Context, call provider.Call, live []provider.Version) ([]provider.Finding, error) {
	admin, err := s.admin(ctx)
	if err != nil {
		return nil, provider.At(endpoint, err)
	}
	have, err := s.list(ctx, admin)
	if err != nil {
		return nil, err
	}
	id, user := nobody, s.settings.user
	for _, dry := range []struct {
		what string
		do   func() error
	}{
		{"activate and deactivate access keys", func() error {
			_, err := admin.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: &user, AccessKeyId: &id, Status: types.StatusTypeInactive})
			return err
		}},
		{"delete access keys", func() error {
			_, err := admin.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: &user, AccessKeyId: &id})
			return err
		}},
		{"remove tags", func() error {
			_, err := admin.UntagUser(ctx, &iam.UntagUserInput{UserName: &user, TagKeys: []string{id}})
			return err
		}},
	} {
		if err := dry.do(); err != nil && !isGone(err) {
			return nil, s.explain(dry.what, err)
		}
	}
	var findings []provider.Finding
	var inTheWay []accessKey
	for _, k := range have.unknown(live) {
		if _, ours := parseMark(k.mark, call.Key); ours {
			continue // a version that is about to be destroyed
		}
		inTheWay = append(inTheWay, k)
		findings = append(findings, provider.Finding{
			Code: "unknown-access-key", Message: fmt.Sprintf("user %s has access key %s, which is no version", user, k),
			Hint: "find out who uses it; a rotation needs both places",
		})
	}
	for _, v := range live {
		id := v.Material.Attributes[attributeID]
		if _, there := have.find(id); !there {
			findings = append(findings, provider.Finding{
				Code: "access-key-gone", Message: fmt.Sprintf("access key %s of %v is not there any more", id, v.Number),
				Hint: "somebody deleted it outside Keyturn; whoever uses it is turned away",
			})
			continue
		}
		_, err := admin.GetAccessKeyLastUsed(ctx, &iam.GetAccessKeyLastUsedInput{AccessKeyId: &id})
		if code(err) == "AccessDenied" {
			findings = append(findings, provider.Finding{
				Code: "use-unknown", Message: "the administrator may not ask for the last use of access keys: there will be no data",
				Hint: "allow iam:GetAccessKeyLastUsed",
			})
		} else if err != nil {
			return nil, s.explain("ask for the last use of "+id, err)
		}
	}
	if len(inTheWay) > 0 && len(have.keys) >= capacity {
		orphan, err := s.isOrphan(ctx, admin, have, inTheWay[0], call, 0)
		switch {
		case err != nil:
			return nil, err
		case !orphan || len(inTheWay) > 1:
			return nil, provider.At(endpoint, s.noRoom(inTheWay, len(live)))
		}
	}
	return findings, nil
}
