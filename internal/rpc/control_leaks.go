package rpc

import (
	"context"
	"fmt"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// MatchLeaks implements ControlService.
func (c Control) MatchLeaks(ctx context.Context, request *keyturnv1.MatchLeaksRequest) (*keyturnv1.MatchLeaksResponse, error) {
	principal, err := c.allow(ctx, authz.Scan, "")
	if err != nil {
		return nil, err
	}
	if len(request.GetCandidates()) > engine.MaxLeakCandidates {
		return nil, wire(fmt.Errorf("%w: %d candidates, at most %d are allowed; send several requests", engine.ErrInvalid, len(request.GetCandidates()), engine.MaxLeakCandidates))
	}
	if wait, ok := c.askers.admit(principal.ID, len(request.GetCandidates()), c.config.Now()); !ok {
		return nil, tooMany(wait, "this token has as many texts compared as one may; ask again later")
	}
	select {
	case c.scans <- struct{}{}:
		defer func() { <-c.scans }()
	default:
		return nil, tooMany(time.Second, "other scanners are asking; ask again")
	}
	candidates := make([]engine.LeakCandidate, len(request.GetCandidates()))
	for i, candidate := range request.GetCandidates() {
		candidates[i] = engine.LeakCandidate{Text: secret.New(candidate.GetText()), Place: candidate.GetPlace()}
		clear(candidate.GetText())
	}
	visible := func(name key.Name) bool { return authz.Covers(principal.Keys, name) }
	matches, err := c.config.Engine.MatchLeaks(ctx, actorOf(principal), candidates, visible)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.MatchLeaksResponse{}
	for i := range matches {
		m := &matches[i]
		match := &keyturnv1.LeakMatch{
			Candidate: uint32(m.Candidate), Key: string(m.Key), Version: uint64(m.Version), State: m.State.String(), Live: m.Live,
			Owner: m.Owner, Secret: m.Secret, Known: m.Known,
		}
		if m.Action != 0 {
			match.Action = m.Action.String()
		}
		if !m.Rotation.IsZero() {
			match.RotationId = m.Rotation.String()
		}
		response.Matches = append(response.Matches, match)
	}
	return response, nil
}

// ListLeaks implements ControlService.
func (c Control) ListLeaks(ctx context.Context, request *keyturnv1.ListLeaksRequest) (*keyturnv1.ListLeaksResponse, error) {
	principal, limit, err := c.allowPage(ctx, request)
	if err != nil {
		return nil, err
	}
	response := &keyturnv1.ListLeaksResponse{}
	for after := request.GetPageToken(); ; {
		// Those that are not visible leave the page short; it is filled, so that no token
		// names one of them.
		open, next, err := c.config.Engine.OpenLeaks(ctx, after, limit-len(response.GetLeaks()))
		if err != nil {
			return nil, wire(err)
		}
		for i := range open {
			if authz.Covers(principal.Keys, open[i].Key) {
				response.Leaks = append(response.Leaks, leakMessage(&open[i]))
			}
		}
		if after = next; after == "" {
			return response, nil
		}
		if len(response.GetLeaks()) == limit {
			response.NextPageToken = after
			return response, nil
		}
	}
}

func leakMessage(l *engine.OpenLeak) *keyturnv1.Leak {
	message := &keyturnv1.Leak{
		Key: string(l.Key), Version: uint64(l.Version), FirstAt: timestamp(l.First), LastAt: timestamp(l.Last), Place: l.Place, Times: int64(l.Count),
	}
	if l.Action != 0 {
		message.Action = l.Action.String()
	}
	if !l.Rotation.IsZero() {
		message.RotationId = l.Rotation.String()
	}
	return message
}
