package rpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Limits on requests of parties.
const (
	maxLabels   = 64
	maxLabel    = 253
	maxDetail   = 1000
	maxOutcomes = 1000
	maxPollWait = 60 * time.Second
	maxAttempts = 1 << 31
)

// Delivery implements the delivery API.
type Delivery struct{ *Service }

// Join implements DeliveryService.
func (d Delivery) Join(ctx context.Context, request *keyturnv1.JoinRequest) (*keyturnv1.JoinResponse, error) {
	wanted, err := partyOf(request.GetParty(), true)
	if err != nil {
		return nil, err
	}
	party, token, err := d.config.Identity.Redeem(ctx, secret.NewString(request.GetJoinToken()), identity.PartyShape{
		ID: wanted.ID, Kind: wanted.Kind, Region: wanted.Region, Labels: wanted.Labels,
	}, func(ctx context.Context, id string) (bool, error) {
		_, err := d.config.Engine.Party(ctx, id)
		if errors.Is(err, engine.ErrNotFound) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		if refused, ok := ctx.Value(refusedKey{}).(func()); ok && errors.Is(err, identity.ErrUnauthenticated) {
			refused()
		}
		return nil, wire(err)
	}
	return &keyturnv1.JoinResponse{PartyId: party.ID, Token: token.RevealString()}, nil
}

// Watch implements DeliveryService.
func (d Delivery) Watch(ctx context.Context, request *keyturnv1.WatchRequest, stream *connect.ServerStream[keyturnv1.WatchResponse]) error {
	err := d.watch(ctx, request, stream)
	if !errors.Is(err, hub.ErrStopped) {
		return err
	}
	// That is no failure of anybody: the last answer says when to come back.
	if after := d.config.Hub.ComeBack(); after > 0 {
		return stream.Send(&keyturnv1.WatchResponse{ComeBack: durationpb.New(after)})
	}
	return err
}

// heartbeatsToCheck is after how many heartbeats a stream makes sure that its token is
// good, in case the note of its revocation could not be followed. Each costs a read
// of the store, of every token.
const heartbeatsToCheck = 4

func (d Delivery) watch(ctx context.Context, request *keyturnv1.WatchRequest, stream *connect.ServerStream[keyturnv1.WatchResponse]) error {
	party, holdings, principal, err := d.present(ctx, request.GetParty(), request.GetKeys())
	if err != nil {
		return err
	}
	ctx, end := d.begin(ctx, &d.streams, principal.ID, d.config.StreamsPerToken)
	defer end()
	if ctx.Err() != nil {
		return ended(ctx, ctx.Err())
	}
	session, err := d.config.Hub.Connect(ctx, actorOf(principal), party, holdings)
	if err != nil {
		return ended(ctx, err)
	}
	defer session.Close()
	heartbeat := durationpb.New(3 * d.config.Heartbeat)
	checked := time.Now()
	for first := true; ; first = false {
		wait := d.config.Heartbeat
		if first {
			wait = time.Millisecond // tell at once that the party is registered
		}
		deliveries, err := session.Next(ctx, wait)
		if err != nil {
			return ended(ctx, err)
		}
		if time.Since(checked) >= heartbeatsToCheck*d.config.Heartbeat {
			if err := d.check(ctx, principal.ID); err != nil {
				return err
			}
			checked = time.Now()
		}
		answer := &keyturnv1.WatchResponse{Assignments: assignments(deliveries), Heartbeat: heartbeat, AckSpread: ackSpread(deliveries)}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// ackSpread is over which time the acknowledgements of deliveries are spread; nil
// when they need not be.
func ackSpread(deliveries []hub.Delivery) *durationpb.Duration {
	spread := time.Duration(0)
	for i := range deliveries {
		spread = max(spread, deliveries[i].AckSpread)
	}
	if spread == 0 {
		return nil
	}
	return durationpb.New(spread)
}

// Poll implements DeliveryService.
func (d Delivery) Poll(ctx context.Context, request *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error) {
	if _, err := d.allow(ctx, authz.Present, ""); err != nil {
		return nil, err
	}
	wait := request.GetWait().AsDuration()
	if wait < 0 || wait > maxPollWait {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("wait: %v is not between 0 and %v", wait, maxPollWait))
	}
	party, holdings, principal, err := d.present(ctx, request.GetParty(), request.GetKeys())
	if err != nil {
		return nil, err
	}
	ctx, end := d.begin(ctx, &d.streams, principal.ID, d.config.StreamsPerToken)
	defer end()
	if ctx.Err() != nil {
		return nil, ended(ctx, ctx.Err())
	}
	deliveries, err := d.config.Hub.Poll(ctx, actorOf(principal), party, holdings, max(wait, time.Millisecond))
	if err != nil {
		return nil, ended(ctx, err)
	}
	return &keyturnv1.PollResponse{Assignments: assignments(deliveries)}, nil
}

// present authorises the party for its keys. What the token fixes of the party
// wins over what the party says.
func (d Delivery) present(ctx context.Context, p *keyturnv1.Party, keys []*keyturnv1.Known) (engine.PartyRecord, []engine.Holding, authz.Principal, error) {
	principal, err := d.allow(ctx, authz.Present, "")
	if err != nil {
		return engine.PartyRecord{}, nil, principal, err
	}
	party, err := partyOf(p, false)
	if err != nil {
		return party, nil, principal, err
	}
	if err := d.maySpeakFor(ctx, principal, party.ID); err != nil {
		return party, nil, principal, err
	}
	c, err := caller(ctx)
	if err != nil {
		return party, nil, principal, err
	}
	shape := c.Fixed.Over(identity.PartyShape{ID: party.ID, Kind: party.Kind, Region: party.Region, Labels: party.Labels})
	party.Kind, party.Region, party.Labels, party.Address = shape.Kind, shape.Region, shape.Labels, addressOf(ctx)
	if gateway, ok := gatewayOf(ctx); ok {
		party.Gateway = gateway.Name
	}
	holdings, err := d.holdings(ctx, principal, keys)
	return party, holdings, principal, err
}

func (d Delivery) holdings(ctx context.Context, principal authz.Principal, keys []*keyturnv1.Known) ([]engine.Holding, error) {
	if len(keys) == 0 || len(keys) > engine.MaxPartyKeys {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keys: 1 to %d are needed, not %d", engine.MaxPartyKeys, len(keys)))
	}
	holdings := make([]engine.Holding, 0, len(keys))
	seen := map[key.Name]bool{}
	for i, known := range keys {
		name, err := parseKey(fmt.Sprintf("keys[%d].key", i), known.GetKey())
		if err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keys[%d]: %s is named twice", i, name))
		}
		seen[name] = true
		if err := authz.Allow(principal, authz.Present, name); err != nil {
			return nil, d.deny(ctx, principal, authz.Present, name, err)
		}
		holdings = append(holdings, engine.Holding{Key: name, Version: key.Version(known.GetVersion()), Epoch: known.GetEpoch()})
	}
	return holdings, nil
}

// partyOf checks how a party describes itself.
func partyOf(p *keyturnv1.Party, idOptional bool) (engine.PartyRecord, error) {
	invalid := func(format string, args ...any) (engine.PartyRecord, error) {
		return engine.PartyRecord{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("party."+format, args...))
	}
	record := engine.PartyRecord{ID: p.GetId(), Kind: hub.KindAgent, Region: p.GetRegion(), Labels: p.GetLabels()}
	switch p.GetKind() {
	case keyturnv1.PartyKind_PARTY_KIND_AGENT, keyturnv1.PartyKind_PARTY_KIND_UNSPECIFIED:
	case keyturnv1.PartyKind_PARTY_KIND_CLIENT:
		record.Kind = hub.KindClient
	default:
		return invalid("kind: %v is unknown; use agent or client", p.GetKind())
	}
	if err := checkPartyID(record.ID); err != nil && (record.ID != "" || !idOptional) {
		return invalid("id: %w", err)
	}
	if len(record.Region) > maxLabel {
		return invalid("region: it has %d characters, at most %d are allowed", len(record.Region), maxLabel)
	}
	if len(record.Labels) > maxLabels {
		return invalid("labels: %d are too many, at most %d are allowed", len(record.Labels), maxLabels)
	}
	for name, value := range record.Labels {
		if name == "" || len(name) > maxLabel || len(value) > maxLabel {
			return invalid("labels: names have 1 to %d characters, values at most as many", maxLabel)
		}
	}
	return record, nil
}

func checkPartyID(id string) error {
	if id == "" || len(id) > engine.MaxPartyID {
		return fmt.Errorf("1 to %d characters are needed, not %d", engine.MaxPartyID, len(id))
	}
	for _, r := range id {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !letter && r != '.' && r != '_' && r != '-' && r != ':' && r != '/' {
			return fmt.Errorf("character %q is not allowed; use letters, digits, '.', '_', '-', ':' and '/'", r)
		}
	}
	return nil
}

func assignments(deliveries []hub.Delivery) []*keyturnv1.Assignment {
	list := make([]*keyturnv1.Assignment, 0, len(deliveries))
	for _, d := range deliveries {
		a := &keyturnv1.Assignment{
			Key: string(d.Key), Version: uint64(d.Version), Epoch: d.Epoch, Attributes: d.Material.Attributes,
			Secrets: reveal(d.Material.Secrets),
		}
		if !d.Rotation.IsZero() {
			a.RotationId = d.Rotation.String()
		}
		if !d.At.IsZero() {
			a.PublishedAt = timestamppb.New(d.At)
		}
		list = append(list, a)
	}
	return list
}

// reveal turns secrets into the bytes of an answer.
func reveal(secrets map[string]secret.Value) map[string][]byte {
	plain := make(map[string][]byte, len(secrets))
	for name, value := range secrets {
		plain[name] = value.Reveal()
	}
	return plain
}

// party authorises the caller for a party and the keys of its answers.
func (d Delivery) party(ctx context.Context, id string, keys []key.Name) (authz.Principal, error) {
	principal, err := d.allow(ctx, authz.Present, "")
	if err != nil {
		return principal, err
	}
	if err := checkPartyID(id); err != nil {
		return principal, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("party_id: %w", err))
	}
	if err := authz.MaySpeakFor(principal, id); err != nil {
		return principal, d.deny(ctx, principal, authz.Present, "", err)
	}
	for _, name := range keys {
		if err := authz.Allow(principal, authz.Present, name); err != nil {
			return principal, d.deny(ctx, principal, authz.Present, name, err)
		}
	}
	return principal, nil
}

