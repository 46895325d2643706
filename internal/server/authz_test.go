package server_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

// first is the error of a stream's first answer.
func first[T any](stream *connect.ServerStreamForClient[T], err error) error {
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	if stream.Receive() {
		return nil
	}
	return stream.Err()
}

// TestWhoMayCallWhat states who may call every procedure of the API, for a key
// that the token covers and one that it does not. A procedure without a row fails
// the test.
func TestWhoMayCallWhat(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	ctx := t.Context()
	rotation := func(name string) string {
		answer, err := w.control(w.root).Rotate(ctx, &keyturnv1.RotateRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return answer.GetRotationId()
	}
	rotations := map[string]string{"prod/db": rotation("prod/db"), "dev/db": rotation("dev/db")}

	type control = keyturnv1connect.ControlServiceClient
	type delivery struct {
		keyturnv1connect.DeliveryServiceClient
		keyturnv1connect.GatewayServiceClient
	}
	deliveryOf := func(token string) delivery { return delivery{w.delivery(token), w.gateway(token)} }
	rows := []struct {
		procedure string
		// roles that may call it for covered keys; whether a key decides.
		roles string
		keyed bool
		call  func(c control, d delivery, name string) error
	}{
		{"Apply", "admin operator", false, func(c control, _ delivery, _ string) error {
			_, err := c.Apply(ctx, &keyturnv1.ApplyRequest{})
			return err
		}},
		{"ListKeys", "admin operator approver viewer", false, func(c control, _ delivery, _ string) error {
			_, err := c.ListKeys(ctx, &keyturnv1.ListKeysRequest{})
			return err
		}},
		{"GetKey", "admin operator approver viewer", true, func(c control, _ delivery, name string) error {
			_, err := c.GetKey(ctx, &keyturnv1.GetKeyRequest{Name: name})
			return err
		}},
		{"GetSecret", "admin agent", true, func(c control, _ delivery, name string) error {
			_, err := c.GetSecret(ctx, &keyturnv1.GetSecretRequest{Name: name, Version: 99})
			return err
		}},
		{"Rotate", "admin operator", true, func(c control, _ delivery, name string) error {
			_, err := c.Rotate(ctx, &keyturnv1.RotateRequest{Name: name, Strategy: "nonsense"})
			return err
		}},
		{"Reconcile", "admin operator", true, func(c control, _ delivery, name string) error {
			_, err := c.Reconcile(ctx, &keyturnv1.ReconcileRequest{Name: name, How: "guess"})
			return err
		}},
		{"Rollback", "admin operator", true, func(c control, _ delivery, name string) error {
			_, err := c.Rollback(ctx, &keyturnv1.RollbackRequest{RotationId: rotations[name], Reason: strings.Repeat("x", 1001)})
			return err
		}},
		{"ListRotations", "admin operator approver viewer", false, func(c control, _ delivery, _ string) error {
			_, err := c.ListRotations(ctx, &keyturnv1.ListRotationsRequest{})
			return err
		}},
		{"GetRotation", "admin operator approver viewer", true, func(c control, _ delivery, name string) error {
			_, err := c.GetRotation(ctx, &keyturnv1.GetRotationRequest{Id: rotations[name]})
			return err
		}},
		{"WatchRotation", "admin operator approver viewer", true, func(c control, _ delivery, name string) error {
			return first(c.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: rotations[name]}))
		}},
		{"Steer", "admin operator", true, func(c control, _ delivery, name string) error {
			_, err := c.Steer(ctx, &keyturnv1.SteerRequest{RotationId: rotations[name], Action: keyturnv1.SteerAction_STEER_ACTION_PAUSE, Reason: strings.Repeat("x", 1001)})
			return err
		}},
		{"Steer", "admin approver", true, func(c control, _ delivery, name string) error {
			_, err := c.Steer(ctx, &keyturnv1.SteerRequest{RotationId: rotations[name], Action: keyturnv1.SteerAction_STEER_ACTION_APPROVE, Reason: strings.Repeat("x", 1001)})
			return err
		}},
		{"Plan", "admin operator approver viewer", true, func(c control, _ delivery, name string) error {
			_, err := c.Plan(ctx, &keyturnv1.PlanRequest{Name: name})
			return err
		}},
		{"ListParties", "admin operator approver viewer", true, func(c control, _ delivery, name string) error {
			_, err := c.ListParties(ctx, &keyturnv1.ListPartiesRequest{Key: name})
			return err
		}},
		{"RemoveParty", "admin operator", false, func(c control, _ delivery, _ string) error {
			_, err := c.RemoveParty(ctx, &keyturnv1.RemovePartyRequest{Id: "nobody"})
			return err
		}},
		{"CreateToken", "admin", false, func(c control, _ delivery, _ string) error {
			_, err := c.CreateToken(ctx, &keyturnv1.CreateTokenRequest{Role: "nonsense"})
			return err
		}},
		{"ListTokens", "admin", false, func(c control, _ delivery, _ string) error {
			_, err := c.ListTokens(ctx, &keyturnv1.ListTokensRequest{})
			return err
		}},
		{"RevokeToken", "admin", false, func(c control, _ delivery, _ string) error {
			_, err := c.RevokeToken(ctx, &keyturnv1.RevokeTokenRequest{Id: "nonsense"})
			return err
		}},
		{"ReadLog", "admin operator approver viewer", true, func(c control, _ delivery, name string) error {
			_, err := c.ReadLog(ctx, &keyturnv1.ReadLogRequest{Key: name})
			return err
		}},
		{"DeclareEmergency", "admin operator", false, func(c control, _ delivery, _ string) error {
			_, err := c.DeclareEmergency(ctx, &keyturnv1.DeclareEmergencyRequest{Selector: "none=such", DryRun: true})
			return err
		}},
		{"ListEmergencies", "admin operator approver viewer", false, func(c control, _ delivery, _ string) error {
			_, err := c.ListEmergencies(ctx, &keyturnv1.ListEmergenciesRequest{})
			return err
		}},
		{"GetEmergency", "admin operator approver viewer", false, func(c control, _ delivery, _ string) error {
			_, err := c.GetEmergency(ctx, &keyturnv1.GetEmergencyRequest{Id: "ffff"})
			return err
		}},
		{"WatchEmergency", "admin operator approver viewer", false, func(c control, _ delivery, _ string) error {
			return first(c.WatchEmergency(ctx, &keyturnv1.WatchEmergencyRequest{Id: "ffff"}))
		}},
		// What tells of all keys needs a token that covers all.
		{"ExportLog", "", false, func(c control, _ delivery, _ string) error {
			return first(c.ExportLog(ctx, &keyturnv1.ExportLogRequest{}))
		}},
		{"SignEvidence", "", false, func(c control, _ delivery, _ string) error {
			_, err := c.SignEvidence(ctx, &keyturnv1.SignEvidenceRequest{Id: "nonsense"})
			return err
		}},
		{"Backup", "", false, func(c control, _ delivery, _ string) error {
			return first(c.Backup(ctx, &keyturnv1.BackupRequest{}))
		}},
		{"Doctor", "", false, func(c control, _ delivery, _ string) error {
			_, err := c.Doctor(ctx, &keyturnv1.DoctorRequest{})
			return err
		}},
		{"Watch", "admin agent gateway", true, func(_ control, d delivery, name string) error {
			return first(d.Watch(ctx, watchOf("me", name)))
		}},
		{"Poll", "admin agent gateway", true, func(_ control, d delivery, name string) error {
			request := watchOf("me", name)
			_, err := d.Poll(ctx, &keyturnv1.PollRequest{Party: request.GetParty(), Keys: request.GetKeys()})
			return err
		}},
		{"Ack", "admin agent gateway", true, func(_ control, d delivery, name string) error {
			_, err := d.Ack(ctx, &keyturnv1.AckRequest{PartyId: "me", Outcomes: []*keyturnv1.Outcome{{Key: name, Epoch: 99, Code: keyturnv1.OutcomeCode_OUTCOME_CODE_FAILED}}})
			return err
		}},
		{"Report", "admin agent gateway", true, func(_ control, d delivery, name string) error {
			_, err := d.Report(ctx, &keyturnv1.ReportRequest{PartyId: "me", Samples: []*keyturnv1.Sample{{Key: name, Healthy: true}}})
			return err
		}},
		{"Handouts", "admin gateway", true, func(_ control, d delivery, name string) error {
			_, err := d.Handouts(ctx, &keyturnv1.HandoutsRequest{PartyId: "me", Handouts: []*keyturnv1.Handout{{PartyId: "web", Key: name, Version: 1, ClientAddress: "10.0.3.7", Count: 1}}})
			return err
		}},
		{"ListLeaks", "admin operator approver viewer", false, func(c control, _ delivery, _ string) error {
			_, err := c.ListLeaks(ctx, &keyturnv1.ListLeaksRequest{})
			return err
		}},
		{"MatchLeaks", "admin scanner", false, func(c control, _ delivery, _ string) error {
			_, err := c.MatchLeaks(ctx, &keyturnv1.MatchLeaksRequest{Candidates: []*keyturnv1.LeakCandidate{{Text: []byte("not-a-secret-of-ours"), Place: "a test"}}})
			return err
		}},
		{"ListRules", "admin operator approver viewer", false, func(c control, _ delivery, _ string) error {
			_, err := c.ListRules(ctx, &keyturnv1.ListRulesRequest{})
			return err
		}},
		{"GetLearned", "admin operator approver viewer", true, func(c control, _ delivery, name string) error {
			_, err := c.GetLearned(ctx, &keyturnv1.GetLearnedRequest{Name: name})
			return err
		}},
		{"ChangeLearned", "admin operator", true, func(c control, _ delivery, name string) error {
			_, err := c.ChangeLearned(ctx, &keyturnv1.ChangeLearnedRequest{Name: name, Forget: true, All: true})
			return err
		}},
		{"Leave", "admin agent gateway", false, func(_ control, d delivery, _ string) error {
			_, err := d.Leave(ctx, &keyturnv1.LeaveRequest{PartyId: "me"})
			return err
		}},
	}
	roles := []string{"admin", "operator", "approver", "viewer", "agent", "join", "verifier", "scanner", "gateway"}
	tokens := map[string]string{}
	for _, role := range roles {
		token, err := w.control(w.root).CreateToken(ctx, &keyturnv1.CreateTokenRequest{Name: "me", Role: role, Keys: []string{"dev/**"}})
		if err != nil {
			t.Fatal(err)
		}
		tokens[role] = token.GetToken()
	}
	covered := map[string]bool{}
	for _, row := range rows {
		covered[row.procedure] = true
		for _, role := range roles {
			c, d := w.control(tokens[role]), deliveryOf(tokens[role])
			may := slices.Contains(strings.Fields(row.roles), role)
			if err := row.call(c, d, "dev/db"); (connect.CodeOf(err) == connect.CodePermissionDenied) == may {
				t.Errorf("%s by %s for a key it covers: %v", row.procedure, role, err)
			}
			if !row.keyed {
				continue
			}
			err := row.call(c, d, "prod/db")
			// Of rotations of keys that it does not cover a token learns nothing at all.
			hidden := connect.CodeOf(err) == connect.CodeNotFound && strings.Contains(row.procedure, "Rotation") || row.procedure == "Steer" || row.procedure == "Rollback"
			if connect.CodeOf(err) != connect.CodePermissionDenied && !hidden || err == nil {
				t.Errorf("%s by %s for a key it does not cover: %v", row.procedure, role, err)
			}
			if err != nil && strings.Contains(row.procedure, "Rotation") && strings.Contains(err.Error(), "prod/db") {
				t.Errorf("%s by %s tells of the key: %v", row.procedure, role, err)
			}
		}
		for _, token := range []string{"", "nonsense"} {
			if err := row.call(w.control(token), deliveryOf(token), "dev/db"); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("%s with token %q: %v", row.procedure, token, err)
			}
		}
	}
	for _, row := range rows {
		if err := row.call(w.control(w.root), deliveryOf(w.root), "prod/db"); connect.CodeOf(err) == connect.CodePermissionDenied {
			t.Errorf("%s by root: %v", row.procedure, err)
		}
	}
	for _, methods := range methodNames() {
		if !covered[methods] && methods != "Join" {
			t.Errorf("procedure %s has no row in this test", methods)
		}
	}
}

