package server_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/forwarded"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
)

// relay sends requests on as a gateway does.
type relay struct {
	*caller
	gateway string
	client  string
}

func (r *relay) Do(request *http.Request) (*http.Response, error) {
	forwarded.Set(request.Header, r.gateway, netip.MustParseAddr(r.client))
	return r.caller.Do(request)
}

func (w *world) relayed(gateway, client, token string) keyturnv1connect.DeliveryServiceClient {
	return keyturnv1connect.NewDeliveryServiceClient(&relay{&caller{w, token}, gateway, client}, w.Address())
}

// entriesOf returns the audit entries with an action.
func (w *world) entriesOf(tb testing.TB, action audit.Action) (list []audit.Entry) {
	tb.Helper()
	answer, err := w.control(w.root).ReadLog(tb.Context(), &keyturnv1.ReadLogRequest{Limit: 1000})
	if err != nil {
		tb.Fatal(err)
	}
	for _, line := range answer.GetEntries() {
		entry, err := audit.Decode([]byte(line))
		if err != nil {
			tb.Fatal(err)
		}
		if entry.Action == action {
			list = append(list, entry)
		}
	}
	return list
}

func isRefusal(err error) bool {
	var refusal *connect.Error
	return errors.As(err, &refusal) && forwarded.IsRefusal(refusal.Meta())
}

// TestGatewayVouchesForAddresses: what is known of a client that comes through a gateway
// is its own address, and the gateway.
func TestGatewayVouchesForAddresses(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	gateway, agent := w.token(t, "eu", "gateway", "dev/**"), w.token(t, "web", "agent", "dev/**")
	poll := func(d keyturnv1connect.DeliveryServiceClient) {
		t.Helper()
		watch := watchOf("web", "dev/db")
		if _, err := d.Poll(t.Context(), &keyturnv1.PollRequest{Party: watch.GetParty(), Keys: watch.GetKeys()}); err != nil {
			t.Fatal(err)
		}
	}
	poll(w.relayed(gateway, "10.0.3.7", agent))
	poll(w.relayed(gateway, "10.0.3.7", agent))
	poll(w.relayed(gateway, "2001:db8::7", agent))
	poll(w.delivery(agent))
	join := w.entriesOf(t, audit.ActionJoin)
	if len(join) != 1 || join[0].Detail["address"] != "10.0.3.7" || join[0].Detail["gateway"] != "eu" {
		t.Errorf("joined %+v", join)
	}
	moves := w.entriesOf(t, audit.ActionMove)
	if len(moves) != 2 || moves[0].Detail["address"] != "2001:db8::7" || moves[0].Detail["before"] != "10.0.3.7" || moves[0].Detail["gateway"] != "eu" {
		t.Fatalf("moved %+v", moves)
	}
	if d := moves[1].Detail; d["address"] != "127.0.0.1" || d["gateway"] != "" || d["gateway-before"] != "eu" {
		t.Errorf("moved %+v", moves[1])
	}
	// What it vouches for gives nobody rights.
	_, err := w.relayed(gateway, "10.0.3.7", "nonsense").Poll(t.Context(), &keyturnv1.PollRequest{})
	wantCode(t, "a bad token through a good gateway", err, connect.CodeUnauthenticated)
	if isRefusal(err) {
		t.Error("it is taken for the gateway's")
	}
	_, err = w.relayed(gateway, "10.0.3.7", "").Poll(t.Context(), &keyturnv1.PollRequest{})
	wantCode(t, "no token through a good gateway", err, connect.CodeUnauthenticated)
}

