package forward_test

import (
	"crypto/x509"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// envoy is a client of the gRPC service as Envoy has it: by TLS and HTTP/2.
func envoy(t *testing.T, w *world) authv3.AuthorizationClient {
	t.Helper()
	server := httptest.NewUnstartedServer(w.handler())
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	conn, err := grpc.NewClient("passthrough:///"+server.Listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "example.com")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return authv3.NewAuthorizationClient(conn)
}

// checkRequest is what Envoy asks of a request from 192.0.2.7. Raw: as with encode_raw_headers.
func checkRequest(gate string, raw bool, header ...string) *authv3.CheckRequest {
	request := &authv3.AttributeContext_HttpRequest{Method: http.MethodGet, Scheme: "https", Host: "orders.example.com", Path: "/a?b"}
	if raw {
		request.HeaderMap = &corev3.HeaderMap{}
	} else {
		request.Headers = map[string]string{}
	}
	for i := 0; i < len(header); i += 2 {
		name := strings.ToLower(header[i])
		switch before, there := request.Headers[name]; {
		case raw:
			request.HeaderMap.Headers = append(request.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(header[i+1])})
		case there:
			request.Headers[name] = before + "," + header[i+1]
		default:
			request.Headers[name] = strings.ToValidUTF8(header[i+1], "?")
		}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source:            peer("192.0.2.7"),
		Request:           &authv3.AttributeContext_Request{Http: request},
		ContextExtensions: map[string]string{"gate": gate},
	}}
}

func peer(address string) *authv3.AttributeContext_Peer {
	return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: address}}}}
}

func fieldsOf(t *testing.T, options []*corev3.HeaderValueOption) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for _, o := range options {
		if o.GetAppend() == nil || o.GetAppend().GetValue() || o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD { //nolint:staticcheck // versions of Envoy differ
			t.Errorf("%s is added to that of the client", o.GetHeader().GetKey())
		}
		fields[o.GetHeader().GetKey()] = o.GetHeader().GetValue()
	}
	return fields
}

// TestEnvoyOutcomes: Envoy is answered over gRPC as other proxies over HTTP.
func TestEnvoyOutcomes(t *testing.T) {
	w := newWorld(t)
	client := envoy(t, w)
	for _, test := range outcomes() {
		for _, raw := range []bool{false, true} {
			want := test
			switch want.outcome {
			case "unproven": // Envoy tells the URL in the message itself
				want.status, want.outcome, want.challenge = 401, "refused", dpop+`, error="invalid_token"`
				if strings.Contains(test.header[1], "b.oun.d") {
					want.status, want.outcome, want.challenge = 200, "", ""
				}
			case "large":
				want.status, want.outcome, want.challenge = 401, "refused", bearer+`, error="invalid_token"`
			}
			answer, err := client.Check(t.Context(), checkRequest(test.gate, raw, test.header...))
			if err != nil {
				t.Fatalf("%s %.60q: %v", test.gate, test.header, err)
			}
			if want.status == 200 {
				if answer.GetStatus().GetCode() != 0 || answer.GetOkResponse() == nil {
					t.Errorf("%s %.60q: %v", test.gate, test.header, answer)
				}
				continue
			}
			denied := answer.GetDeniedResponse()
			fields := fieldsOf(t, denied.GetHeaders())
			if answer.GetStatus().GetCode() == 0 || int(denied.GetStatus().GetCode()) != want.status || fields["keyturn-outcome"] != want.outcome || fields["www-authenticate"] != want.challenge ||
				(want.status == 429 || want.status == 503) != (fields["retry-after"] == "2") || denied.GetBody() == "" {
				t.Errorf("%s %.60q, raw %v: %v", test.gate, test.header, raw, answer)
			}
		}
	}
}