func methodNames() []string {
	var names []string
	for _, service := range []protoreflect.ServiceDescriptor{
		keyturnv1.File_keyturn_v1_control_proto.Services().ByName("ControlService"),
		keyturnv1.File_keyturn_v1_delivery_proto.Services().ByName("DeliveryService"),
		keyturnv1.File_keyturn_v1_gateway_proto.Services().ByName("GatewayService"),
	} {
		for i := range service.Methods().Len() {
			names = append(names, string(service.Methods().Get(i).Name()))
		}
	}
	return names
}

// TestNothingShowsKeysThatATokenDoesNotCover reads all there is with a token for
// dev/** and looks for any word of prod.
func TestNothingShowsKeysThatATokenDoesNotCover(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	ctx := t.Context()
	for _, name := range []string{"prod/db", "dev/db"} {
		if _, err := w.control(w.root).Rotate(ctx, &keyturnv1.RotateRequest{Name: name, Reason: name}); err != nil {
			t.Fatal(err)
		}
	}
	for id, keys := range map[string][]string{"prodweb": {"prod/db"}, "both": {"prod/db", "dev/db"}, "devweb": {"dev/db"}} {
		if _, err := w.watched(t, ctx, w.root, watchOf(id, keys...)); err != nil {
			t.Fatal(err)
		}
	}
	viewer, operator, admin := w.control(w.token(t, "v", "viewer", "dev/**")), w.control(w.token(t, "o", "operator", "dev/**")), w.control(w.token(t, "a", "admin", "dev/**"))
	reads := map[string]func() (any, error){
		"ListKeys":      func() (any, error) { return viewer.ListKeys(ctx, &keyturnv1.ListKeysRequest{PageSize: 1}) },
		"ListRotations": func() (any, error) { return viewer.ListRotations(ctx, &keyturnv1.ListRotationsRequest{}) },
		"ListParties":   func() (any, error) { return viewer.ListParties(ctx, &keyturnv1.ListPartiesRequest{}) },
		"ReadLog":       func() (any, error) { return viewer.ReadLog(ctx, &keyturnv1.ReadLogRequest{}) },
		"ListTokens":    func() (any, error) { return admin.ListTokens(ctx, &keyturnv1.ListTokensRequest{}) },
		"Apply": func() (any, error) {
			return operator.Apply(ctx, &keyturnv1.ApplyRequest{DryRun: true, Prune: true, Documents: []*keyturnv1.Document{{Name: "x.yaml", Content: []byte("apiVersion: keyturn/v1\nkind: Key\nmetadata: {name: dev/db}\nspec: {provider: memory, policy: dev-only}\n")}}})
		},
	}
	for name, read := range reads {
		answer, err := read()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "prod") {
			t.Errorf("%s shows %s", name, text)
		}
		if !strings.Contains(string(text), "dev") {
			t.Errorf("%s shows nothing: %s", name, text)
		}
	}
	// The dry run of a document about the key must not show what it is like either.
	answer := w.apply(t, w.token(t, "o2", "operator", "dev/**"), "apiVersion: keyturn/v1\nkind: Key\nmetadata: {name: prod/db}\nspec: {provider: memory, policy: dev-only}\n")
	text, err := json.Marshal(answer)
	if err != nil || strings.Contains(string(text), "prodname") || !strings.Contains(string(text), "not-allowed") {
		t.Errorf("%s, %v", text, err)
	}
}

