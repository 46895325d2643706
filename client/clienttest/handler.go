package clienttest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
)

var errCut = connect.NewError(connect.CodeUnavailable, errors.New("the server goes away"))

// handler implements the delivery API.
type handler struct{ *Server }

func authorization(ctx context.Context) string {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return ""
	}
	return info.RequestHeader().Get("Authorization")
}

func (h *handler) Join(ctx context.Context, req *keyturnv1.JoinRequest) (*keyturnv1.JoinResponse, error) {
	if err := h.admit(ctx, RPCJoin, ""); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	token, found := h.joins[req.GetJoinToken()]
	if !found {
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("unknown join token"))
	}
	delete(h.joins, req.GetJoinToken())
	return &keyturnv1.JoinResponse{PartyId: req.GetParty().GetId(), Token: token}, nil
}

func (h *handler) Watch(ctx context.Context, req *keyturnv1.WatchRequest, out *connect.ServerStream[keyturnv1.WatchResponse]) error {
	if err := h.admit(ctx, RPCWatch, authorization(ctx)); err != nil {
		return err
	}
	defer h.register(req.GetParty())()
	seen := epochs(req.GetKeys())
	h.mu.Lock()
	pushed, cut := len(h.pushes), h.cut
	h.mu.Unlock()
	ticker := time.NewTicker(h.heartbeat)
	defer ticker.Stop()
	for due := true; ; {
		h.mu.Lock()
		changed := h.changed
		var answers [][]client.Assignment
		if !h.silent && !h.blocked {
			if news := h.newsLocked(seen); len(news) > 0 || due {
				answers, due = append(answers, news), false
			}
			answers = append(answers, h.pushes[pushed:]...)
			pushed = len(h.pushes)
		}
		h.mu.Unlock()
		for _, answer := range answers {
			if err := out.Send(&keyturnv1.WatchResponse{Assignments: toWire(answer), Heartbeat: durationpb.New(3 * h.heartbeat)}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cut:
			return errCut
		case <-changed:
		case <-ticker.C:
			due = true
		}
	}
}

func (h *handler) Poll(ctx context.Context, req *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error) {
	if err := h.admit(ctx, RPCPoll, authorization(ctx)); err != nil {
		return nil, err
	}
	h.note(req.GetParty())
	seen := epochs(req.GetKeys())
	timer := time.NewTimer(req.GetWait().AsDuration())
	defer timer.Stop()
	h.mu.Lock()
	cut := h.cut
	h.mu.Unlock()
	for late := req.GetWait().AsDuration() == 0; ; {
		h.mu.Lock()
		changed, silent := h.changed, h.silent
		var news []client.Assignment
		if !silent {
			news = h.newsLocked(seen)
		}
		h.mu.Unlock()
		if !silent && (late || len(news) > 0) {
			return &keyturnv1.PollResponse{Assignments: toWire(news)}, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-cut:
			return nil, errCut
		case <-changed:
		case <-timer.C:
			late = true
		}
	}
}

func (h *handler) Ack(ctx context.Context, req *keyturnv1.AckRequest) (*keyturnv1.AckResponse, error) {
	if err := h.admit(ctx, RPCAck, authorization(ctx)); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range req.GetOutcomes() {
		h.acks = append(h.acks, Ack{Party: req.GetPartyId(), Outcome: client.Outcome{
			Key: key.Name(o.GetKey()), Version: key.Version(o.GetVersion()), Epoch: o.GetEpoch(),
			Code: code(o.GetCode()), Using: key.Version(o.GetUsing()), Detail: o.GetDetail(),
		}})
	}
	h.wakeLocked()
	return &keyturnv1.AckResponse{}, nil
}

func (h *handler) Report(ctx context.Context, req *keyturnv1.ReportRequest) (*keyturnv1.ReportResponse, error) {
	if err := h.admit(ctx, RPCReport, authorization(ctx)); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range req.GetSamples() {
		h.reports = append(h.reports, Report{Party: req.GetPartyId(), Sample: client.Sample{
			Key: key.Name(s.GetKey()), Version: key.Version(s.GetVersion()), Attempts: s.GetAttempts(),
			AuthFailures: s.GetAuthFailures(), Healthy: s.GetHealthy(), Detail: s.GetDetail(),
		}})
	}
	h.wakeLocked()
	return &keyturnv1.ReportResponse{}, nil
}

func (h *handler) Leave(ctx context.Context, req *keyturnv1.LeaveRequest) (*keyturnv1.LeaveResponse, error) {
	if err := h.admit(ctx, RPCLeave, authorization(ctx)); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.seen, req.GetPartyId())
	h.wakeLocked()
	return &keyturnv1.LeaveResponse{}, nil
}

// register notes an open stream; the result notes its end.
func (h *handler) register(party *keyturnv1.Party) (end func()) {
	h.note(party)
	count := func(n int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.streams += n
		h.wakeLocked()
	}
	count(1)
	return func() { count(-1) }
}

func (h *handler) note(party *keyturnv1.Party) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[party.GetId()] = client.Party{
		ID: party.GetId(), Kind: kind(party.GetKind()), Region: party.GetRegion(), Labels: party.GetLabels(),
	}
	h.wakeLocked()
}

// newsLocked returns what a party has not seen, and notes in seen that it has now.
func (s *Server) newsLocked(seen map[key.Name]uint64) []client.Assignment {
	var news []client.Assignment
	for name, epoch := range seen {
		if p := s.keys[name]; p != nil && p.Epoch > epoch {
			news = append(news, *p)
			seen[name] = p.Epoch
		}
	}
	slices.SortFunc(news, func(a, b client.Assignment) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return news
}

func code(wire keyturnv1.OutcomeCode) client.OutcomeCode {
	switch wire {
	case keyturnv1.OutcomeCode_OUTCOME_CODE_APPLIED:
		return client.Applied
	case keyturnv1.OutcomeCode_OUTCOME_CODE_FAILED:
		return client.Failed
	case keyturnv1.OutcomeCode_OUTCOME_CODE_UNSPECIFIED:
	}
	return 0
}

func kind(wire keyturnv1.PartyKind) client.PartyKind {
	switch wire {
	case keyturnv1.PartyKind_PARTY_KIND_AGENT:
		return client.KindAgent
	case keyturnv1.PartyKind_PARTY_KIND_CLIENT:
		return client.KindClient
	case keyturnv1.PartyKind_PARTY_KIND_UNSPECIFIED:
	}
	return 0
}

func epochs(known []*keyturnv1.Known) map[key.Name]uint64 {
	seen := make(map[key.Name]uint64, len(known))
	for _, k := range known {
		seen[key.Name(k.GetKey())] = k.GetEpoch()
	}
	return seen
}

func toWire(assignments []client.Assignment) []*keyturnv1.Assignment {
	out := make([]*keyturnv1.Assignment, len(assignments))
	for i, a := range assignments {
		out[i] = &keyturnv1.Assignment{
			Key: a.Key.String(), Version: uint64(a.Version), Epoch: a.Epoch,
			Attributes: a.Attributes, Secrets: make(map[string][]byte, len(a.Secrets)),
		}
		if !a.Rotation.IsZero() {
			out[i].RotationId = a.Rotation.String()
		}
		if !a.PublishedAt.IsZero() {
			out[i].PublishedAt = timestamppb.New(a.PublishedAt)
		}
		for field, value := range a.Secrets {
			out[i].Secrets[field] = value.Reveal()
		}
	}
	return out
}
