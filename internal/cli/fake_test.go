package cli_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/policy"
)

// The tokens that the fake knows.
const (
	adminToken  = "kt-admin-0123456789"
	viewerToken = "kt-viewer-0123456789"
)

// noon is the time of every test.
func noon() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

func at(minutes int) *timestamppb.Timestamp {
	return timestamppb.New(noon().Add(time.Duration(minutes) * time.Minute))
}

// fake is a control API in memory. What a rotation of a key does depends on the
// key's name.
type fake struct {
	keyturnv1connect.UnimplementedControlServiceHandler
	log *memoryLog

	mu        sync.Mutex
	resources []policy.Resource
	rotations []*keyturnv1.Rotation
	requests  map[string]string
	calls     []string
	broken    bool
	resumed   chan struct{}
	// failures are returned by calls of a method, one each.
	failures map[string][]error
	// lose is a method whose next answer is lost on the way.
	lose string
}

// startFake starts a fake behind TLS, and returns its address and CA file.
func startFake(t testing.TB, dir string) (f *fake, address, caCert string) {
	t.Helper()
	f = &fake{log: newMemoryLog(t), requests: map[string]string{}, resumed: make(chan struct{}), failures: map[string][]error{}}
	mux := http.NewServeMux()
	path, handler := keyturnv1connect.NewControlServiceHandler(f, connect.WithInterceptors(intercept{f}))
	mux.Handle(path, handler)
	f.serveAPIKeys(mux)
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	caCert = filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(caCert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return f, server.URL, caCert
}

// intercept authorises callers, counts calls, and returns the failures asked for.
type intercept struct{ f *fake }

func (i intercept) admit(header http.Header, procedure string) error {
	method := procedure[strings.LastIndex(procedure, "/")+1:]
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	i.f.calls = append(i.f.calls, method)
	if list := i.f.failures[method]; len(list) > 0 {
		i.f.failures[method] = list[1:]
		return list[0]
	}
	switch token := strings.TrimPrefix(header.Get("Authorization"), "Bearer "); {
	case token == adminToken:
	case token != viewerToken:
		return connect.NewError(connect.CodeUnauthenticated, errors.New("the token is unknown"))
	case !strings.HasPrefix(method, "List") && !strings.HasPrefix(method, "GetKey") && !strings.HasPrefix(method, "GetRot") && !strings.HasPrefix(method, "GetEm"):
		return connect.NewError(connect.CodePermissionDenied, errors.New("not allowed: role viewer may not do that"))
	}
	return nil
}

func (i intercept) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		if err := i.admit(request.Header(), request.Spec().Procedure); err != nil {
			return nil, err
		}
		response, err := next(ctx, request)
		i.f.mu.Lock()
		lost := i.f.lose != "" && strings.HasSuffix(request.Spec().Procedure, "/"+i.f.lose)
		if lost {
			i.f.lose = ""
		}
		i.f.mu.Unlock()
		if lost {
			panic(http.ErrAbortHandler)
		}
		return response, err
	}
}

func (i intercept) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i intercept) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		if err := i.admit(c.RequestHeader(), c.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, c)
	}
}

func (f *fake) Apply(_ context.Context, request *keyturnv1.ApplyRequest) (*keyturnv1.ApplyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &keyturnv1.ApplyResponse{}
	var problems policy.Problems
	var parsed []policy.Resource
	for _, d := range request.GetDocuments() {
		list, err := policy.Parse(d.GetName(), d.GetContent())
		parsed = append(parsed, list...)
		if found := policy.Problems(nil); errors.As(err, &found) {
			problems = append(problems, found...)
		}
	}
	problems = append(problems, policy.Lint(parsed, policy.LintOptions{Known: f.resources})...)
	for _, p := range problems {
		response.Problems = append(response.Problems, &keyturnv1.Problem{
			Severity: p.Severity.String(), Code: p.Code, File: p.File, Line: int32(p.Line), Column: int32(p.Col), Path: p.Path, Message: p.Message, Hint: p.Hint,
		})
	}
	if problems.Err() != nil {
		return response, nil
	}
	f.tryRules(request, parsed, response)
	for _, c := range policy.Diff(f.resources, parsed) {
		if c.Op == policy.Deleted && !request.GetPrune() {
			continue
		}
		change := &keyturnv1.Change{Action: c.Op.String(), Kind: c.Kind.String(), Name: c.Name}
		for _, field := range c.Fields {
			change.Fields = append(change.Fields, &keyturnv1.FieldChange{Path: field.Path, Old: field.Old, New: field.New})
		}
		response.Changes = append(response.Changes, change)
	}
	if !request.GetDryRun() {
		f.resources = parsed
	}
	return response, nil
}

