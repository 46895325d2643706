package rpc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// Emergencies is what the transport needs of groups of emergencies.
type Emergencies interface {
	Find(ctx context.Context, actor audit.Actor, request emergency.Request) (emergency.Group, error)
	Declare(ctx context.Context, actor audit.Actor, request emergency.Request) (emergency.Group, error)
	Groups(ctx context.Context, after key.RotationID, limit int) ([]emergency.Group, error)
	Look(ctx context.Context, group emergency.Group) (emergency.View, error)
	View(ctx context.Context, id key.RotationID) (emergency.View, error)
	Watch(ctx context.Context, id key.RotationID, visit func(emergency.View) error) error
}

// DeclareEmergency implements ControlService.
func (c Control) DeclareEmergency(ctx context.Context, request *keyturnv1.DeclareEmergencyRequest) (*keyturnv1.DeclareEmergencyResponse, error) {
	principal, err := c.allow(ctx, authz.Operate, "")
	if err != nil {
		return nil, err
	}
	wanted, err := emergencyRequest(request)
	if err != nil {
		return nil, err
	}
	visible := visibleTo(principal)
	wanted.Visible = visible
	actor := actorOf(principal)
	if request.GetDryRun() {
		group, err := c.config.Emergencies.Find(ctx, actor, wanted)
		if err != nil {
			return nil, wire(err)
		}
		return &keyturnv1.DeclareEmergencyResponse{Emergency: emergencyMessage(&emergency.View{Group: group}, visible)}, nil
	}
	group, err := c.config.Emergencies.Declare(ctx, actor, wanted)
	if err != nil {
		return nil, wire(err)
	}
	view, err := c.config.Emergencies.Look(ctx, group)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.DeclareEmergencyResponse{Emergency: emergencyMessage(&view, visible)}, nil
}

// visibleTo reports which keys a principal's token covers; nil means all.
func visibleTo(principal authz.Principal) func(key.Name) bool {
	if coversAll(principal) {
		return nil
	}
	return func(name key.Name) bool { return authz.Covers(principal.Keys, name) }
}

func emergencyRequest(request *keyturnv1.DeclareEmergencyRequest) (emergency.Request, error) {
	wanted := emergency.Request{
		Selection: emergency.Selection{
			Selector: request.GetSelector(), ReadBy: request.GetReadBy(), Host: request.GetHost(), Address: request.GetAddress(), CouldRead: request.GetCouldRead(),
		},
		Reason: request.GetReason(), RequestID: request.GetRequestId(), Back: request.GetSince().AsDuration(), AcceptIncomplete: request.GetAcceptIncomplete(),
	}
	if request.GetSinceTime() != nil {
		wanted.Since = request.GetSinceTime().AsTime()
	}
	for _, text := range []struct {
		field, text string
		most        int
	}{
		{"reason", wanted.Reason, maxReason},
		{"request_id", wanted.RequestID, maxRequestID},
		{"read_by", wanted.ReadBy, engine.MaxPartyID},
		{"host", wanted.Host, engine.MaxPartyID},
		{"address", wanted.Address, engine.MaxPartyID},
	} {
		if err := checkText(text.field, text.text, text.most); err != nil {
			return wanted, err
		}
	}
	if err := wanted.Strategy.UnmarshalText([]byte(request.GetStrategy())); err != nil {
		return wanted, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("strategy: %q is unknown; use replace-first or contain-first", request.GetStrategy()))
	}
	if n := len(request.GetKeys()); n > emergency.MaxKeys {
		return wanted, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keys: %d are too many, at most %d are allowed", n, emergency.MaxKeys))
	}
	for _, text := range request.GetKeys() {
		name, err := parseKey("keys", text)
		if err != nil {
			return wanted, err
		}
		wanted.Keys = append(wanted.Keys, name)
	}
	return wanted, nil
}

// ListEmergencies implements ControlService.
func (c Control) ListEmergencies(ctx context.Context, request *keyturnv1.ListEmergenciesRequest) (*keyturnv1.ListEmergenciesResponse, error) {
	principal, err := c.allow(ctx, authz.Read, "")
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	// Every group may be large.
	limit = min(limit, maxGroups)
	after, err := afterID(request.GetPageToken())
	if err != nil {
		return nil, err
	}
	groups, err := c.config.Emergencies.Groups(ctx, after, limit)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.ListEmergenciesResponse{}
	visible := visibleTo(principal)
	for _, group := range groups {
		if !concerns(&group, visible) {
			continue
		}
		view, err := c.config.Emergencies.Look(ctx, group)
		if err != nil {
			return nil, wire(err)
		}
		message := emergencyMessage(&view, visible)
		message.Keys = nil
		response.Emergencies = append(response.Emergencies, message)
	}
	if len(groups) == limit {
		response.NextPageToken = groups[limit-1].ID.String()
	}
	return response, nil
}

// maxGroups is how many groups are listed at once.
const maxGroups = 20

// concerns reports whether any key of a group is visible.
func concerns(group *emergency.Group, visible func(key.Name) bool) bool {
	for i := range group.Members {
		if visible == nil || visible(group.Members[i].Key) {
			return true
		}
	}
	return false
}

