package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// Limits on requests of operators.
const (
	maxPage      = 1000
	defaultPage  = 100
	maxReason    = 1000
	maxRequestID = 128
	maxDocuments = 1000
)

// Control implements the control API.
type Control struct{ *Service }

// Apply implements ControlService.
func (c Control) Apply(ctx context.Context, request *keyturnv1.ApplyRequest) (*keyturnv1.ApplyResponse, error) {
	principal, err := c.allow(ctx, authz.Apply, "")
	if err != nil {
		return nil, err
	}
	if n := len(request.GetDocuments()); n > maxDocuments {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("documents: %d are too many, at most %d are allowed", n, maxDocuments))
	}
	apply := engine.ApplyRequest{DryRun: request.GetDryRun(), Prune: request.GetPrune(), Allowed: func(name key.Name) bool {
		return authz.Covers(principal.Keys, name)
	}}
	for _, document := range request.GetDocuments() {
		apply.Documents = append(apply.Documents, engine.Document{Name: document.GetName(), Content: document.GetContent()})
	}
	result, err := c.config.Engine.Apply(ctx, actorOf(principal), apply)
	if err != nil {
		return nil, wire(err)
	}
	return applied(result), nil
}

// ListKeys implements ControlService.
func (c Control) ListKeys(ctx context.Context, request *keyturnv1.ListKeysRequest) (*keyturnv1.ListKeysResponse, error) {
	principal, err := c.allow(ctx, authz.Read, "")
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	views, err := c.config.Engine.Keys(ctx, request.GetPrefix(), request.GetPageToken(), limit)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ListKeysResponse{}
	for i := range views {
		if authz.Covers(principal.Keys, views[i].Resource.Metadata.Name) {
			response.Keys = append(response.Keys, keyMessage(&views[i]))
		}
	}
	if len(views) == limit {
		response.NextPageToken = string(views[limit-1].Resource.Metadata.Name)
	}
	return response, nil
}

func pageSize(asked int32) (int, error) {
	switch {
	case asked == 0:
		return defaultPage, nil
	case asked < 0 || asked > maxPage:
		return 0, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("page_size: %d is not between 1 and %d", asked, maxPage))
	}
	return int(asked), nil
}

// GetKey implements ControlService.
func (c Control) GetKey(ctx context.Context, request *keyturnv1.GetKeyRequest) (*keyturnv1.GetKeyResponse, error) {
	name, _, err := c.allowKey(ctx, authz.Read, request.GetName())
	if err != nil {
		return nil, err
	}
	view, err := c.config.Engine.Key(ctx, name)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.GetKeyResponse{Key: keyMessage(&view)}, nil
}

// allowKey parses a key name and authorises the caller for it.
func (s *Service) allowKey(ctx context.Context, a authz.Action, text string) (key.Name, authz.Principal, error) {
	principal, err := s.allow(ctx, a, "")
	if err != nil {
		return "", principal, err
	}
	name, err := parseKey(text)
	if err != nil {
		return "", principal, err
	}
	principal, err = s.allow(ctx, a, name)
	return name, principal, err
}

// GetSecret implements ControlService.
func (c Control) GetSecret(ctx context.Context, request *keyturnv1.GetSecretRequest) (*keyturnv1.GetSecretResponse, error) {
	name, principal, err := c.allowKey(ctx, authz.Reveal, request.GetName())
	if err != nil {
		return nil, err
	}
	label := key.Current
	if text := request.GetLabel(); text != "" {
		if request.GetVersion() != 0 {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("version and label exclude each other"))
		}
		if err := label.UnmarshalText([]byte(text)); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("label: %w; use current, previous or pending", err))
		}
	}
	v, material, err := c.config.Engine.Reveal(ctx, actorOf(principal), name, key.Version(request.GetVersion()), label)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.GetSecretResponse{Version: uint64(v), Attributes: material.Attributes, Secrets: reveal(material.Secrets)}, nil
}

// Rotate implements ControlService.
func (c Control) Rotate(ctx context.Context, request *keyturnv1.RotateRequest) (*keyturnv1.RotateResponse, error) {
	name, principal, err := c.allowKey(ctx, authz.Operate, request.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkText("reason", request.GetReason(), maxReason); err != nil {
		return nil, err
	}
	if err := checkText("request_id", request.GetRequestId(), maxRequestID); err != nil {
		return nil, err
	}
	rotate := engine.RotateRequest{Key: name, Reason: request.GetReason(), Emergency: request.GetEmergency(), RequestID: request.GetRequestId()}
	if !rotate.Emergency && (request.GetStrategy() != "" || len(request.GetCompromised()) > 0) {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("strategy and compromised belong to an emergency; set emergency too"))
	}
	if err := rotate.Strategy.UnmarshalText([]byte(request.GetStrategy())); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("strategy: %q is unknown; use replace-first or contain-first", request.GetStrategy()))
	}
	for _, v := range request.GetCompromised() {
		rotate.Compromised = append(rotate.Compromised, key.Version(v))
	}
	id, err := c.config.Engine.Rotate(ctx, actorOf(principal), rotate)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.RotateResponse{RotationId: id.String()}, nil
}