func fakeKeys() []*keyturnv1.Key {
	return []*keyturnv1.Key{
		{
			Name: "prod/orders/db", Owner: "team-orders", Labels: map[string]string{"tier": "1", "app": "orders"}, Provider: "postgres", Policy: "database",
			Current: 2, CurrentSince: at(-90), NextRotation: at(60 * 24 * 3), RotationIds: []string{"0123456789abcdef0123456789abcdef"},
			Versions: []*keyturnv1.KeyVersion{
				{Number: 1, State: "deactivated", Label: "previous", CreatedAt: at(-60 * 24), Attributes: map[string]string{"username": "orders_a"}},
				{Number: 2, State: "active", Label: "current", CreatedAt: at(-90), Attributes: map[string]string{"username": "orders_b"}, RotationId: "0123456789abcdef0123456789abcdef"},
			},
		},
		{Name: "prod/web/\x1b[31mapi", Provider: "apikey", Policy: "default"},
	}
}

func (f *fake) ListKeys(_ context.Context, request *keyturnv1.ListKeysRequest) (*keyturnv1.ListKeysResponse, error) {
	// A page holds one key.
	for i, k := range fakeKeys() {
		if strings.HasPrefix(k.GetName(), request.GetPrefix()) && k.GetName() > request.GetPageToken() {
			response := &keyturnv1.ListKeysResponse{Keys: []*keyturnv1.Key{k}}
			if i == 0 {
				response.NextPageToken = k.GetName()
			}
			return response, nil
		}
	}
	return &keyturnv1.ListKeysResponse{}, nil
}

func (f *fake) GetKey(_ context.Context, request *keyturnv1.GetKeyRequest) (*keyturnv1.GetKeyResponse, error) {
	for _, k := range fakeKeys() {
		if k.GetName() == request.GetName() {
			return &keyturnv1.GetKeyResponse{Key: k}, nil
		}
	}
	if k := f.apiKey(request.GetName()); k != nil {
		return &keyturnv1.GetKeyResponse{Key: k}, nil
	}
	return nil, noKey(request.GetName())
}

func noKey(name string) error {
	return connect.NewError(connect.CodeNotFound, errors.New("there is no key "+name))
}

func (f *fake) GetSecret(_ context.Context, request *keyturnv1.GetSecretRequest) (*keyturnv1.GetSecretResponse, error) {
	switch {
	case strings.HasPrefix(request.GetName(), "partners/"):
		return revealAPIKey(request)
	case request.GetName() == "prod/blob":
		return &keyturnv1.GetSecretResponse{Version: 1, Secrets: map[string][]byte{"key": {0xff, 0x00}, "pem": []byte("-----\nx\n")}}, nil
	case request.GetName() != "prod/orders/db":
		return nil, noKey(request.GetName())
	case request.GetVersion() > 2:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("prod/orders/db has no version 7"))
	case request.GetVersion() == 1 || request.GetLabel() == "previous":
		return &keyturnv1.GetSecretResponse{Version: 1, Attributes: map[string]string{"username": "orders_a"}, Secrets: map[string][]byte{"password": []byte("old-pa55")}}, nil
	}
	return &keyturnv1.GetSecretResponse{Version: 2, Attributes: map[string]string{"username": "orders_b"}, Secrets: map[string][]byte{"password": []byte("s3cret-pa55")}}, nil
}

func (f *fake) Rotate(_ context.Context, request *keyturnv1.RotateRequest) (*keyturnv1.RotateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains([]string{"prod/orders/db", "prod/bad/canary", "prod/held/db", "prod/flaky/db", "partners/acme", "partners/new"}, request.GetName()) {
		return nil, noKey(request.GetName())
	}
	if request.GetRequestId() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a command line sends a request ID"))
	}
	id, twice := f.requests[request.GetRequestId()]
	if !twice {
		kind := "manual"
		if request.GetEmergency() {
			kind = "emergency"
		}
		id = strings.Repeat(string(rune('a'+len(f.rotations))), 32)
		f.rotations = append(f.rotations, &keyturnv1.Rotation{
			Id: id, Key: request.GetName(), Kind: kind, Phase: "planned", From: 2, To: 0, Reason: request.GetReason(), Actor: "user:admin",
			StartedAt: at(0), PhaseSince: at(0), Strategy: request.GetStrategy(),
		})
		f.requests[request.GetRequestId()] = id
	}
	return &keyturnv1.RotateResponse{RotationId: id}, nil
}