// TestEnvoyHeaders: the headers of whoever is admitted take the place of the client's, and
// what an origin could take for them is removed; never what was set, since Envoy removes last.
func TestEnvoyHeaders(t *testing.T) {
	w := newWorld(t)
	client := envoy(t, w)
	for _, raw := range []bool{false, true} {
		answer, err := client.Check(t.Context(), checkRequest("both", raw, "Authorization", "Bearer kt_good", "Keyturn-Key", "admin", "keyturn_key", "admin", "keyturn.key", "admin", "KEYTURN_Subject", "root",
			"Keyturn-Proxy-Token", "x", "Keyturn-Admin", "1", "X-Keyturn", "1"))
		if err != nil {
			t.Fatal(err)
		}
		fields := fieldsOf(t, answer.GetOkResponse().GetHeaders())
		want := map[string]string{
			"keyturn-kind": "apikey", "keyturn-key": "partners/acme", "keyturn-version": "7", "keyturn-client": "Z%C3%BCrich 100%25", "keyturn-scopes": "orders:read orders:list", "keyturn-subject": "-",
		}
		if !maps.Equal(fields, want) {
			t.Errorf("%v", fields)
		}
		remove := slices.Sorted(slices.Values(answer.GetOkResponse().GetHeadersToRemove()))
		if !slices.Equal(remove, []string{"keyturn-admin", "keyturn-proxy-token", "keyturn.key", "keyturn_key", "keyturn_subject"}) {
			t.Errorf("removed: %q", remove)
		}
	}
	var many []string
	for i := range 101 {
		many = append(many, "Keyturn_"+strings.Repeat("a", i+1), "x")
	}
	answer, err := client.Check(t.Context(), checkRequest("both", false, append(many, "X-API-Key", "kt_good")...))
	if err != nil || answer.GetStatus().GetCode() == 0 || answer.GetDeniedResponse().GetStatus().GetCode() != 431 {
		t.Errorf("more than can be removed: %v, %v", answer, err)
	}
}

// TestEnvoyIsAskedWithItsOwnWord: where the client is, and what its proof is for, is what
// Envoy says; the gate is named by its configuration only.
func TestEnvoyIsAskedWithItsOwnWord(t *testing.T) {
	w := newWorld(t)
	client := envoy(t, w)
	request := checkRequest("both", false, "Authorization", "DPoP b.oun.d", "DPoP", "proof", "X-Forwarded-For", "198.51.100.1", "X-Forwarded-Host", "evil.example", "X-Original-URL", "https://evil.example/",
		"gate", "open", "Keyturn-Gate", "open", ":path", "/v1/forward/open")
	if answer, err := client.Check(t.Context(), request); err != nil || answer.GetOkResponse() == nil {
		t.Fatalf("%v, %v", answer, err)
	}
	if s := w.shown[0]; s.Method != http.MethodGet || s.URL != "https://orders.example.com/a" || s.Address != "192.0.2.7" || !slices.Equal(s.Proofs, []string{"proof"}) {
		t.Errorf("%+v", s)
	}
	// Behind another proxy, it is what that one has told Envoy.
	request = checkRequest("open", false, "X-API-Key", "kt_good", "X-Forwarded-For", "198.51.100.1, 192.0.2.9, 10.0.0.5")
	request.Attributes.Source = peer("10.0.0.5")
	if _, err := client.Check(t.Context(), request); err != nil || w.asked[1] != "kt_good from 192.0.2.9" {
		t.Errorf("%v, %q", err, w.asked)
	}
	for _, gate := range []string{"void", ""} {
		answer, err := client.Check(t.Context(), checkRequest(gate, false, "X-API-Key", "kt_good", "gate", "open"))
		if err != nil || answer.GetDeniedResponse().GetStatus().GetCode() != 404 {
			t.Errorf("%q: %v, %v", gate, answer, err)
		}
	}
	for what, request := range map[string]*authv3.CheckRequest{"empty": {}, "no request": {Attributes: &authv3.AttributeContext{ContextExtensions: map[string]string{"gate": "open"}}}} {
		if answer, err := client.Check(t.Context(), request); err != nil || answer.GetStatus().GetCode() == 0 {
			t.Errorf("%s: %v, %v", what, answer, err)
		}
	}
	w.stranger = true
	answer, err := client.Check(t.Context(), checkRequest("open", false, "X-API-Key", "kt_good"))
	if err != nil || answer.GetStatus().GetCode() == 0 || fieldsOf(t, answer.GetDeniedResponse().GetHeaders())["keyturn-outcome"] != "caller" {
		t.Errorf("a stranger: %v, %v", answer, err)
	}
	w.stranger = false
	if _, err := client.Check(t.Context(), checkRequest("open", false, "X-API-Key", strings.Repeat("x", 300<<10))); err == nil {
		t.Error("a message of any size is read")
	}
}

// TestEnvoyPath: the service is at the path of the published definition.
func TestEnvoyPath(t *testing.T) {
	if forward.EnvoyPath != authv3.Authorization_Check_FullMethodName {
		t.Errorf("%s, not %s", forward.EnvoyPath, authv3.Authorization_Check_FullMethodName)
	}
}