// TestWhatIsNotVouchedForIsRefused: at every endpoint, whatever else the request shows.
func TestWhatIsNotVouchedForIsRefused(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	agent := w.token(t, "web", "agent", "dev/**")
	revoked, err := w.control(w.root).CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "old", Role: "gateway", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.control(w.root).RevokeToken(t.Context(), &keyturnv1.RevokeTokenRequest{Id: revoked.GetId()}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/keyturn.v1.ControlService/ListKeys", "/keyturn.v1.DeliveryService/Poll", "/keyturn.v1.DeliveryService/Join", "/keyturn.v1.GatewayService/Handouts",
		"/metrics", "/v1/apikeys/verify", "/v1/apikeys/self", "/v1/apikeys/snapshot", "/emergency", "/issuers/x/jwks.json", "/issuers/x/oauth/token", "/.well-known/openid-configuration", "/nothing",
	} {
		for what, test := range map[string]struct {
			header http.Header
			status int
		}{
			"an address alone":     {http.Header{forwarded.ClientAddress: {"10.0.3.7"}}, http.StatusBadRequest},
			"a token alone":        {http.Header{forwarded.Gateway: {agent}}, http.StatusBadRequest},
			"no address":           {http.Header{forwarded.Gateway: {agent}, forwarded.ClientAddress: {"web-1"}}, http.StatusBadRequest},
			"a revoked token":      {http.Header{forwarded.Gateway: {revoked.GetToken()}, forwarded.ClientAddress: {"10.0.3.7"}}, http.StatusUnauthorized},
			"a token that may not": {http.Header{forwarded.Gateway: {agent}, forwarded.ClientAddress: {"10.0.3.7"}}, http.StatusForbidden},
		} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.Address()+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			request.Header = test.header
			request.Header.Set("Authorization", "Bearer "+w.root)
			request.Header.Set("Content-Type", "application/json")
			answer, err := w.http.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			_, _ = text.ReadFrom(answer.Body)
			_ = answer.Body.Close()
			if answer.StatusCode != test.status || !forwarded.IsRefusal(answer.Header) || !strings.Contains(text.String(), "Keyturn-") {
				t.Errorf("%s with %s: status %d, %s", path, what, answer.StatusCode, text.String())
			}
		}
	}
	denied := w.entriesOf(t, "access.denied")
	if len(denied) == 0 || denied[0].Actor.ID != "web" || denied[0].Detail["action"] != "forward" {
		t.Errorf("%+v", denied)
	}
}

// TestNeighboursBehindAGateway: who shows bad tokens shuts out its own address, behind
// a gateway as before it; and who shows bad tokens of gateways that of its connection.
func TestNeighboursBehindAGateway(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	gateway := w.token(t, "eu", "gateway", "dev/**")
	fresh := func(name string) string { return w.token(t, name, "agent", "dev/**") }
	watch := watchOf("web/1", "dev/db")
	poll := func(d keyturnv1connect.DeliveryServiceClient, id string) error {
		_, err := d.Poll(t.Context(), &keyturnv1.PollRequest{Party: &keyturnv1.Party{Id: id}, Keys: watch.GetKeys()})
		return err
	}
	for range 60 {
		_ = poll(w.relayed(gateway, "10.0.3.7", "nonsense"), "web")
	}
	wantCode(t, "a good token from the address of bad ones", poll(w.relayed(gateway, "10.0.3.7", fresh("a")), "a"), connect.CodeResourceExhausted)
	wantCode(t, "its neighbour", poll(w.relayed(gateway, "10.0.3.8", fresh("b")), "b"), 0)
	wantCode(t, "one that comes by itself", poll(w.delivery(fresh("c")), "c"), 0)

	other, late := w.token(t, "us", "gateway", "dev/**"), fresh("d")
	for range 60 {
		_ = poll(w.relayed("nonsense", "10.0.3.9", late), "d")
	}
	err := poll(w.relayed(other, "10.0.3.9", late), "d")
	wantCode(t, "another gateway from the address of bad ones", err, connect.CodeResourceExhausted)
	if !isRefusal(err) {
		t.Error("the client is blamed for it")
	}
	wantCode(t, "the gateway that was good lately", poll(w.relayed(gateway, "10.0.3.9", late), "d"), 0)
}

// TestStreamsEndWithTheGatewayTheyCameThrough: at once when its token is revoked; what
// came another way goes on.
func TestStreamsEndWithTheGatewayTheyCameThrough(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	gateway, err := w.control(w.root).CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "eu", Role: "gateway", Keys: []string{"dev/**"}})
	if err != nil {
		t.Fatal(err)
	}
	agent := w.token(t, "web", "agent", "dev/**")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	through, err := w.relayed(gateway.GetToken(), "10.0.3.7", agent).Watch(ctx, watchOf("web/1", "dev/db"))
	if err != nil || !through.Receive() {
		t.Fatal(err, through.Err())
	}
	defer func() { _ = through.Close() }()
	direct, err := w.watched(t, ctx, agent, watchOf("web/2", "dev/db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.control(w.root).RevokeToken(t.Context(), &keyturnv1.RevokeTokenRequest{Id: gateway.GetId()}); err != nil {
		t.Fatal(err)
	}
	for through.Receive() {
	}
	wantCode(t, "a stream through the gateway", through.Err(), connect.CodeUnauthenticated)
	if !isRefusal(through.Err()) {
		t.Errorf("the client is blamed for it: %v", through.Err())
	}
	// The key's first version reaches the one that goes on.
	if _, err := w.control(w.root).Rotate(ctx, &keyturnv1.RotateRequest{Name: "dev/db"}); err != nil {
		t.Fatal(err)
	}
	for told := false; !told; {
		if !direct.Receive() {
			t.Fatal(direct.Err())
		}
		told = len(direct.Msg().GetAssignments()) > 0
	}
}

