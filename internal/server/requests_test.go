package server_test

import (
	"bytes"
	"context"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestEveryBadFieldIsNamed sends one bad field at a time. The answer names it and
// is a code by which the caller knows that repeating cannot help.
func TestEveryBadFieldIsNamed(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	ctx := t.Context()
	c, d := w.control(w.root), w.delivery(w.root)
	long := strings.Repeat("x", 1001)
	poll := func(change func(*keyturnv1.PollRequest)) error {
		watch := watchOf("me", "dev/db")
		request := &keyturnv1.PollRequest{Party: watch.GetParty(), Keys: watch.GetKeys()}
		change(request)
		_, err := d.Poll(ctx, request)
		return err
	}
	token := func(request *keyturnv1.CreateTokenRequest) error {
		_, err := c.CreateToken(ctx, request)
		return err
	}
	rotate := func(request *keyturnv1.RotateRequest) error {
		_, err := c.Rotate(ctx, request)
		return err
	}
	ack := func(o *keyturnv1.Outcome) error {
		_, err := d.Ack(ctx, &keyturnv1.AckRequest{PartyId: "me", Outcomes: []*keyturnv1.Outcome{o}})
		return err
	}
	tests := []struct {
		names string
		call  func() error
	}{
		{"documents", func() error {
			_, err := c.Apply(ctx, &keyturnv1.ApplyRequest{Documents: make([]*keyturnv1.Document, 1001)})
			return err
		}},
		{"page_size", func() error { _, err := c.ListKeys(ctx, &keyturnv1.ListKeysRequest{PageSize: -1}); return err }},
		{"page_size", func() error {
			_, err := c.ListRotations(ctx, &keyturnv1.ListRotationsRequest{PageSize: 1001})
			return err
		}},
		{"page_token", func() error { _, err := c.ListKeys(ctx, &keyturnv1.ListKeysRequest{PageToken: long}); return err }},
		{"page_token", func() error {
			_, err := c.ListRotations(ctx, &keyturnv1.ListRotationsRequest{PageToken: "x"})
			return err
		}},
		{"page_token", func() error { _, err := c.ListParties(ctx, &keyturnv1.ListPartiesRequest{PageToken: long}); return err }},
		{"key", func() error { _, err := c.ListRotations(ctx, &keyturnv1.ListRotationsRequest{Key: "A"}); return err }},
		{"key", func() error { _, err := c.ListParties(ctx, &keyturnv1.ListPartiesRequest{Key: "A"}); return err }},
		{"key", func() error { _, err := c.ReadLog(ctx, &keyturnv1.ReadLogRequest{Key: "A"}); return err }},
		{"limit", func() error { _, err := c.ReadLog(ctx, &keyturnv1.ReadLogRequest{Limit: -1}); return err }},
		{"rotation_id", func() error { _, err := c.ReadLog(ctx, &keyturnv1.ReadLogRequest{RotationId: "x"}); return err }},
		{"name", func() error { _, err := c.GetKey(ctx, &keyturnv1.GetKeyRequest{Name: "../etc"}); return err }},
		{"name", func() error { _, err := c.Plan(ctx, &keyturnv1.PlanRequest{}); return err }},
		{"label", func() error {
			_, err := c.GetSecret(ctx, &keyturnv1.GetSecretRequest{Name: "dev/db", Label: "newest"})
			return err
		}},
		{"label", func() error {
			_, err := c.GetSecret(ctx, &keyturnv1.GetSecretRequest{Name: "dev/db", Label: "current", Version: 1})
			return err
		}},
		{"reason", func() error { return rotate(&keyturnv1.RotateRequest{Name: "dev/db", Reason: long}) }},
		{"request_id", func() error { return rotate(&keyturnv1.RotateRequest{Name: "dev/db", RequestId: long}) }},
		{"strategy", func() error { return rotate(&keyturnv1.RotateRequest{Name: "dev/db", Strategy: "replace-first"}) }},
		{"strategy", func() error { return rotate(&keyturnv1.RotateRequest{Name: "dev/db", Emergency: true, Strategy: "x"}) }},
		{"compromised", func() error {
			return rotate(&keyturnv1.RotateRequest{Name: "dev/db", Emergency: true, Compromised: make([]uint64, 1001)})
		}},
		{"rotation_id", func() error { _, err := c.Rollback(ctx, &keyturnv1.RollbackRequest{RotationId: "zz"}); return err }},
		{"action", func() error { _, err := c.Steer(ctx, &keyturnv1.SteerRequest{}); return err }},
		{"id", func() error { _, err := c.RemoveParty(ctx, &keyturnv1.RemovePartyRequest{Id: "a b"}); return err }},
		{"name", func() error { return token(&keyturnv1.CreateTokenRequest{Role: "viewer", Keys: []string{"a"}}) }},
		{"role", func() error { return token(&keyturnv1.CreateTokenRequest{Name: "n", Role: "god", Keys: []string{"a"}}) }},
		{"keys", func() error { return token(&keyturnv1.CreateTokenRequest{Name: "n", Role: "viewer"}) }},
		{"keys[0]", func() error {
			return token(&keyturnv1.CreateTokenRequest{Name: "n", Role: "viewer", Keys: []string{"A B"}})
		}},
		{"lifetime", func() error {
			return token(&keyturnv1.CreateTokenRequest{Name: "n", Role: "viewer", Keys: []string{"a"}, Lifetime: durationpb.New(-time.Second)})
		}},
		{"party.id", func() error {
			return token(&keyturnv1.CreateTokenRequest{Name: "n", Role: "join", Keys: []string{"a"}, Party: &keyturnv1.Party{Id: "a b"}})
		}},
		{"wait", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Wait = durationpb.New(time.Hour) }) }},
		{"party.id", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Party.Id = "" }) }},
		{"party.kind", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Party.Kind = 9 }) }},
		{"party.region", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Party.Region = long }) }},
		{"party.labels", func() error {
			return poll(func(r *keyturnv1.PollRequest) { r.Party.Labels = map[string]string{"a": long} })
		}},
		{"keys", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Keys = nil }) }},
		{"keys[0].key", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Keys[0].Key = "A" }) }},
		{"keys[1]", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Keys = append(r.Keys, r.GetKeys()[0]) }) }},
		{"epoch", func() error { return poll(func(r *keyturnv1.PollRequest) { r.Keys[0].Epoch = math.MaxUint64 }) }},
		{"party_id", func() error { _, err := d.Ack(ctx, &keyturnv1.AckRequest{PartyId: "a b"}); return err }},
		{"outcomes", func() error {
			_, err := d.Ack(ctx, &keyturnv1.AckRequest{PartyId: "me", Outcomes: make([]*keyturnv1.Outcome, 1001)})
			return err
		}},
		{"outcomes[0].key", func() error { return ack(&keyturnv1.Outcome{Key: "A"}) }},
		{"outcomes[0].code", func() error { return ack(&keyturnv1.Outcome{Key: "dev/db"}) }},
		{"outcomes[0].using", func() error {
			return ack(&keyturnv1.Outcome{Key: "dev/db", Code: keyturnv1.OutcomeCode_OUTCOME_CODE_APPLIED, Version: 1, Using: 2})
		}},
		{"version", func() error {
			return ack(&keyturnv1.Outcome{Key: "dev/db", Code: keyturnv1.OutcomeCode_OUTCOME_CODE_FAILED, Using: 99})
		}},
		{"samples[0].auth_failures", func() error {
			_, err := d.Report(ctx, &keyturnv1.ReportRequest{PartyId: "me", Samples: []*keyturnv1.Sample{{Key: "dev/db", AuthFailures: 1}}})
			return err
		}},
	}
	for _, test := range tests {
		err := test.call()
		if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), test.names) {
			t.Errorf("%s: got %v", test.names, err)
		}
	}
}