func (f *fake) Reconcile(_ context.Context, request *keyturnv1.ReconcileRequest) (*keyturnv1.ReconcileResponse, error) {
	if request.GetHow() != "replace" {
		return &keyturnv1.ReconcileResponse{}, nil
	}
	return &keyturnv1.ReconcileResponse{RotationId: oldRotation().GetId()}, nil
}

func (f *fake) Rollback(_ context.Context, request *keyturnv1.RollbackRequest) (*keyturnv1.RollbackResponse, error) {
	if request.GetRotationId() != oldRotation().GetId()[:12] {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the rotation cannot be rolled back any more: version 1 is destroyed"))
	}
	return &keyturnv1.RollbackResponse{RotationId: oldRotation().GetId()}, nil
}

// oldRotation is one that shows everything there is to show.
func oldRotation() *keyturnv1.Rotation {
	return &keyturnv1.Rotation{
		Id: "0123456789abcdef0123456789abcdef", Key: "prod/orders/db", Kind: "scheduled", Phase: "draining", From: 1, To: 2,
		Reason: "due", Actor: "server", StartedAt: at(-95), PhaseSince: at(-90), CutOverAt: at(-90),
		Hold:    &keyturnv1.Hold{Reason: "drain-too-long", Message: "version 1 is still used after 1h", Human: true, Since: at(-30)},
		Waiting: []*keyturnv1.Waiting{{Reason: "in-use", Message: "version 1 is used by", Region: "eu", Names: []string{"web-1", "web-2"}, Total: 5}},
		Holders: []*keyturnv1.Holder{{Endpoint: "primary", Address: "10.0.0.7", Application: "orders", Sessions: 3}}, MeasuredAt: at(-1),
		Stages:    []*keyturnv1.StageProgress{{Name: "canary", State: "passed", Presenters: 2, Acknowledged: 2}, {Name: "rest", State: "baking", Presenters: 10, Acknowledged: 9, BakeEndsAt: at(2)}},
		Approvals: []string{"alice", "bob"},
		Regions: []*keyturnv1.RegionProgress{
			{Region: "", Verifiers: 0, Presenters: 1, Using: 1},
			{Region: "eu", Verifiers: 1, Accepting: 1, Presenters: 9, Using: 7, LatePresenters: 2, LateSince: at(-90), OldUses: 3},
			{Region: "us", Verifiers: 1, Accepting: 1, Presenters: 2, Using: 2, LateVerifiers: 1, LateSince: at(-1), Trouble: "no route"},
		},
	}
}

func (f *fake) all() []*keyturnv1.Rotation {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []*keyturnv1.Rotation{oldRotation()}
	for _, r := range f.rotations {
		list = append([]*keyturnv1.Rotation{r}, list...)
	}
	return list
}