func checkText(field, text string, most int) error {
	if len(text) > most {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s: it has %d characters, at most %d are allowed", field, len(text), most))
	}
	return nil
}

// rotation finds a rotation by its ID, or by the beginning of one that is unique
// among the latest, and authorises the caller for its key.
func (c Control) rotation(ctx context.Context, a authz.Action, text string) (engine.RotationView, authz.Principal, error) {
	principal, err := c.allow(ctx, a, "")
	if err != nil {
		return engine.RotationView{}, principal, err
	}
	view, err := c.findRotation(ctx, text)
	if err != nil {
		return engine.RotationView{}, principal, err
	}
	principal, err = c.allow(ctx, a, view.Key)
	return view, principal, err
}

func (c Control) findRotation(ctx context.Context, text string) (engine.RotationView, error) {
	id, err := key.ParseRotationID(text)
	if err == nil {
		view, err := c.config.Engine.Rotation(ctx, id)
		return view, wire(err)
	}
	if len(text) < 4 || len(text) >= 32 || strings.Trim(text, "0123456789abcdef") != "" {
		return engine.RotationView{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%w; the first 4 or more digits of one suffice if they are unique", err))
	}
	latest, err := c.config.Engine.Rotations(ctx, "", key.RotationID{}, maxPage)
	if err != nil {
		return engine.RotationView{}, wire(err)
	}
	var found []engine.RotationView
	for _, view := range latest {
		if strings.HasPrefix(view.ID.String(), text) {
			found = append(found, view)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return engine.RotationView{}, connect.NewError(connect.CodeNotFound, fmt.Errorf("no rotation begins with %s; see keyturn rotation list", text))
	}
	return engine.RotationView{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d rotations begin with %s; write more digits", len(found), text))
}

// Rollback implements ControlService.
func (c Control) Rollback(ctx context.Context, request *keyturnv1.RollbackRequest) (*keyturnv1.RollbackResponse, error) {
	view, principal, err := c.rotation(ctx, authz.Operate, request.GetRotationId())
	if err != nil {
		return nil, err
	}
	if err := checkText("reason", request.GetReason(), maxReason); err != nil {
		return nil, err
	}
	id, err := c.config.Engine.Rollback(ctx, actorOf(principal), view.ID, request.GetReason())
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.RollbackResponse{RotationId: id.String()}, nil
}

// ListRotations implements ControlService.
func (c Control) ListRotations(ctx context.Context, request *keyturnv1.ListRotationsRequest) (*keyturnv1.ListRotationsResponse, error) {
	principal, err := c.allow(ctx, authz.Read, "")
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	name := key.Name("")
	if request.GetKey() != "" {
		if name, err = parseKey(request.GetKey()); err != nil {
			return nil, err
		}
	}
	var after key.RotationID
	if request.GetPageToken() != "" {
		if after, err = key.ParseRotationID(request.GetPageToken()); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("page_token: %w", err))
		}
	}
	views, err := c.config.Engine.Rotations(ctx, name, after, limit)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ListRotationsResponse{}
	for i := range views {
		if authz.Covers(principal.Keys, views[i].Key) && (!request.GetOpenOnly() || !views[i].Ended()) {
			response.Rotations = append(response.Rotations, rotationMessage(&views[i]))
		}
	}
	if len(views) == limit {
		response.NextPageToken = views[limit-1].ID.String()
	}
	return response, nil
}

// GetRotation implements ControlService.
func (c Control) GetRotation(ctx context.Context, request *keyturnv1.GetRotationRequest) (*keyturnv1.GetRotationResponse, error) {
	view, _, err := c.rotation(ctx, authz.Read, request.GetId())
	if err != nil {
		return nil, err
	}
	moves, err := c.config.Engine.Timeline(ctx, view.ID)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.GetRotationResponse{Rotation: rotationMessage(&view), Timeline: timeline(moves)}, nil
}

// WatchRotation implements ControlService.
func (c Control) WatchRotation(ctx context.Context, request *keyturnv1.WatchRotationRequest, stream *connect.ServerStream[keyturnv1.WatchRotationResponse]) error {
	view, _, err := c.rotation(ctx, authz.Read, request.GetId())
	if err != nil {
		return err
	}
	err = c.config.Engine.WatchRotation(ctx, view.ID, func(view engine.RotationView) error {
		return stream.Send(&keyturnv1.WatchRotationResponse{Rotation: rotationMessage(&view)})
	})
	return wire(err)
}

// Steer implements ControlService.
func (c Control) Steer(ctx context.Context, request *keyturnv1.SteerRequest) (*keyturnv1.SteerResponse, error) {
	action := authz.Operate
	var steer engine.Steer
	switch request.GetAction() {
	case keyturnv1.SteerAction_STEER_ACTION_APPROVE:
		steer, action = engine.SteerApprove, authz.Approve
	case keyturnv1.SteerAction_STEER_ACTION_PAUSE:
		steer = engine.SteerPause
	case keyturnv1.SteerAction_STEER_ACTION_RESUME:
		steer = engine.SteerResume
	case keyturnv1.SteerAction_STEER_ACTION_CANCEL:
		steer = engine.SteerCancel
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("action: it is missing; use approve, pause, resume or cancel"))
	}
	view, principal, err := c.rotation(ctx, action, request.GetRotationId())
	if err != nil {
		return nil, err
	}
	if err := checkText("reason", request.GetReason(), maxReason); err != nil {
		return nil, err
	}
	if err := c.config.Engine.Steer(ctx, actorOf(principal), view.ID, steer, request.GetReason()); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.SteerResponse{}, nil
}