// TestHandoutsAreEntered: once, by those who may, for keys that their token covers.
func TestHandoutsAreEntered(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	gateway := w.token(t, "eu", "gateway", "dev/**")
	request := func(id, name string) *keyturnv1.HandoutsRequest {
		return &keyturnv1.HandoutsRequest{PartyId: "eu", BatchId: id, Handouts: []*keyturnv1.Handout{{
			PartyId: "web-1", Key: name, Version: 2, Epoch: 9, TokenId: "0123456789abcdef", ClientAddress: "::ffff:10.0.3.7", Count: 3,
			First: timestamppb.New(time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)), Last: timestamppb.New(time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC)),
		}}}
	}
	tell := func(token string, request *keyturnv1.HandoutsRequest) error {
		_, err := w.gateway(token).Handouts(t.Context(), request)
		return err
	}
	for range 2 {
		wantCode(t, "a batch", tell(gateway, request("b1", "dev/db")), 0)
	}
	list := w.entriesOf(t, audit.ActionHandout)
	if len(list) != 1 || list[0].Actor.ID != "eu" || list[0].Actor.Kind != "gateway" || list[0].Target != "web-1" || list[0].Version != 2 || list[0].Detail["address"] != "10.0.3.7" {
		t.Errorf("%+v", list)
	}
	wantCode(t, "a key that it does not cover", tell(gateway, request("b2", "prod/db")), connect.CodePermissionDenied)
	wantCode(t, "an agent", tell(w.token(t, "web", "agent", "**"), request("b2", "dev/db")), connect.CodePermissionDenied)
	wantCode(t, "another gateway", tell(w.token(t, "us", "gateway", "**"), request("b2", "dev/db")), connect.CodePermissionDenied)
	bad := request("b2", "dev/db")
	bad.Handouts[0].ClientAddress = "web-1"
	err := tell(gateway, bad)
	wantCode(t, "no address", err, connect.CodeInvalidArgument)
	if !strings.Contains(err.Error(), "handouts[0].client_address") {
		t.Error(err)
	}
	if n := len(w.entriesOf(t, audit.ActionHandout)); n != 1 {
		t.Errorf("%d hand-outs", n)
	}
}

// TestDoctorNamesGatewaysThatAreAway: ten minutes after they were seen last, and those
// that never came.
func TestDoctorNamesGatewaysThatAreAway(t *testing.T) {
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	w := startServerAs(t, configOf(t.TempDir()), server.Options{LogTo: t.Output(), Now: now, Drivers: map[string]provider.Driver{"memory": &memory{accepted: map[string]bool{}}}})
	w.mustApply(t)
	check := func() *keyturnv1.Check {
		t.Helper()
		answer, err := w.control(w.root).Doctor(t.Context(), &keyturnv1.DoctorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range answer.GetChecks() {
			if c.GetName() == "gateways" {
				return c
			}
		}
		t.Fatal("no check of gateways")
		return nil
	}
	if c := check(); c.GetStatus() != "ok" {
		t.Errorf("%v", c)
	}
	gateway := w.token(t, "eu", "gateway", "dev/**")
	w.token(t, "us", "gateway", "dev/**")
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	if _, err := w.watched(t, ctx, gateway, watchOf("eu/1", "dev/db")); err != nil {
		t.Fatal(err)
	}
	if c := check(); c.GetStatus() != "ok" {
		t.Errorf("%v", c)
	}
	ahead.Store(int64(11 * time.Minute))
	if c := check(); c.GetStatus() != "warning" || strings.Contains(c.GetMessage(), "eu/1") || !strings.Contains(c.GetMessage(), "gateway us has never connected") {
		t.Errorf("%v", c)
	}
	leave()
	for {
		answer, err := w.control(w.root).ListParties(t.Context(), &keyturnv1.ListPartiesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(answer.GetParties()) == 1 && !answer.GetParties()[0].GetConnected() {
			break
		}
	}
	ahead.Store(int64(22 * time.Minute))
	if c := check(); c.GetStatus() != "warning" || !strings.Contains(c.GetMessage(), "gateway eu/1 was not seen since ") || !strings.Contains(c.GetMessage(), "rotations of its 1 keys wait for it") {
		t.Errorf("%v", c)
	}
}
