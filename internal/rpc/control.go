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
	"github.com/keyturn/keyturn/key"
)

// Limits on requests of operators.
const (
	maxPage      = 1000
	defaultPage  = 100
	maxReason    = 1000
	maxRequestID = 128
	maxDocuments = 1000
	maxVersions  = 1000
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
	apply := engine.ApplyRequest{DryRun: request.GetDryRun(), Prune: request.GetPrune()}
	if since := request.GetPastSince(); since != nil {
		if !apply.DryRun {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("past_since: it belongs to a dry run; set dry_run"))
		}
		if err := since.CheckValid(); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("past_since: %w", err))
		}
		apply.PastSince = since.AsTime()
	}
	if !coversAll(principal) {
		apply.Allowed = func(name key.Name) bool { return authz.Covers(principal.Keys, name) }
	}
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
	principal, limit, err := c.allowPage(ctx, request)
	if err != nil {
		return nil, err
	}
	response := &keyturnv1.ListKeysResponse{}
	// A page is filled with what the token covers, so that the name of no other key
	// is where the next one begins.
	for after := request.GetPageToken(); ; {
		views, err := c.config.Engine.Keys(ctx, request.GetPrefix(), after, limit)
		if err != nil {
			return nil, wire(err)
		}
		for i := range views {
			after = string(views[i].Resource.Metadata.Name)
			if !authz.Covers(principal.Keys, key.Name(after)) {
				continue
			}
			response.Keys = append(response.Keys, keyMessage(&views[i]))
			if len(response.GetKeys()) == limit {
				response.NextPageToken = after
				return response, nil
			}
		}
		if len(views) < limit {
			return response, nil
		}
	}
}

// maxPageToken is the longest a page token can be.
const maxPageToken = 512

// allowPage lets a caller read a page of a list of which it may not see all, and returns
// how large the page may be.
func (c Control) allowPage(ctx context.Context, request interface {
	GetPageSize() int32
	GetPageToken() string
},
) (principal authz.Principal, limit int, err error) {
	if principal, err = c.allow(ctx, authz.Read, ""); err != nil {
		return principal, 0, err
	}
	if limit, err = pageSize(request.GetPageSize()); err != nil {
		return principal, 0, err
	}
	return principal, limit, checkText("page_token", request.GetPageToken(), maxPageToken)
}

// afterID is where a page begins of a list by the IDs of rotations.
func afterID(token string) (after key.RotationID, err error) {
	if token == "" {
		return after, nil
	}
	if after, err = key.ParseRotationID(token); err != nil {
		return after, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("page_token: %w", err))
	}
	return after, nil
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
	name, err := parseKey("name", text)
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
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("label: version and label exclude each other; leave one out"))
		}
		if err := label.UnmarshalText([]byte(text)); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("label: %w; use current, previous or pending", err))
		}
	}
	v, material, err := c.config.Engine.Reveal(ctx, actorOf(principal), addressOf(ctx), name, key.Version(request.GetVersion()), label)
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
	if n := len(request.GetCompromised()); n > maxVersions {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("compromised: %d versions are too many, at most %d are allowed; leave them out to name all", n, maxVersions))
	}
	rotate := engine.RotateRequest{Key: name, Reason: request.GetReason(), Emergency: request.GetEmergency(), RequestID: request.GetRequestId()}
	if !rotate.Emergency && (request.GetStrategy() != "" || len(request.GetCompromised()) > 0) {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("strategy, compromised: they belong to an emergency; set emergency, too"))
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
	view, err := c.findRotation(ctx, principal, text)
	if err != nil {
		return engine.RotationView{}, principal, err
	}
	if _, err := c.allow(ctx, a, view.Key); err != nil {
		// Whose token does not cover its key learns nothing of the rotation.
		return engine.RotationView{}, principal, wire(fmt.Errorf("%w: rotation %v", engine.ErrNotFound, view.ID))
	}
	return view, principal, nil
}

func (c Control) findRotation(ctx context.Context, principal authz.Principal, text string) (engine.RotationView, error) {
	id, err := key.ParseRotationID(text)
	if err == nil {
		view, err := c.config.Engine.Rotation(ctx, id)
		return view, wire(err)
	}
	if !isBeginning(text) {
		return engine.RotationView{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("rotation_id: %w; the first 4 or more digits of one suffice if they are unique", err))
	}
	latest, err := c.config.Engine.Rotations(ctx, "", key.RotationID{}, maxPage)
	if err != nil {
		return engine.RotationView{}, wire(err)
	}
	var found []engine.RotationView
	for _, view := range latest {
		if strings.HasPrefix(view.ID.String(), text) && authz.Covers(principal.Keys, view.Key) {
			found = append(found, view)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return engine.RotationView{}, connect.NewError(connect.CodeNotFound, fmt.Errorf("no rotation begins with %s; see keyturn rotation list", text))
	}
	return engine.RotationView{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("rotation_id: %d rotations begin with %s; write more digits", len(found), text))
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
		if name, err = parseKey("key", request.GetKey()); err != nil {
			return nil, err
		}
	}
	after, err := afterID(request.GetPageToken())
	if err != nil {
		return nil, err
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
	response := &keyturnv1.GetRotationResponse{Rotation: rotationMessage(&view), Timeline: timeline(moves)}
	if ref := view.Policy; ref.SHA256 != "" {
		text, err := c.config.Engine.PolicyText(ctx, ref)
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			return nil, wire(err)
		}
		response.Policy = &keyturnv1.PolicyText{Name: ref.Name, Sha256: ref.SHA256, Document: text}
	}
	return response, nil
}

// WatchRotation implements ControlService.
func (c Control) WatchRotation(ctx context.Context, request *keyturnv1.WatchRotationRequest, stream *connect.ServerStream[keyturnv1.WatchRotationResponse]) error {
	view, principal, err := c.rotation(ctx, authz.Read, request.GetId())
	if err != nil {
		return err
	}
	ctx, end := c.guard(ctx, principal.ID)
	defer end()
	if ctx.Err() != nil {
		return ended(ctx, ctx.Err())
	}
	err = c.config.Engine.WatchRotation(ctx, view.ID, func(view engine.RotationView) error {
		return stream.Send(&keyturnv1.WatchRotationResponse{Rotation: rotationMessage(&view)})
	})
	return ended(ctx, err)
}

// Steer implements ControlService.
func (c Control) Steer(ctx context.Context, request *keyturnv1.SteerRequest) (*keyturnv1.SteerResponse, error) {
	if _, err := caller(ctx); err != nil {
		return nil, err
	}
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