// Policies and freezes reach beyond the keys that somebody may write.
func TestRulesAreForThoseWhoCoverAllThatTheyConcern(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	operator := w.token(t, "o", "operator", "dev/**")
	tests := []struct{ source, code string }{
		{"kind: Policy\nmetadata: {name: quick}\nspec: {quarantine: 2h}\n", "not-allowed"},
		{"kind: Policy\nmetadata: {name: dev-only}\nspec: {quarantine: 2h}\n", ""},
		{"kind: Freeze\nmetadata: {name: all}\nspec: {from: 2026-01-01T00:00:00Z, to: 2126-01-01T00:00:00Z, reason: test}\n", "not-allowed"},
		{"kind: Freeze\nmetadata: {name: dev}\nspec: {from: 2026-01-01T00:00:00Z, to: 2126-01-01T00:00:00Z, reason: test, match: 'key.name.startsWith(\"dev/\")'}\n", ""},
	}
	for _, test := range tests {
		codes := ""
		for _, p := range w.apply(t, operator, "apiVersion: keyturn/v1\n"+test.source).GetProblems() {
			if p.GetSeverity() == "error" {
				codes += p.GetCode()
			}
		}
		if codes != test.code {
			t.Errorf("%s: got %q, want %q", test.source, codes, test.code)
		}
	}
}