// Ack implements DeliveryService.
func (d Delivery) Ack(ctx context.Context, request *keyturnv1.AckRequest) (*keyturnv1.AckResponse, error) {
	if _, err := d.allow(ctx, authz.Present, ""); err != nil {
		return nil, err
	}
	if len(request.GetOutcomes()) > maxOutcomes {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("outcomes: %d are too many, at most %d are allowed", len(request.GetOutcomes()), maxOutcomes))
	}
	var outcomes []hub.Outcome
	var keys []key.Name
	for i, o := range request.GetOutcomes() {
		name, err := parseKey(fmt.Sprintf("outcomes[%d].key", i), o.GetKey())
		if err != nil {
			return nil, err
		}
		outcome := hub.Outcome{Key: name, Epoch: o.GetEpoch(), Order: o.GetOrder(), Using: key.Version(o.GetUsing()), Detail: clip(o.GetDetail())}
		switch o.GetCode() {
		case keyturnv1.OutcomeCode_OUTCOME_CODE_APPLIED:
			outcome.OK = true
			if o.GetUsing() != o.GetVersion() {
				return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("outcomes[%d].using: version %d is applied, yet %d is used; they must be equal", i, o.GetVersion(), o.GetUsing()))
			}
		case keyturnv1.OutcomeCode_OUTCOME_CODE_FAILED:
		default:
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("outcomes[%d].code: it is missing; use applied or failed", i))
		}
		outcomes = append(outcomes, outcome)
		keys = append(keys, name)
	}
	if _, err := d.party(ctx, request.GetPartyId(), keys); err != nil {
		return nil, err
	}
	if err := d.config.Hub.Acknowledge(ctx, request.GetPartyId(), outcomes); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.AckResponse{}, nil
}

