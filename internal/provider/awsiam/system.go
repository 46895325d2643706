package awsiam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// The attributes and the secret of a version.
const (
	attributeUser = "user"
	attributeID   = "accessKeyId"
	secretKey     = "secretAccessKey"
)

// maxTag is how many characters AWS takes as a tag's value.
const maxTag = 256

// settle is how soon to ask again whether a change has reached every region.
const settle = 2 * time.Second

// Mint implements provider.Issuer. AWS draws the secret, and a new access key is
// active: it is made inactive, and described, before anybody hears of it.
func (s *system) Mint(ctx context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	if len(request.Live) >= capacity {
		return provider.Material{}, s.noRoom(nil, len(request.Live))
	}
	description := mark(call.Key, request.Number)
	if len(description) > maxTag {
		return provider.Material{}, provider.Permanent(fmt.Errorf("awsiam: %q is longer than the %d characters of a tag", description, maxTag), "give the key a shorter name")
	}
	admin, err := s.admin(ctx)
	if err != nil {
		return provider.Material{}, err
	}
	have, err := s.list(ctx, admin)
	if err != nil {
		return provider.Material{}, err
	}
	unknown := have.unknown(request.Live)
	left := len(have.keys)
	for _, k := range slices.Clone(unknown) {
		orphan, err := s.isOrphan(ctx, admin, have, k, call, request.Number)
		if err != nil {
			return provider.Material{}, err
		}
		if !orphan {
			continue
		}
		if err := s.remove(ctx, admin, k.id); err != nil {
			return provider.Material{}, err
		}
		unknown = slices.DeleteFunc(unknown, func(other accessKey) bool { return other.id == k.id })
		left--
	}
	if left >= capacity {
		return provider.Material{}, s.noRoom(unknown, len(request.Live))
	}
	answer, err := admin.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: &s.settings.user})
	switch {
	case code(err) == "LimitExceeded":
		return provider.Material{}, fmt.Errorf("%w: %w", provider.ErrNoRoom, s.explain("create an access key", err))
	case err != nil:
		return provider.Material{}, s.explain("create an access key", err)
	case answer.AccessKey == nil || aws.ToString(answer.AccessKey.AccessKeyId) == "" || aws.ToString(answer.AccessKey.SecretAccessKey) == "":
		return provider.Material{}, s.explain("create an access key", errors.New("the answer has none"))
	}
	id := *answer.AccessKey.AccessKeyId
	if err := s.set(ctx, admin, id, types.StatusTypeInactive); err != nil {
		return provider.Material{}, err
	}
	_, err = admin.TagUser(ctx, &iam.TagUserInput{UserName: &s.settings.user, Tags: []types.Tag{{Key: &id, Value: &description}}})
	if err != nil {
		return provider.Material{}, s.explain("describe an access key by a tag", err)
	}
	return provider.Material{
		Attributes: map[string]string{attributeUser: s.settings.user, attributeID: id},
		Secrets:    map[string]secret.Value{secretKey: secret.NewString(*answer.AccessKey.SecretAccessKey)},
	}, nil
}

// set makes an access key active or inactive.
func (s *system) set(ctx context.Context, admin *iam.Client, id string, status types.StatusType) error {
	_, err := admin.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: &s.settings.user, AccessKeyId: &id, Status: status})
	if err != nil {
		return s.explain(fmt.Sprintf("make access key %s %s", id, strings.ToLower(string(status))), err)
	}
	return nil
}

// remove deletes an access key and its description.
func (s *system) remove(ctx context.Context, admin *iam.Client, id string) error {
	_, err := admin.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: &s.settings.user, AccessKeyId: &id})
	if err != nil && !isGone(err) {
		return s.explain("delete access key "+id, err)
	}
	_, err = admin.UntagUser(ctx, &iam.UntagUserInput{UserName: &s.settings.user, TagKeys: []string{id}})
	if err != nil && !isGone(err) {
		return s.explain("remove the tag of access key "+id, err)
	}
	return nil
}

func isGone(err error) bool {
	c := code(err)
	return c == "NoSuchEntity" || c == "NoSuchEntityException"
}

// at checks the endpoint and the version, and returns its access key's ID.
func (s *system) at(where string, v provider.Version) (string, error) {
	if where != endpoint {
		return "", provider.Permanent(fmt.Errorf("awsiam: there is no endpoint %q", where), "apply the key again")
	}
	id := v.Material.Attributes[attributeID]
	if id == "" {
		return "", provider.Permanent(fmt.Errorf("awsiam: %v has no field %s", v.Number, attributeID), "the stored version is damaged; restore the database, or rotate")
	}
	return id, nil
}

// Accept implements provider.Verifier. It is at its end when every region knows.
func (s *system) Accept(ctx context.Context, _ provider.Call, where string, v provider.Version) error {
	id, err := s.at(where, v)
	if err != nil {
		return err
	}
	admin, err := s.admin(ctx)
	if err != nil {
		return err
	}
	if err := s.set(ctx, admin, id, types.StatusTypeActive); err != nil {
		return err
	}
	return s.arrived(ctx, v, provider.Accepted)
}