// A token for some keys must not reach a party that presents others, whatever
// the names of token and party are.
func TestPartiesOfOtherKeysAreOutOfReach(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	ctx := t.Context()
	if _, err := w.watched(t, ctx, w.root, watchOf("prodweb", "prod/db")); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"agent", "admin"} {
		token := w.token(t, "prodweb", role, "dev/**")
		_, err := w.watched(t, ctx, token, watchOf("prodweb", "dev/db"))
		wantCode(t, role+" takes its place", err, connect.CodePermissionDenied)
		_, err = w.delivery(token).Leave(ctx, &keyturnv1.LeaveRequest{PartyId: "prodweb"})
		wantCode(t, role+" makes it leave", err, connect.CodePermissionDenied)
	}
	_, err := w.control(w.token(t, "o", "operator", "dev/**")).RemoveParty(ctx, &keyturnv1.RemovePartyRequest{Id: "prodweb"})
	wantCode(t, "an operator of others removes it", err, connect.CodePermissionDenied)
	_, err = w.watched(t, ctx, w.token(t, "web", "agent", "prod/**"), watchOf("prodweb", "prod/db"))
	wantCode(t, "an agent of another name", err, connect.CodePermissionDenied)
	_, err = w.control(w.token(t, "o3", "operator", "prod/**")).RemoveParty(ctx, &keyturnv1.RemovePartyRequest{Id: "prodweb"})
	wantCode(t, "an operator of its keys", err, 0)
}

