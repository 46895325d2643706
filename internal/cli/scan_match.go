package cli

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/scan"
	"github.com/keyturn/keyturn/secret"
)

const (
	// leaksPerRequest is how many texts one request compares, and leakText the longest.
	leaksPerRequest = 500
	leakText        = 16 << 10
	maxLeakPlace    = 1000
	// leakTries is how often a request that is too much for the server is sent again.
	leakTries = 10
)

// asked is a text to compare: a finding, or a candidate when finding is negative.
type asked struct {
	finding int
	text    secret.Value
	place   scan.Place
	print   string
}

// matchLeaks has the server compare what was found. What matches becomes a finding
// if it is none yet.
func (a *app) matchLeaks(ctx context.Context, report *scan.Report) error {
	api, err := a.control()
	if err != nil {
		return err
	}
	var list []asked
	for i := range report.Findings {
		f := &report.Findings[i]
		list = append(list, asked{i, f.Secret, f.Place, f.Fingerprint})
	}
	known := map[string]bool{}
	for _, q := range list {
		known[q.print] = true
	}
	for i := range report.Candidates {
		if c := &report.Candidates[i]; !known[c.Fingerprint] {
			list = append(list, asked{-1, c.Secret, c.Place, c.Fingerprint})
		}
	}
	for len(list) > 0 {
		part := list[:min(len(list), leaksPerRequest)]
		list = list[len(part):]
		if err := matchPart(ctx, api, report, part); err != nil {
			return err
		}
	}
	report.MergeManaged()
	report.Sort()
	return nil
}

func matchPart(ctx context.Context, api keyturnv1connect.ControlServiceClient, report *scan.Report, part []asked) error {
	request := &keyturnv1.MatchLeaksRequest{}
	var sent []asked
	for _, q := range part {
		if q.text.Len() > leakText {
			continue // longer than any secret of a key
		}
		place := q.place.String()
		place = strings.ToValidUTF8(place[:min(len(place), maxLeakPlace)], "?")
		request.Candidates = append(request.Candidates, &keyturnv1.LeakCandidate{Text: q.text.Reveal(), Place: place})
		sent = append(sent, q)
	}
	response, err := patiently(ctx, func() (*keyturnv1.MatchLeaksResponse, error) { return api.MatchLeaks(ctx, request) })
	if err != nil {
		return err
	}
	for _, m := range response.GetMatches() {
		if int(m.GetCandidate()) >= len(sent) {
			continue
		}
		q := sent[m.GetCandidate()]
		managed := &scan.Managed{
			Key: m.GetKey(), Version: m.GetVersion(), State: m.GetState(), Live: m.GetLive(), Owner: m.GetOwner(),
			Action: m.GetAction(), Rotation: m.GetRotationId(),
		}
		if q.finding >= 0 && report.Findings[q.finding].Managed == nil {
			report.Findings[q.finding].Managed = managed
			continue
		}
		report.Findings = append(report.Findings, scan.Finding{
			Rule: scan.RuleManaged, Description: scan.DescribeManaged, Place: q.place, Length: q.text.Len(), Fingerprint: q.print, Managed: managed, Secret: q.text,
		})
	}
	return nil
}

// patiently repeats a request that the server has no room for now.
func patiently[T any](ctx context.Context, call func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		result, err := call()
		if err == nil || connect.CodeOf(err) != connect.CodeResourceExhausted || try == leakTries {
			return result, err
		}
		timer := time.NewTimer(time.Duration(try) * time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return result, ctx.Err()
		case <-timer.C:
		}
	}
}
