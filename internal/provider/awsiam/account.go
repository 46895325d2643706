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

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// capacity is how many access keys AWS lets a user have. AWS has no way to raise it.
const capacity = 2

// maxPages bounds a listing: a user has 2 access keys and 50 tags.
const maxPages = 10

// accessKey is one access key as AWS lists it.
type accessKey struct {
	id      string
	active  bool
	created time.Time
	// mark is the tag that bears its ID: what the console shows as its description.
	mark string
}

func (a accessKey) String() string {
	status := "inactive"
	if a.active {
		status = "active"
	}
	text := fmt.Sprintf("%s (%s, created %s", a.id, status, a.created.UTC().Format(time.DateOnly))
	if a.mark != "" {
		text += ", described as " + fmt.Sprintf("%.80q", a.mark)
	}
	return text + ")"
}

// listing is what AWS says of the user at one moment.
type listing struct {
	keys []accessKey
	// ahead is how far AWS's clock is ahead of this machine's; timed: it is known.
	ahead time.Duration
	timed bool
}

// mark is the tag's value for a version: its characters are allowed in tags.
func mark(name key.Name, v key.Version) string {
	return fmt.Sprintf("keyturn %s %s", name, v)
}

// parseMark returns the version that a tag names, if it is one of this key's.
func parseMark(text string, name key.Name) (key.Version, bool) {
	rest, ours := strings.CutPrefix(text, "keyturn "+string(name)+" v")
	var v key.Version
	if _, err := fmt.Sscanf(rest, "%d", &v); !ours || err != nil || mark(name, v) != text {
		return 0, false
	}
	return v, true
}

// list asks for the user's access keys and what they are described as.
func (s *system) list(ctx context.Context, admin *iam.Client) (listing, error) {
	var all listing
	keys := iam.NewListAccessKeysPaginator(admin, &iam.ListAccessKeysInput{UserName: &s.settings.user})
	for page := 0; keys.HasMorePages(); page++ {
		answer, err := keys.NextPage(ctx)
		if err != nil {
			return listing{}, s.explain("list the access keys", err)
		}
		if page >= maxPages {
			return listing{}, s.explain("list the access keys", errors.New("the list does not end"))
		}
		for _, k := range answer.AccessKeyMetadata {
			all.keys = append(all.keys, accessKey{id: aws.ToString(k.AccessKeyId), active: k.Status != types.StatusTypeInactive, created: aws.ToTime(k.CreateDate)})
		}
		all.ahead, all.timed = middleware.GetAttemptSkew(answer.ResultMetadata)
	}
	tags := iam.NewListUserTagsPaginator(admin, &iam.ListUserTagsInput{UserName: &s.settings.user})
	for page := 0; tags.HasMorePages(); page++ {
		answer, err := tags.NextPage(ctx)
		if err != nil {
			return listing{}, s.explain("list the tags", err)
		}
		if page >= maxPages {
			return listing{}, s.explain("list the tags", errors.New("the list does not end"))
		}
		for _, tag := range answer.Tags {
			if i := slices.IndexFunc(all.keys, func(k accessKey) bool { return k.id == aws.ToString(tag.Key) }); i >= 0 {
				all.keys[i].mark = aws.ToString(tag.Value)
			}
		}
	}
	return all, nil
}

// find returns the access key of a version, if AWS has it.
func (l listing) find(id string) (accessKey, bool) {
	i := slices.IndexFunc(l.keys, func(k accessKey) bool { return k.id == id })
	if i < 0 {
		return accessKey{}, false
	}
	return l.keys[i], true
}

// unknown returns the access keys that are no version in live.
func (l listing) unknown(live []provider.Version) []accessKey {
	return slices.DeleteFunc(slices.Clone(l.keys), func(k accessKey) bool {
		return slices.ContainsFunc(live, func(v provider.Version) bool { return v.Material.Attributes[attributeID] == k.id })
	})
}

// isOrphan reports whether an unknown access key can be nothing but what a lost
// answer to this same Mint left behind: created since the rotation began, by AWS's
// own clock, described as this version or not at all, and never used.
func (s *system) isOrphan(ctx context.Context, admin *iam.Client, l listing, k accessKey, call provider.Call, v key.Version) (bool, error) {
	began := call.Rotation.Time().Add(l.ahead).Truncate(time.Second) // AWS tells whole seconds
	if call.Rotation.IsZero() || !l.timed || k.created.Before(began) || k.mark != "" && k.mark != mark(call.Key, v) {
		return false, nil
	}
	used, err := admin.GetAccessKeyLastUsed(ctx, &iam.GetAccessKeyLastUsedInput{AccessKeyId: &k.id})
	if err != nil {
		return false, s.explain("ask for the last use of "+k.id, err)
	}
	return used.AccessKeyLastUsed != nil && used.AccessKeyLastUsed.LastUsedDate == nil, nil
}

// noRoom names what is in the way.
func (s *system) noRoom(unknown []accessKey, live int) error {
	if len(unknown) == 0 {
		return fmt.Errorf("%w: both access keys of user %s are live versions", provider.ErrNoRoom, s.settings.user)
	}
	names := make([]string, 0, len(unknown))
	for _, k := range unknown {
		names = append(names, k.String())
	}
	return provider.Hint(fmt.Errorf("%w: user %s has %d access keys that are no live version: %s; and %d live ones",
		provider.ErrNoRoom, s.settings.user, len(unknown), strings.Join(names, ", "), live),
		"find out who uses them, and delete one; Keyturn deletes no access key that it did not make")
}