func (f *fake) find(id string) (*keyturnv1.Rotation, error) {
	for _, r := range f.all() {
		if strings.HasPrefix(r.GetId(), id) && id != "" {
			return r, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("no rotation begins with "+id+"; see keyturn rotation list"))
}

func (f *fake) ListRotations(_ context.Context, request *keyturnv1.ListRotationsRequest) (*keyturnv1.ListRotationsResponse, error) {
	response := &keyturnv1.ListRotationsResponse{}
	for _, r := range f.all() {
		if (request.GetKey() == "" || r.GetKey() == request.GetKey()) && (!request.GetOpenOnly() || !r.GetEnded()) {
			response.Rotations = append(response.Rotations, r)
		}
	}
	return response, nil
}

func (f *fake) GetRotation(_ context.Context, request *keyturnv1.GetRotationRequest) (*keyturnv1.GetRotationResponse, error) {
	r, err := f.find(request.GetId())
	if err != nil {
		return nil, err
	}
	entries := []*keyturnv1.TimelineEntry{
		{At: at(-95), Event: "rotation.begun", Message: "scheduled"},
		{At: at(-94), Event: "rotation.phase", Message: "planned → minting"},
	}
	if r.GetKey() == "prod/bad/canary" {
		entries = append(entries,
			&keyturnv1.TimelineEntry{At: at(-93), Event: "rotation.phase", Message: "presenting → rolling-back: 3 authentication failures in stage canary, at most 0 are allowed"},
			&keyturnv1.TimelineEntry{At: at(-92), Event: "rotation.phase", Message: "rolling-back → rolled-back: 3 authentication failures in stage canary, at most 0 are allowed"})
	}
	return &keyturnv1.GetRotationResponse{Rotation: r, Timeline: entries}, nil
}

// story is what happens to a rotation, state by state.
func story(r *keyturnv1.Rotation) []*keyturnv1.Rotation {
	var list []*keyturnv1.Rotation
	current := proto.Clone(r).(*keyturnv1.Rotation)
	add := func(phase string, change func(*keyturnv1.Rotation)) {
		current.Phase = phase
		if change != nil {
			change(current)
		}
		list = append(list, proto.Clone(current).(*keyturnv1.Rotation))
	}
	stage := func(acknowledged int32, state string) func(*keyturnv1.Rotation) {
		return func(r *keyturnv1.Rotation) {
			r.Stage = "canary"
			r.Stages = []*keyturnv1.StageProgress{{Name: "canary", State: state, Presenters: 2, Acknowledged: acknowledged}}
			if state == "baking" {
				r.Stages[0].BakeEndsAt = at(2)
			}
		}
	}
	add("planned", nil)
	add("minting", nil)
	add("accepting", func(r *keyturnv1.Rotation) {
		r.To = 3
		r.Waiting = []*keyturnv1.Waiting{{Message: "verifiers have not acknowledged", Names: []string{"primary"}, Total: 1}}
	})
	add("presenting", func(r *keyturnv1.Rotation) { r.Waiting = nil; stage(0, "presenting")(r) })
	add("presenting", stage(2, "baking"))
	if r.GetKey() == "prod/bad/canary" {
		add("rolling-back", func(r *keyturnv1.Rotation) { r.Stage = "" })
		add("rolled-back", func(r *keyturnv1.Rotation) { r.Ended, r.EndedAt = true, at(1) })
		return list
	}
	if r.GetKey() == "prod/held/db" {
		add("presenting", func(r *keyturnv1.Rotation) {
			r.Hold = &keyturnv1.Hold{Reason: "stage-empty", Message: "no party belongs to stage rest", Human: true, Since: at(0)}
		})
	}
	add("draining", func(r *keyturnv1.Rotation) {
		r.Hold, r.Stage, r.CutOverAt = nil, "", at(3)
		r.Holders = []*keyturnv1.Holder{{Endpoint: "primary", Address: "10.0.0.7", Application: "orders", Sessions: 1}}
	})
	add("revoking", nil)
	add("quarantine", func(r *keyturnv1.Rotation) { r.Holders = nil })
	add("destroying", nil)
	add("done", func(r *keyturnv1.Rotation) { r.Ended, r.EndedAt = true, at(9) })
	return list
}

func (f *fake) WatchRotation(ctx context.Context, request *keyturnv1.WatchRotationRequest, stream *connect.ServerStream[keyturnv1.WatchRotationResponse]) error {
	r, err := f.find(request.GetId())
	if err != nil {
		return err
	}
	if r.GetId() == oldRotation().GetId() {
		r.Phase, r.Ended = "rolled-back", true
		return stream.Send(&keyturnv1.WatchRotationResponse{Rotation: r})
	}
	for i, state := range story(r) {
		if err := stream.Send(&keyturnv1.WatchRotationResponse{Rotation: state}); err != nil {
			return err
		}
		if state.GetHold() != nil {
			select {
			case <-f.resumed:
			case <-early(ctx):
				return context.DeadlineExceeded
			}
		}
		f.mu.Lock()
		breaks := r.GetKey() == "prod/flaky/db" && i == 3 && !f.broken
		f.broken = f.broken || breaks
		f.mu.Unlock()
		if breaks {
			return connect.NewError(connect.CodeUnavailable, errors.New("the server stops"))
		}
	}
	return nil
}

// early ends a moment before ctx does: a server may notice a deadline first.
func early(ctx context.Context) <-chan struct{} {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx.Done()
	}
	ctx, cancel := context.WithDeadline(ctx, deadline.Add(-20*time.Millisecond))
	context.AfterFunc(ctx, cancel)
	return ctx.Done()
}

