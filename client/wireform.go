package client

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// maxDetail is how many characters of a detail the API takes.
const maxDetail = 1000

func partyToWire(p Party) *keyturnv1.Party {
	kind := keyturnv1.PartyKind_PARTY_KIND_CLIENT
	if p.Kind == KindAgent {
		kind = keyturnv1.PartyKind_PARTY_KIND_AGENT
	}
	return &keyturnv1.Party{Id: p.ID, Kind: kind, Region: p.Region, Labels: p.Labels}
}

func knownToWire(known []Known) []*keyturnv1.Known {
	out := make([]*keyturnv1.Known, len(known))
	for i, k := range known {
		out[i] = &keyturnv1.Known{Key: k.Key.String(), Version: uint64(k.Version), Epoch: k.Epoch}
	}
	return out
}

// assignmentFromWire takes the secrets over and clears the message's copy.
func assignmentFromWire(a *keyturnv1.Assignment) (Assignment, error) {
	name, err := key.ParseName(a.GetKey())
	if err != nil {
		return Assignment{}, err
	}
	if a.GetVersion() == 0 || a.GetEpoch() == 0 {
		return Assignment{}, fmt.Errorf("assignment of %s has version %d and epoch %d; both must be greater than 0", name, a.GetVersion(), a.GetEpoch())
	}
	out := Assignment{
		Key: name, Version: key.Version(a.GetVersion()), Epoch: a.GetEpoch(),
		Attributes: a.GetAttributes(),
		Secrets:    make(map[string]secret.Value, len(a.GetSecrets())),
	}
	if out.Attributes == nil {
		out.Attributes = map[string]string{}
	}
	if id := a.GetRotationId(); id != "" {
		if out.Rotation, err = key.ParseRotationID(id); err != nil {
			return Assignment{}, fmt.Errorf("assignment of %s: %w", name, err)
		}
	}
	if at := a.GetPublishedAt(); at.IsValid() {
		out.PublishedAt = at.AsTime()
	}
	for field, plain := range a.GetSecrets() {
		out.Secrets[field] = secret.New(plain)
		clear(plain)
	}
	return out, nil
}

func outcomesToWire(outcomes []Outcome) []*keyturnv1.Outcome {
	out := make([]*keyturnv1.Outcome, len(outcomes))
	for i, o := range outcomes {
		code := keyturnv1.OutcomeCode_OUTCOME_CODE_FAILED
		if o.Code == Applied {
			code = keyturnv1.OutcomeCode_OUTCOME_CODE_APPLIED
		}
		out[i] = &keyturnv1.Outcome{
			Key: o.Key.String(), Version: uint64(o.Version), Epoch: o.Epoch,
			Code: code, Using: uint64(o.Using), Detail: truncate(o.Detail), Order: o.order,
		}
	}
	return out
}

func samplesToWire(samples []Sample) []*keyturnv1.Sample {
	out := make([]*keyturnv1.Sample, len(samples))
	for i, s := range samples {
		out[i] = &keyturnv1.Sample{
			Key: s.Key.String(), Version: uint64(s.Version),
			Attempts: s.Attempts, AuthFailures: s.AuthFailures, Healthy: s.Healthy, Detail: truncate(s.Detail),
		}
	}
	return out
}

func pollToWire(party Party, known []Known, wait *durationpb.Duration) *keyturnv1.PollRequest {
	return &keyturnv1.PollRequest{Party: partyToWire(party), Keys: knownToWire(known), Wait: wait}
}

// truncate makes a detail fit the API: valid UTF-8 of at most maxDetail characters.
func truncate(detail string) string {
	detail = strings.ToValidUTF8(detail, "\uFFFD")
	if utf8.RuneCountInString(detail) <= maxDetail {
		return detail
	}
	return string([]rune(detail)[:maxDetail-1]) + "…"
}

// scrub removes the values of secrets from a detail, also where they are quoted
// or escaped for a URL. Appliers get errors from databases and commands, and
// some of those repeat what they were given.
func scrub(detail string, secrets map[string]secret.Value) string {
	var forms []string
	for _, value := range secrets {
		plain := value.RevealString()
		quoted := strconv.Quote(plain)
		for _, form := range []string{plain, quoted[1 : len(quoted)-1], url.QueryEscape(plain), url.PathEscape(plain)} {
			// One or two bytes would turn half of the text into noise.
			if len(form) > 2 {
				forms = append(forms, form)
			}
		}
	}
	// The longest first: one secret may be a part of another.
	slices.SortFunc(forms, func(a, b string) int { return len(b) - len(a) })
	for _, form := range forms {
		detail = strings.ReplaceAll(detail, form, secret.Redacted)
	}
	return detail
}