// Plan implements ControlService.
func (c Control) Plan(ctx context.Context, request *keyturnv1.PlanRequest) (*keyturnv1.PlanResponse, error) {
	name, _, err := c.allowKey(ctx, authz.Read, request.GetName())
	if err != nil {
		return nil, err
	}
	plan, err := c.config.Engine.Plan(ctx, name)
	if err != nil {
		return nil, wire(err)
	}
	return planMessage(plan), nil
}

// ListParties implements ControlService.
func (c Control) ListParties(ctx context.Context, request *keyturnv1.ListPartiesRequest) (*keyturnv1.ListPartiesResponse, error) {
	if _, err := c.allow(ctx, authz.Read, ""); err != nil {
		return nil, err
	}
	limit, err := pageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	parties, err := c.config.Engine.Parties(ctx, request.GetPageToken(), limit)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ListPartiesResponse{}
	states := map[key.Name]*rotation.State{}
	for i := range parties {
		status, err := c.partyStatus(ctx, &parties[i], key.Name(request.GetKey()), states)
		if err != nil {
			return nil, wire(err)
		}
		if status != nil {
			response.Parties = append(response.Parties, status)
		}
	}
	if len(parties) == limit {
		response.NextPageToken = parties[limit-1].ID
	}
	return response, nil
}

// RemoveParty implements ControlService.
func (c Control) RemoveParty(ctx context.Context, request *keyturnv1.RemovePartyRequest) (*keyturnv1.RemovePartyResponse, error) {
	principal, err := c.allow(ctx, authz.Operate, "")
	if err != nil {
		return nil, err
	}
	if err := c.config.Hub.Leave(ctx, actorOf(principal), request.GetId(), clip(request.GetReason())); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.RemovePartyResponse{}, nil
}

// CreateToken implements ControlService.
func (c Control) CreateToken(ctx context.Context, request *keyturnv1.CreateTokenRequest) (*keyturnv1.CreateTokenResponse, error) {
	principal, err := c.allow(ctx, authz.Administer, "")
	if err != nil {
		return nil, err
	}
	role, err := authz.ParseRole(request.GetRole())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("role: %w", err))
	}
	for _, pattern := range request.GetKeys() {
		if err := withinReach(principal, pattern); err != nil {
			return nil, c.deny(ctx, principal, authz.Administer, "", err)
		}
	}
	wanted := identity.Request{Name: request.GetName(), Role: role, Keys: request.GetKeys(), Lifetime: request.GetLifetime().AsDuration()}
	if request.GetParty() != nil {
		party, err := partyOf(request.GetParty(), true)
		if err != nil {
			return nil, err
		}
		wanted.Party = identity.PartyShape{ID: party.ID, Kind: party.Kind, Region: party.Region, Labels: party.Labels}
	}
	token, text, err := c.config.Identity.Issue(ctx, actorOf(principal), wanted)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.CreateTokenResponse{Id: token.ID, Token: text.RevealString(), ExpiresAt: timestamp(token.Expires)}, nil
}