func (f *fake) Steer(_ context.Context, request *keyturnv1.SteerRequest) (*keyturnv1.SteerResponse, error) {
	r, err := f.find(request.GetRotationId())
	if err != nil {
		return nil, err
	}
	if request.GetAction() == keyturnv1.SteerAction_STEER_ACTION_APPROVE {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the rotation needs no approval"))
	}
	if request.GetAction() == keyturnv1.SteerAction_STEER_ACTION_RESUME && r.GetKey() == "prod/held/db" {
		close(f.resumed)
	}
	return &keyturnv1.SteerResponse{}, nil
}

func (f *fake) Plan(_ context.Context, request *keyturnv1.PlanRequest) (*keyturnv1.PlanResponse, error) {
	if request.GetName() != "prod/orders/db" && request.GetName() != "prod/bad/canary" {
		return nil, noKey(request.GetName())
	}
	response := &keyturnv1.PlanResponse{Steps: []*keyturnv1.PlanStep{
		{Phase: "planned", Earliest: at(0), Lasts: durationpb.New(0), Message: "check windows, freezes and the system"},
		{Phase: "presenting", Stage: "canary", Earliest: at(0), Lasts: durationpb.New(2 * time.Minute), Message: "parties use the new version", Names: []string{"web-1", "web-2"}, Total: 7},
		{Phase: "quarantine", Earliest: at(2), Lasts: durationpb.New(24 * time.Hour), Message: "the old version can be restored in one step"},
	}}
	if request.GetName() == "prod/bad/canary" {
		response.Problems = []*keyturnv1.Problem{{Severity: "error", Code: "no-stage", File: "policy.yaml", Line: 4, Column: 3, Path: "spec.stages", Message: "2 parties belong to no stage", Hint: "add a final stage without match"}}
	}
	return response, nil
}

func (f *fake) ListParties(context.Context, *keyturnv1.ListPartiesRequest) (*keyturnv1.ListPartiesResponse, error) {
	return &keyturnv1.ListPartiesResponse{Parties: []*keyturnv1.PartyStatus{
		{
			Party: &keyturnv1.Party{Id: "web-1", Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT, Region: "eu", Labels: map[string]string{"cohort": "canary"}}, Connected: true, LastSeen: at(0),
			Keys: []*keyturnv1.PartyKey{{Key: "prod/orders/db", Told: 3, Using: 2, Trouble: "health check failed: connection refused"}, {Key: "prod/web/api", Told: 1, Using: 1}},
		},
		{Party: &keyturnv1.Party{Id: "batch/7", Kind: keyturnv1.PartyKind_PARTY_KIND_CLIENT}, LastSeen: at(-5), Gateway: "eu"},
	}}, nil
}

func (f *fake) RemoveParty(_ context.Context, request *keyturnv1.RemovePartyRequest) (*keyturnv1.RemovePartyResponse, error) {
	if request.GetId() != "web-1" {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("there is no party "+request.GetId()))
	}
	return &keyturnv1.RemovePartyResponse{}, nil
}

func (f *fake) CreateToken(_ context.Context, request *keyturnv1.CreateTokenRequest) (*keyturnv1.CreateTokenResponse, error) {
	response := &keyturnv1.CreateTokenResponse{Id: "tok1", Token: "kt-new-" + request.GetRole() + "-" + request.GetParty().GetLabels()["cohort"]}
	if d := request.GetLifetime(); d != nil {
		response.ExpiresAt = timestamppb.New(noon().Add(d.AsDuration()))
	}
	return response, nil
}

func (f *fake) ListTokens(context.Context, *keyturnv1.ListTokensRequest) (*keyturnv1.ListTokensResponse, error) {
	return &keyturnv1.ListTokensResponse{Tokens: []*keyturnv1.Token{
		{Id: "tok0", Name: "root", Role: "admin", Keys: []string{"**"}, CreatedAt: at(-60), LastUsedAt: at(0)},
		{Id: "tok1", Name: "ci", Role: "operator", Keys: []string{"prod/**"}, CreatedAt: at(-60), ExpiresAt: at(60 * 24)},
	}}, nil
}

func (f *fake) RevokeToken(_ context.Context, request *keyturnv1.RevokeTokenRequest) (*keyturnv1.RevokeTokenResponse, error) {
	if request.GetId() != "tok1" {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("there is no token "+request.GetId()))
	}
	return &keyturnv1.RevokeTokenResponse{}, nil
}