// clip bounds text that parties wrote, without cutting a character in two.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxDetail)], "") }

// Report implements DeliveryService.
func (d Delivery) Report(ctx context.Context, request *keyturnv1.ReportRequest) (*keyturnv1.ReportResponse, error) {
	if _, err := d.allow(ctx, authz.Present, ""); err != nil {
		return nil, err
	}
	if len(request.GetSamples()) > maxOutcomes {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("samples: %d are too many, at most %d are allowed", len(request.GetSamples()), maxOutcomes))
	}
	var keys []key.Name
	for i, sample := range request.GetSamples() {
		name, err := parseKey(fmt.Sprintf("samples[%d].key", i), sample.GetKey())
		if err != nil {
			return nil, err
		}
		if sample.GetAttempts() > maxAttempts || sample.GetAuthFailures() > sample.GetAttempts() {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("samples[%d].auth_failures: %d of %d attempts; they are part of the attempts, which are %d at most", i, sample.GetAuthFailures(), sample.GetAttempts(), uint64(maxAttempts)))
		}
		keys = append(keys, name)
	}
	if _, err := d.party(ctx, request.GetPartyId(), keys); err != nil {
		return nil, err
	}
	var problems []error
	for i, sample := range request.GetSamples() {
		problems = append(problems, d.config.Hub.Report(ctx, keys[i], key.Version(sample.GetVersion()), engine.Sample{
			Presenter: request.GetPartyId(), Address: addressOf(ctx), Attempts: sample.GetAttempts(), AuthFailures: sample.GetAuthFailures(),
			Healthy: sample.GetHealthy(), Detail: clip(sample.GetDetail()),
		}))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.ReportResponse{}, nil
}

// addressOf is the caller's IP address; empty if it has none.
func addressOf(ctx context.Context) string {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return ""
	}
	at, err := netip.ParseAddrPort(info.Peer().Addr)
	if err != nil {
		return ""
	}
	return at.Addr().Unmap().WithZone("").String()
}

// Leave implements DeliveryService.
func (d Delivery) Leave(ctx context.Context, request *keyturnv1.LeaveRequest) (*keyturnv1.LeaveResponse, error) {
	principal, err := d.party(ctx, request.GetPartyId(), nil)
	if err != nil {
		return nil, err
	}
	if err := d.coveredParty(ctx, principal, authz.Present, request.GetPartyId()); err != nil {
		return nil, err
	}
	if err := d.config.Hub.Leave(ctx, actorOf(principal), request.GetPartyId(), "left"); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.LeaveResponse{}, nil
}
