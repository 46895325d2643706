package cli_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// acmeKey is the API key of a client that the fake server knows.
const acmeKey = "acme_live_0123456789abcdefghijABCDEFGHIJ0123ab"

// apiKey is partners/acme with a version, partners/new without one, or
// partners/used, whose version was shown once.
func (f *fake) apiKey(name string) *keyturnv1.Key {
	k := &keyturnv1.Key{Name: name, Owner: "team-partners", Provider: "apikey", Policy: "partners"}
	switch name {
	case "partners/acme", "partners/used":
		k.Current, k.CurrentSince = 2, at(-90)
		k.Versions = []*keyturnv1.KeyVersion{{Number: 2, State: "active", Label: "current", CreatedAt: at(-90), Attributes: map[string]string{"client": "ACME Ltd."}}}
	case "partners/new":
	default:
		return nil
	}
	return k
}

func revealAPIKey(request *keyturnv1.GetSecretRequest) (*keyturnv1.GetSecretResponse, error) {
	if request.GetName() == "partners/used" {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("the secret of v2 was shown once, and is with its user alone; rotate the key for another one"))
	}
	return &keyturnv1.GetSecretResponse{
		Version: request.GetVersion(), Attributes: map[string]string{"client": "ACME Ltd."}, Secrets: map[string][]byte{"key": []byte(acmeKey)},
	}, nil
}

// serveAPIKeys answers what is asked in plain JSON.
func (f *fake) serveAPIKeys(mux *http.ServeMux) {
	handle := func(pattern string, answer func(r *http.Request, body map[string]any) (int, string)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var body map[string]any
			if r.Method == http.MethodPost && json.NewDecoder(r.Body).Decode(&body) != nil {
				http.Error(w, "{}", http.StatusBadRequest)
				return
			}
			status, text := http.StatusUnauthorized, `{"code":"unauthenticated","message":"the token is unknown"}`
			if token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); token == adminToken {
				status, text = answer(r, body)
			} else if token == viewerToken {
				status, text = http.StatusForbidden, `{"code":"permission_denied","message":"not allowed: role viewer may not do that"}`
			}
			w.WriteHeader(status)
			fmt.Fprint(w, text)
		})
	}
	handle("GET /v1/apikeys/clients", func(r *http.Request, _ map[string]any) (int, string) {
		if !strings.HasPrefix("partners/acme", r.FormValue("prefix")) {
			return 200, `{"versions":[]}`
		}
		if r.FormValue("after") == "" {
			return 200, `{"versions":[{"key":"partners/acme","client":"ACME \u001b[31mLtd.","version":1,"accepted":false,"destroyed":true,"lastSeen":"2026-11-20T12:00:00Z","uses":9,"refused":4,"lastRefused":"2026-11-23T11:00:00Z"}],"next":"partners/acme@1"}`
		}
		return 200, `{"versions":[{"key":"partners/acme","client":"ACME Ltd.","version":2,"accepted":true,"uses":0}]}`
	})
	handle("GET /v1/apikeys/uses", func(r *http.Request, _ map[string]any) (int, string) {
		if r.FormValue("key") != "partners/acme" {
			return 404, `{"error":"there is no API key of that name with a version, or your token does not cover it"}`
		}
		return 200, `{"key":"partners/acme","versions":[{"version":1,"accepted":false,"destroyed":true,"uses":9,"lastSeen":"2026-11-20T12:00:00Z","refused":4,"lastRefused":"2026-11-23T11:00:00Z",` +
			`"refusedBy":[{"address":"192.0.2.7","application":"billing","lastSeen":"2026-11-23T11:00:00Z","uses":4}]},{"version":2,"accepted":true,"uses":7,"lastSeen":"2026-11-23T11:59:00Z",` +
			`"by":[{"application":"shop","lastSeen":"2026-11-23T11:59:00Z","uses":7}]}]}`
	})
	handle("GET /v1/apikeys/notices", func(r *http.Request, _ map[string]any) (int, string) {
		if r.FormValue("key") != "partners/acme" {
			return 200, `{"key":"partners/used","notices":[]}`
		}
		return 200, `{"key":"partners/acme","notices":[{"occasion":"reminder","version":1,"by":"email","to":"keys@acme.example","at":"2026-11-23T11:00:00Z","tries":2,"failure":"no route to host","nextTry":"2026-11-23T12:02:00Z"},` +
			`{"occasion":"reminder","version":1,"by":"webhook","to":"https://acme.example","at":"2026-11-23T11:00:00Z","tries":1,"failure":"status 410","givenUp":"2026-11-23T11:00:01Z"},` +
			`{"occasion":"successor-ready","version":1,"by":"email","to":"keys@acme.example","at":"2026-11-20T11:00:00Z","tries":1,"sent":"2026-11-20T11:00:02Z"},` +
			`{"occasion":"test","version":1,"by":"email","to":"keys@acme.example","at":"2026-11-20T11:00:00Z","tries":0}]}`
	})
	handle("POST /v1/apikeys/notices", func(_ *http.Request, body map[string]any) (int, string) {
		if body["key"] == "partners/used" && !truly(body["test"]) {
			return 409, `{"error":"no rotation of partners/used waits for its client; a test notice can be sent at any time"}`
		}
		return 200, `{"recipients":2}`
	})
	handle("POST /v1/apikeys/webhook-secret", func(_ *http.Request, body map[string]any) (int, string) {
		if truly(body["renew"]) {
			return 200, `{"number":2,"secret":"whsec_bmV3","made":"2026-11-23T12:00:00Z","oldUntil":"2026-11-30T12:00:00Z"}`
		}
		return 200, `{"number":1,"secret":"whsec_b2xk","made":"2026-11-20T12:00:00Z"}`
	})
	handle("POST /v1/apikeys/verify", func(_ *http.Request, body map[string]any) (int, string) {
		switch {
		case !truly(body["probe"]):
			return 400, `{"error":"it would be counted as a use"}`
		case body["key"] == acmeKey:
			return 200, `{"valid":true,"key":"partners/acme","version":2,"client":"ACME Ltd.","scopes":["orders:read","orders:write"],"expires":"2026-12-31T00:00:00Z"}`
		case body["key"] == "often":
			return 200, `{"valid":false,"limited":true,"key":"partners/acme","version":2,"client":"ACME Ltd."}`
		case body["key"] == "unsure":
			return 503, `{"error":"API keys cannot be verified here now"}`
		}
		return 200, `{"valid":false}`
	})
}

func truly(v any) bool {
	b, is := v.(bool)
	return b && is
}