func (f *fake) Doctor(context.Context, *keyturnv1.DoctorRequest) (*keyturnv1.DoctorResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &keyturnv1.DoctorResponse{Checks: []*keyturnv1.Check{
		{Name: "histories", Status: "ok", Message: "the histories of 2 keys lead to their states"},
		{Name: "held rotations", Status: "warning", Message: "1 rotations are on hold", Hint: "see keyturn rotation list --open"},
		{Name: "audit completeness", Status: "no-data", Message: "no rotation has moved yet"},
	}}
	if len(f.rotations) > 0 {
		response.Checks = append(response.Checks, &keyturnv1.Check{Name: "lockout", Status: "failed", Message: "web-1 presents version 1, which primary refuses"})
	}
	return response, nil
}

func (f *fake) ReadLog(ctx context.Context, request *keyturnv1.ReadLogRequest) (*keyturnv1.ReadLogResponse, error) {
	// A page looks at three entries.
	records, size, err := f.log.Records(ctx, request.GetFrom(), min(int(request.GetLimit()), 3))
	response := &keyturnv1.ReadLogResponse{Next: request.GetFrom() + uint64(len(records)), Size: size}
	for _, r := range records {
		if bytes.Contains(r, []byte(`"key":"`+request.GetKey())) || request.GetKey() == "" {
			response.Entries = append(response.Entries, string(r))
		}
	}
	return response, err
}

func (f *fake) ExportLog(ctx context.Context, _ *keyturnv1.ExportLogRequest, stream *connect.ServerStream[keyturnv1.ExportLogResponse]) error {
	var b bytes.Buffer
	if err := f.log.export(ctx, &b); err != nil {
		return err
	}
	for piece := range slices.Chunk(b.Bytes(), 100) {
		if err := stream.Send(&keyturnv1.ExportLogResponse{Piece: piece}); err != nil {
			return err
		}
	}
	return nil
}

// SignEvidence signs with the key of the log.
func (f *fake) SignEvidence(_ context.Context, request *keyturnv1.SignEvidenceRequest) (*keyturnv1.SignEvidenceResponse, error) {
	kind := "rotation"
	if strings.HasPrefix(request.GetId(), "e") {
		kind = "emergency"
	}
	signed, err := audit.SignStatement(&audit.Statement{
		Origin: f.log.signer.Name(), Subject: kind + " " + request.GetId(), Digest: [sha256.Size]byte(request.GetManifestSha256()), At: noon(), Actor: audit.Actor{ID: "admin", Kind: "user"},
	}, f.log.signer)
	return &keyturnv1.SignEvidenceResponse{Note: signed}, err
}

// Backup sends pieces and a manifest; what is wrong with them depends on the first
// recipient.
func (f *fake) Backup(_ context.Context, request *keyturnv1.BackupRequest, stream *connect.ServerStream[keyturnv1.BackupResponse]) error {
	content := bytes.Repeat([]byte("sealed "), 100)
	sum := sha256.Sum256(content)
	manifest := &keyturnv1.BackupManifest{CreatedAt: at(0), Rows: 42, LogSize: 5, Bytes: int64(len(content)), Sha256: sum[:]}
	how := request.GetRecipients()[0]
	switch how {
	case "age1short":
		content = content[:400]
	case "age1altered":
		content[3] = 'x'
	case "age1nobody":
		return connect.NewError(connect.CodeInvalidArgument, errors.New("recipients: number 1 is none"))
	case "age1second":
		return connect.NewError(connect.CodeResourceExhausted, errors.New("a backup is under way already; wait for it"))
	}
	for piece := range slices.Chunk(content, 100) {
		if err := stream.Send(&keyturnv1.BackupResponse{Content: &keyturnv1.BackupResponse_Piece{Piece: piece}}); err != nil {
			return err
		}
	}
	switch how {
	case "age1endless":
		return nil
	case "age1stopped":
		return connect.NewError(connect.CodeUnavailable, errors.New("the server is stopping"))
	case "age1trailing":
		manifest.Bytes += 7
		if err := stream.Send(&keyturnv1.BackupResponse{Content: &keyturnv1.BackupResponse_Manifest{Manifest: manifest}}); err != nil {
			return err
		}
	}
	return stream.Send(&keyturnv1.BackupResponse{Content: &keyturnv1.BackupResponse_Manifest{Manifest: manifest}})
}
