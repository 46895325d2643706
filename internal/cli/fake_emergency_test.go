package cli_test

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// oldEmergency is a group that shows everything there is to show.
func oldEmergency() *keyturnv1.Emergency {
	waits := oldRotation()
	waits.Kind, waits.Strategy, waits.Behind, waits.BehindTotal = "emergency", "contain-first", []string{"app-1", "app-2"}, 30
	done := &keyturnv1.Rotation{Id: strings.Repeat("d", 32), Key: "prod/web/api", Kind: "emergency", Phase: "done", From: 1, To: 2, StartedAt: at(-5), EndedAt: at(-1), Ended: true}
	return &keyturnv1.Emergency{
		Id: strings.Repeat("e", 32), Selector: "tier=1,team=orders", Reason: "the laptop was stolen", Actor: "admin", Strategy: "contain-first",
		StartedAt: at(-5), DeclaredAt: at(-5), Total: 3, Refused: 1, Held: 1, Failed: 1,
		Keys: []*keyturnv1.EmergencyKey{
			{Key: "prod/orders/db", Why: []string{"labels tier=1,team=orders"}, RotationId: waits.GetId(), Rotation: waits},
			{Key: "prod/orders/new", Why: []string{"labels tier=1,team=orders"}, RotationId: strings.Repeat("f", 32), Trouble: "not possible now: key prod/orders/new has no version that could be compromised"},
			{
				Key: "prod/web/api", Why: []string{"labels tier=1,team=orders"}, RotationId: done.GetId(), Rotation: done,
				RefusedAt: timestamppb.New(at(-5).AsTime().Add(1_234_000_000)),
			},
		},
	}
}

func (f *fake) DeclareEmergency(_ context.Context, request *keyturnv1.DeclareEmergencyRequest) (*keyturnv1.DeclareEmergencyResponse, error) {
	e := oldEmergency()
	switch {
	case request.GetSelector() == "team=nobody":
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no key fits labels team=nobody"))
	case request.GetHost() == "web-9":
		return declareByHost(request)
	case request.GetDryRun():
		return &keyturnv1.DeclareEmergencyResponse{Emergency: &keyturnv1.Emergency{Selector: request.GetSelector(), Total: 3, Keys: e.GetKeys()}}, nil
	case request.GetRequestId() == "":
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a command line sends a request ID"))
	case len(request.GetKeys()) != 0 && len(request.GetKeys()) != 3:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a command line sends what it has shown"))
	case request.GetSelector() == "team=well":
		e = wellEmergency(1)
	}
	return &keyturnv1.DeclareEmergencyResponse{Emergency: e}, nil
}

// declareByHost finds a key, and that not all is known.
func declareByHost(request *keyturnv1.DeclareEmergencyRequest) (*keyturnv1.DeclareEmergencyResponse, error) {
	e := wellEmergency(3)
	e.Host, e.CouldRead, e.Since, e.LookedFrom, e.LookedTo = "web-9", request.GetCouldRead(), request.GetSinceTime(), 12, 400
	if e.GetSince() == nil {
		e.Since = timestamppb.New(noon().Add(-request.GetSince().AsDuration()))
	}
	e.Incomplete = []string{"the audit log begins at 2026-11-22T12:00:00Z: what was read before is not known"}
	e.Keys[0].Why = []string{"entry 17, 2026-11-23T09:30:00Z: v1 read by web-9"}
	if !request.GetDryRun() && !request.GetAcceptIncomplete() {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("not all that was read is known: "+e.GetIncomplete()[0]))
	}
	return &keyturnv1.DeclareEmergencyResponse{Emergency: e}, nil
}

// wellEmergency goes from step 1 to 3.
func wellEmergency(step int) *keyturnv1.Emergency {
	e := oldEmergency()
	k := proto.CloneOf(e.GetKeys()[2])
	e.Id, e.Selector, e.Total, e.Held, e.Failed, e.Keys = strings.Repeat("a", 32), "team=well", 1, 0, 0, []*keyturnv1.EmergencyKey{k}
	if step < 3 {
		k.Rotation.Ended, k.Rotation.EndedAt, k.Rotation.Phase = false, nil, "quarantine"
	}
	if step < 2 {
		k.Rotation.Phase, k.RefusedAt, e.Refused = "accepting", nil, 0
	}
	e.Ended, e.RefusedAt = step == 3, k.GetRefusedAt()
	return e
}

func (f *fake) ListEmergencies(context.Context, *keyturnv1.ListEmergenciesRequest) (*keyturnv1.ListEmergenciesResponse, error) {
	return &keyturnv1.ListEmergenciesResponse{Emergencies: []*keyturnv1.Emergency{wellEmergency(3), oldEmergency()}}, nil
}

func (f *fake) GetEmergency(_ context.Context, request *keyturnv1.GetEmergencyRequest) (*keyturnv1.GetEmergencyResponse, error) {
	if !strings.HasPrefix(oldEmergency().GetId(), request.GetId()) {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no emergency begins with "+request.GetId()))
	}
	return &keyturnv1.GetEmergencyResponse{Emergency: oldEmergency()}, nil
}

func (f *fake) WatchEmergency(_ context.Context, request *keyturnv1.WatchEmergencyRequest, stream *connect.ServerStream[keyturnv1.WatchEmergencyResponse]) error {
	if strings.HasPrefix(oldEmergency().GetId(), request.GetId()) {
		e := oldEmergency()
		e.Ended = true
		return stream.Send(&keyturnv1.WatchEmergencyResponse{Emergency: e})
	}
	for step := 1; step <= 3; step++ {
		if err := stream.Send(&keyturnv1.WatchEmergencyResponse{Emergency: wellEmergency(step)}); err != nil {
			return err
		}
	}
	return nil
}