// emergency finds a group by its ID, or by the beginning of one that is unique among
// the latest. Whose token covers none of its keys learns nothing of it.
func (c Control) emergency(ctx context.Context, text string) (emergency.View, authz.Principal, error) {
	principal, err := c.allow(ctx, authz.Read, "")
	if err != nil {
		return emergency.View{}, principal, err
	}
	visible := visibleTo(principal)
	id, parsed := key.ParseRotationID(text)
	if parsed == nil {
		view, err := c.config.Emergencies.View(ctx, id)
		if err == nil && !concerns(&view.Group, visible) {
			err = fmt.Errorf("%w: emergency %v; see keyturn emergency list", engine.ErrNotFound, id)
		}
		return view, principal, wire(err)
	}
	if !isBeginning(text) {
		return emergency.View{}, principal, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("id: %w; the first 4 or more digits of one suffice if they are unique", parsed))
	}
	groups, err := c.config.Emergencies.Groups(ctx, key.RotationID{}, defaultPage)
	if err != nil {
		return emergency.View{}, principal, wire(err)
	}
	var found []emergency.Group
	for _, group := range groups {
		if strings.HasPrefix(group.ID.String(), text) && concerns(&group, visible) {
			found = append(found, group)
		}
	}
	switch len(found) {
	case 1:
		view, err := c.config.Emergencies.Look(ctx, found[0])
		return view, principal, wire(err)
	case 0:
		return emergency.View{}, principal, connect.NewError(connect.CodeNotFound, fmt.Errorf("no emergency begins with %s; see keyturn emergency list", text))
	}
	return emergency.View{}, principal, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("id: %d emergencies begin with %s; write more digits", len(found), text))
}

// isBeginning reports whether a text may be the beginning of an ID.
func isBeginning(text string) bool {
	return len(text) >= 4 && len(text) < 32 && strings.Trim(text, "0123456789abcdef") == ""
}

// GetEmergency implements ControlService.
func (c Control) GetEmergency(ctx context.Context, request *keyturnv1.GetEmergencyRequest) (*keyturnv1.GetEmergencyResponse, error) {
	view, principal, err := c.emergency(ctx, request.GetId())
	if err != nil {
		return nil, err
	}
	return &keyturnv1.GetEmergencyResponse{Emergency: emergencyMessage(&view, visibleTo(principal))}, nil
}

// WatchEmergency implements ControlService.
func (c Control) WatchEmergency(ctx context.Context, request *keyturnv1.WatchEmergencyRequest, stream *connect.ServerStream[keyturnv1.WatchEmergencyResponse]) error {
	view, principal, err := c.emergency(ctx, request.GetId())
	if err != nil {
		return err
	}
	ctx, end := c.guard(ctx, principal.ID)
	defer end()
	if ctx.Err() != nil {
		return ended(ctx, ctx.Err())
	}
	visible := visibleTo(principal)
	err = c.config.Emergencies.Watch(ctx, view.ID, func(view emergency.View) error {
		return stream.Send(&keyturnv1.WatchEmergencyResponse{Emergency: emergencyMessage(&view, visible)})
	})
	return ended(ctx, err)
}

// emergencyMessage describes a group and those of its keys that are visible. Of the
// others it tells nothing, not even their number.
func emergencyMessage(view *emergency.View, visible func(key.Name) bool) *keyturnv1.Emergency {
	message := &keyturnv1.Emergency{
		Selector: view.Selector, ReadBy: view.ReadBy, Host: view.Host, Address: view.Address, Since: timestamp(view.Since), CouldRead: view.CouldRead,
		Reason: view.Reason, Actor: view.Actor, StartedAt: timestamp(view.Started), DeclaredAt: timestamp(view.Declared), Ended: view.Ended,
	}
	if !view.ID.IsZero() {
		message.Id = view.ID.String()
	}
	if view.Looked != nil {
		message.LookedFrom, message.LookedTo, message.Incomplete = view.Looked.From, view.Looked.To, view.Looked.Incomplete
	}
	if view.Strategy != 0 {
		message.Strategy = view.Strategy.String()
	}
	var last time.Time
	for i := range view.Members {
		member := &view.Members[i]
		if visible != nil && !visible(member.Key) {
			continue
		}
		k := &keyturnv1.EmergencyKey{Key: string(member.Key), Why: member.Why, Trouble: member.Trouble}
		message.Total++
		if member.Trouble != "" {
			message.Failed++
		}
		if !member.Rotation.IsZero() {
			k.RotationId = member.Rotation.String()
		}
		if i < len(view.Rotations) && view.Rotations[i] != nil {
			r := view.Rotations[i]
			k.Rotation, k.RefusedAt = rotationMessage(r), timestamp(r.RefusedAt)
			if r.Hold.Human && !r.Ended() {
				message.Held++
			}
			if !r.RefusedAt.IsZero() {
				message.Refused++
				if r.RefusedAt.After(last) {
					last = r.RefusedAt
				}
			}
		}
		message.Keys = append(message.Keys, k)
	}
	if message.GetTotal() > 0 && message.GetRefused() == message.GetTotal() {
		message.RefusedAt = timestamp(last)
	}
	return message
}