// FuzzRequests: whatever bytes arrive at whatever procedure, the server answers
// with a code of its own and never with that of a fault in itself.
func FuzzRequests(f *testing.F) {
	w := startServer(f, configOf(f.TempDir()))
	w.mustApply(f)
	names := methodNames()
	slices.Sort(names)
	seed := func(procedure string, m proto.Message) {
		body, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(slices.Index(names, procedure)), body)
	}
	seed("Rotate", &keyturnv1.RotateRequest{Name: "dev/db", Emergency: true, Compromised: []uint64{1, math.MaxUint64}})
	seed("ReadLog", &keyturnv1.ReadLogRequest{From: math.MaxUint64, Limit: 1})
	seed("ListKeys", &keyturnv1.ListKeysRequest{Prefix: "\x00", PageToken: "%"})
	seed("GetSecret", &keyturnv1.GetSecretRequest{Name: "dev/db", Version: math.MaxUint64})
	seed("Apply", &keyturnv1.ApplyRequest{Documents: []*keyturnv1.Document{{Name: "x", Content: []byte(documents)}}})
	seed("Poll", &keyturnv1.PollRequest{Party: &keyturnv1.Party{Id: "me"}, Keys: []*keyturnv1.Known{{Key: "dev/db", Version: math.MaxUint64, Epoch: 1 << 31}}})
	seed("Ack", &keyturnv1.AckRequest{PartyId: "me", Outcomes: []*keyturnv1.Outcome{{Key: "dev/db", Code: 2, Epoch: 1, Using: math.MaxUint64}}})
	seed("Report", &keyturnv1.ReportRequest{PartyId: "me", Samples: []*keyturnv1.Sample{{Key: "dev/db", Version: 1, Detail: strings.Repeat("ä", 600)}}})
	seed("CreateToken", &keyturnv1.CreateTokenRequest{Name: "n", Role: "join", Keys: []string{"**"}, Lifetime: &durationpb.Duration{Seconds: math.MaxInt64}})
	seed("Handouts", &keyturnv1.HandoutsRequest{PartyId: "me", BatchId: "b", Handouts: []*keyturnv1.Handout{{
		PartyId: "web", Key: "dev/db", Version: math.MaxUint64, ClientAddress: "::1%x", Count: 1, First: &timestamppb.Timestamp{Seconds: math.MinInt64}, Last: &timestamppb.Timestamp{Nanos: -1},
	}}})
	seed("RemoveParty", &keyturnv1.RemovePartyRequest{Id: "me"})
	seed("Join", &keyturnv1.JoinRequest{JoinToken: "kt_", Party: &keyturnv1.Party{Id: "me"}})
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		name := names[int(which)%len(names)]
		if name == "Watch" || name == "WatchRotation" || name == "ExportLog" || name == "Backup" || name == "RevokeToken" {
			return // streams have another framing; revoking would end the test
		}
		path := "/keyturn.v1.ControlService/" + name
		if slices.Contains([]string{"Join", "Poll", "Ack", "Report", "Leave"}, name) {
			path = "/keyturn.v1.DeliveryService/" + name
		}
		if name == "Handouts" {
			path = "/keyturn.v1.GatewayService/" + name
		}
		patience := 10 * time.Second
		if name == "Poll" {
			patience = 50 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.Address()+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/proto")
		request.Header.Set("Authorization", "Bearer "+w.root)
		answer, err := w.http.Do(request)
		if ctx.Err() != nil && name == "Poll" {
			return // it waits as long as it was asked to
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer func() { _ = answer.Body.Close() }()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if answer.StatusCode >= http.StatusInternalServerError {
			t.Errorf("%s: status %d: %s", name, answer.StatusCode, text)
		}
	})
}

// TestEmergencyPageIsServed: to everybody, since it holds nothing, and for reading only.
func TestEmergencyPageIsServed(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	for method, want := range map[string]int{http.MethodGet: http.StatusOK, http.MethodHead: http.StatusOK, http.MethodPost: http.StatusMethodNotAllowed} {
		request, err := http.NewRequestWithContext(t.Context(), method, w.Address()+"/emergency", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := w.http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close() // only the head counts
		if response.StatusCode != want || want == http.StatusOK && !strings.HasPrefix(response.Header.Get("Content-Security-Policy"), "default-src 'none'; ") {
			t.Errorf("%s: status %d, want %d; %v", method, response.StatusCode, want, response.Header)
		}
	}
}