// withinReach keeps an admin of some keys from making tokens for others.
func withinReach(p authz.Principal, pattern string) error {
	for _, own := range p.Keys {
		if own == "**" || own == pattern {
			return nil
		}
		if prefix, ok := strings.CutSuffix(own, "/**"); ok && !strings.Contains(prefix, "*") && strings.HasPrefix(pattern, prefix+"/") {
			return nil
		}
	}
	return fmt.Errorf("%w: your token covers %s, and so cannot make one for %s", authz.ErrDenied, strings.Join(p.Keys, ", "), pattern)
}

// ListTokens implements ControlService.
func (c Control) ListTokens(ctx context.Context, _ *keyturnv1.ListTokensRequest) (*keyturnv1.ListTokensResponse, error) {
	if _, err := c.allow(ctx, authz.Administer, ""); err != nil {
		return nil, err
	}
	tokens, err := c.config.Identity.List(ctx)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ListTokensResponse{}
	for i := range tokens {
		t := &tokens[i]
		response.Tokens = append(response.Tokens, &keyturnv1.Token{
			Id: t.ID, Name: t.Name, Role: t.Role, Keys: t.Keys,
			CreatedAt: timestamp(t.Created), ExpiresAt: timestamp(t.Expires), LastUsedAt: timestamp(t.LastUsed),
		})
	}
	return response, nil
}

// RevokeToken implements ControlService.
func (c Control) RevokeToken(ctx context.Context, request *keyturnv1.RevokeTokenRequest) (*keyturnv1.RevokeTokenResponse, error) {
	principal, err := c.allow(ctx, authz.Administer, "")
	if err != nil {
		return nil, err
	}
	if err := c.config.Identity.Revoke(ctx, actorOf(principal), request.GetId()); err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.RevokeTokenResponse{}, nil
}

// ReadLog implements ControlService.
func (c Control) ReadLog(ctx context.Context, request *keyturnv1.ReadLogRequest) (*keyturnv1.ReadLogResponse, error) {
	if _, err := c.allow(ctx, authz.Read, ""); err != nil {
		return nil, err
	}
	limit, err := pageSize(request.GetLimit())
	if err != nil {
		return nil, err
	}
	var id key.RotationID
	if request.GetRotationId() != "" {
		view, _, err := c.rotation(ctx, authz.Read, request.GetRotationId())
		if err != nil {
			return nil, err
		}
		id = view.ID
	}
	page, err := c.config.Engine.ReadLog(ctx, request.GetFrom(), limit, key.Name(request.GetKey()), id)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.ReadLogResponse{Entries: page.Entries, Next: page.Next, Size: page.Size}, nil
}

// ExportLog implements ControlService.
func (c Control) ExportLog(ctx context.Context, _ *keyturnv1.ExportLogRequest, stream *connect.ServerStream[keyturnv1.ExportLogResponse]) error {
	if _, err := c.allow(ctx, authz.Read, ""); err != nil {
		return err
	}
	pieces := &pieceWriter{send: func(piece []byte) error { return stream.Send(&keyturnv1.ExportLogResponse{Piece: piece}) }}
	if err := c.config.Engine.ExportLog(ctx, pieces, c.config.LogKeys...); err != nil {
		return wire(err)
	}
	return pieces.flush()
}

// pieceWriter sends what is written in pieces of about 64 KiB.
type pieceWriter struct {
	buffer []byte
	send   func([]byte) error
}

const pieceSize = 64 << 10

// Write implements io.Writer.
func (w *pieceWriter) Write(p []byte) (int, error) {
	w.buffer = append(w.buffer, p...)
	if len(w.buffer) < pieceSize {
		return len(p), nil
	}
	return len(p), w.flush()
}

func (w *pieceWriter) flush() error {
	if len(w.buffer) == 0 {
		return nil
	}
	err := w.send(w.buffer)
	w.buffer = w.buffer[:0]
	return err
}

// Doctor implements ControlService.
func (c Control) Doctor(ctx context.Context, _ *keyturnv1.DoctorRequest) (*keyturnv1.DoctorResponse, error) {
	if _, err := c.allow(ctx, authz.Read, ""); err != nil {
		return nil, err
	}
	checks, err := c.config.Engine.Doctor(ctx)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.DoctorResponse{}
	for _, check := range checks {
		response.Checks = append(response.Checks, &keyturnv1.Check{Name: check.Name, Status: check.Status, Message: check.Message, Hint: check.Hint})
	}
	return response, nil
}