func TestTokensDoNotExceedTheirMaker(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	ctx := t.Context()
	limited := w.control(w.token(t, "a", "admin", "dev/**", "shared/ca"))
	for pattern, want := range map[string]connect.Code{
		"dev/**": 0, "dev/db": 0, "dev/*": 0, "shared/ca": 0,
		"**": connect.CodePermissionDenied, "prod/db": connect.CodePermissionDenied, "dev*/**": connect.CodePermissionDenied,
		"*/db": connect.CodePermissionDenied, "devil/db": connect.CodePermissionDenied, "shared/*": connect.CodePermissionDenied,
	} {
		_, err := limited.CreateToken(ctx, &keyturnv1.CreateTokenRequest{Name: "n", Role: "viewer", Keys: []string{pattern}})
		wantCode(t, pattern, err, want)
	}
	all, err := w.control(w.root).ListTokens(ctx, &keyturnv1.ListTokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range all.GetTokens() {
		if token.GetName() == "root" {
			_, err := limited.RevokeToken(ctx, &keyturnv1.RevokeTokenRequest{Id: token.GetId()})
			wantCode(t, "revoking root", err, connect.CodePermissionDenied)
		}
	}
}

func TestJoin(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	ctx := t.Context()
	join, err := w.control(w.root).CreateToken(ctx, &keyturnv1.CreateTokenRequest{
		Name: "join", Role: "join", Keys: []string{"dev/**"}, Party: &keyturnv1.Party{Region: "eu", Labels: map[string]string{"cohort": "canary"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	request := &keyturnv1.JoinRequest{JoinToken: join.GetToken(), Party: &keyturnv1.Party{Id: "web1", Region: "us"}}
	joined, err := w.delivery("").Join(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.delivery("").Join(ctx, request)
	wantCode(t, "joining twice", err, connect.CodeUnauthenticated)
	watch := watchOf("web1", "dev/db")
	watch.Party.Region, watch.Party.Labels = "us", map[string]string{"cohort": "last"}
	streaming, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := w.watched(t, streaming, joined.GetToken(), watch); err != nil {
		t.Fatal(err)
	}
	parties, err := w.control(w.root).ListParties(ctx, &keyturnv1.ListPartiesRequest{})
	if err != nil || len(parties.GetParties()) != 1 {
		t.Fatalf("%v %v", parties, err)
	}
	if p := parties.GetParties()[0].GetParty(); p.GetRegion() != "eu" || p.GetLabels()["cohort"] != "canary" {
		t.Errorf("the party chose what the join token fixes: %v", p)
	}
	_, err = w.watched(t, ctx, joined.GetToken(), watchOf("web2", "dev/db"))
	wantCode(t, "another party", err, connect.CodePermissionDenied)
}

// An open stream must not outlive its token.
func TestRevokingATokenEndsItsStreams(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	ctx := t.Context()
	agent, err := w.control(w.root).CreateToken(ctx, &keyturnv1.CreateTokenRequest{Name: "web", Role: "agent", Keys: []string{"dev/**"}})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := w.watched(t, ctx, agent.GetToken(), watchOf("web", "dev/db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.control(w.root).RevokeToken(ctx, &keyturnv1.RevokeTokenRequest{Id: agent.GetId()}); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	wantCode(t, "the stream", stream.Err(), connect.CodeUnauthenticated)
}