// Refuse implements provider.Verifier: the access key becomes inactive. Temporary
// credentials that it was exchanged for live on until they expire.
func (s *system) Refuse(ctx context.Context, _ provider.Call, where string, v provider.Version) error {
	id, err := s.at(where, v)
	if err != nil {
		return err
	}
	admin, err := s.admin(ctx)
	if err != nil {
		return err
	}
	err = s.set(ctx, admin, id, types.StatusTypeInactive)
	if isGone(err) {
		// Either the access key is gone, which is refused for good, or the whole user.
		if _, err := s.list(ctx, admin); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return s.arrived(ctx, v, provider.Refused)
}

// arrived answers provider.Later until every region says want. Without the secret
// nothing can be tried: the engine's own probe has the last word in any case.
func (s *system) arrived(ctx context.Context, v provider.Version, want provider.Verdict) error {
	if v.Material.Secrets[secretKey].Len() == 0 {
		return nil
	}
	for _, region := range s.settings.regions {
		verdict, err := s.try(ctx, region, v)
		if err != nil {
			return provider.At(endpoint, err)
		}
		if verdict != want {
			return provider.Later(settle, fmt.Errorf("awsiam: the change of %v is made, and %s does not know yet: it is still %v there", v.Number, region, verdict))
		}
	}
	return nil
}

// Probe implements provider.Verifier: every region is asked by the access key itself.
func (s *system) Probe(ctx context.Context, _ provider.Call, where string, v provider.Version) (provider.Verdict, error) {
	if _, err := s.at(where, v); err != nil {
		return 0, err
	}
	var first provider.Verdict
	for i, region := range s.settings.regions {
		verdict, err := s.try(ctx, region, v)
		switch {
		case err != nil:
			return 0, provider.At(endpoint, err)
		case i == 0:
			first = verdict
		case verdict != first:
			return 0, provider.Later(settle, fmt.Errorf("awsiam: %v is %v in %s and %v in %s", v.Number, first, s.settings.regions[0], verdict, region))
		}
	}
	return first, nil
}

// tick is how exact the times are that AWS tells.
const tick = time.Second

// Usage implements provider.Meter. AWS tells the last use only, and up to usageDelay
// late. So what was used within twice that is in use: of somebody who uses it all the
// time AWS may know a use of usageDelay ago only. Until says what AWS must have heard
// of. Time is the earlier of AWS's clock and this machine's: one that is ahead makes
// no use old.
func (s *system) Usage(ctx context.Context, call provider.Call, v provider.Version) (provider.Usage, error) {
	none := func(err error) (provider.Usage, error) {
		return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
	}
	id, err := s.at(endpoint, v)
	if err != nil {
		return none(err)
	}
	admin, err := s.admin(ctx)
	if err != nil {
		return none(provider.At(endpoint, err))
	}
	answer, err := admin.GetAccessKeyLastUsed(ctx, &iam.GetAccessKeyLastUsedInput{AccessKeyId: &id})
	if err != nil {
		return none(s.explain("ask for the last use of "+id, err))
	}
	last := answer.AccessKeyLastUsed
	if last == nil {
		return none(s.explain("ask for the last use of "+id, errors.New("the answer has none")))
	}
	theirs, timed := middleware.GetServerTime(answer.ResultMetadata)
	if !timed {
		return none(s.explain("ask for the last use of "+id, errors.New("the answer has no date")))
	}
	now, delay := s.now(), s.settings.usageDelay
	if theirs.Before(now) {
		now = theirs
	}
	if last.LastUsedDate != nil && now.Sub(*last.LastUsedDate) < 2*delay+tick {
		return provider.Usage{Sessions: 1, Holders: []provider.Holder{{
			Endpoint: endpoint, Sessions: 1,
			Application: fmt.Sprintf("service %s, last at %s", aws.ToString(last.ServiceName), last.LastUsedDate.UTC().Format(time.RFC3339)),
			Address:     "region " + aws.ToString(last.Region),
		}}}, nil
	}
	if since := now.Sub(call.Rotation.Time()); !call.Rotation.IsZero() && since < delay {
		return none(fmt.Errorf("awsiam: AWS may tell of a use %v late, and the rotation began %v ago", delay, since.Round(time.Second)))
	}
	return provider.Usage{Until: now.Add(-delay)}, nil
}

// Held implements provider.Lister, by the tags.
func (s *system) Held(ctx context.Context, call provider.Call) ([]provider.Held, error) {
	admin, err := s.admin(ctx)
	if err != nil {
		return nil, provider.At(endpoint, err)
	}
	have, err := s.list(ctx, admin)
	if err != nil {
		return nil, err
	}
	var held []provider.Held
	for _, k := range have.keys {
		if v, ours := parseMark(k.mark, call.Key); ours {
			held = append(held, provider.Held{
				Endpoint: endpoint, Version: v, Accepted: k.active,
				Attributes: map[string]string{attributeUser: s.settings.user, attributeID: k.id},
			})
		}
	}
	return held, nil
}

// Destroy implements provider.Destroyer.
func (s *system) Destroy(ctx context.Context, _ provider.Call, v provider.Version, live []provider.Version) error {
	id, err := s.at(endpoint, v)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(live, func(other provider.Version) bool { return other.Material.Attributes[attributeID] == id }) {
		return provider.Permanent(fmt.Errorf("awsiam: access key %s of %v is that of a live version", id, v.Number), "the stored versions are damaged; see keyturn doctor")
	}
	admin, err := s.admin(ctx)
	if err != nil {
		return err
	}
	have, err := s.list(ctx, admin)
	if err != nil {
		return err
	}
	if k, there := have.find(id); there && k.active {
		return provider.Hint(fmt.Errorf("awsiam: access key %s of %v is active again: it is not deleted", id, v.Number), "somebody activated it outside Keyturn; find out why, and make it inactive")
	}
	return s.remove(ctx, admin, id)
}
