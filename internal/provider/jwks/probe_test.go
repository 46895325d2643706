package jwks_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/provider/jwks"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// board is one on which nothing arrives until the test says so.
type board struct {
	mu      sync.Mutex
	arrived bool
	changes []jwks.Change
	err     error
	tokens  provider.Usage
}

func (b *board) Change(_ context.Context, change jwks.Change) (jwks.Standing, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, change)
	return jwks.Standing{Listed: change.Listed, Arrived: b.arrived, Waiting: "readers", Until: time.Now().Add(time.Hour)}, b.err
}

func (b *board) Standing(context.Context, key.Name, string, key.Version) (jwks.Standing, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return jwks.Standing{Listed: true, Arrived: b.arrived, Waiting: "readers"}, b.err
}

func (b *board) Tokens(context.Context, key.Name, key.Version) (provider.Usage, error) {
	return b.tokens, b.err
}

// system opens one with a verifier that is tried at a handler.
func system(t *testing.T, b *board, verifier http.HandlerFunc, sets http.HandlerFunc, extra string) provider.System {
	t.Helper()
	server := httptest.NewServer(verifier)
	t.Cleanup(server.Close)
	config := configOf(t, good+"audience: orders\n"+extra+"\nverifiers: [{name: api, probe: {url: '"+server.URL+"', accepted: [204], refused: [401]}}, {name: quiet}]")
	opened, err := jwks.New(jwks.Config{Board: b, Sets: sets, Now: time.Now}).Open(t.Context(), config, provider.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

func minted(t *testing.T, s provider.System) provider.Version {
	t.Helper()
	material, err := s.Mint(t.Context(), provider.Call{Key: "k"}, provider.MintRequest{Number: 1})
	if err != nil {
		t.Fatal(err)
	}
	return provider.Version{Number: 1, Material: material}
}

// TestVerdictsOfTheVerifier: only the statuses that were named are answers; all
// others, a redirect and a connection that breaks, are errors.
func TestVerdictsOfTheVerifier(t *testing.T) {
	status := 0
	var shown string
	s := system(t, &board{}, func(w http.ResponseWriter, r *http.Request) {
		shown = r.Header.Get("Authorization")
		switch status {
		case 0:
			panic(http.ErrAbortHandler)
		case http.StatusFound:
			http.Redirect(w, r, "https://evil.example.com/", status)
		default:
			w.WriteHeader(status)
		}
	}, nil, "")
	v := minted(t, s)
	for answer, want := range map[int]provider.Verdict{204: provider.Accepted, 401: provider.Refused, 0: 0, 200: 0, 302: 0, 403: 0, 404: 0, 429: 0, 500: 0, 503: 0} {
		status = answer
		verdict, err := s.Probe(t.Context(), provider.Call{Key: "k"}, "api", v)
		if verdict != want || (err == nil) != (want != 0) {
			t.Errorf("status %d: %v, %v", answer, verdict, err)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimPrefix(shown, "Bearer ")) {
			t.Errorf("status %d: the error shows the token", answer)
		}
	}
	if parts := strings.Split(strings.TrimPrefix(shown, "Bearer "), "."); len(parts) != 3 {
		t.Errorf("shown was %q", shown)
	}
}

// TestNoVerdictWhileCachesMayDiffer: what is served says nothing of what readers hold.
func TestNoVerdictWhileCachesMayDiffer(t *testing.T) {
	b := &board{}
	var set []byte
	sets := func(w http.ResponseWriter, r *http.Request) {
		if r.RemoteAddr != jwks.Inside {
			t.Errorf("the set is read as by %q", r.RemoteAddr)
		}
		if set == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(set)
	}
	s := system(t, b, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, sets, "algorithm: ES256")
	v := minted(t, s)
	set, _ = json.Marshal(map[string]any{"keys": []json.RawMessage{[]byte(v.Material.Attributes["jwk"])}})
	for _, endpoint := range []string{"published", "quiet"} {
		b.arrived = false
		if verdict, err := s.Probe(t.Context(), provider.Call{Key: "k"}, endpoint, v); verdict != 0 || !isLater(err) {
			t.Errorf("%s, before it has arrived: %v, %v", endpoint, verdict, err)
		}
		b.arrived = true
		if verdict, err := s.Probe(t.Context(), provider.Call{Key: "k"}, endpoint, v); verdict != provider.Accepted || err != nil {
			t.Errorf("%s: %v, %v", endpoint, verdict, err)
		}
	}
	good := set
	for what, body := range map[string][]byte{"not served": nil, "damaged": []byte(`{"keys":`)} {
		set = body
		if verdict, err := s.Probe(t.Context(), provider.Call{Key: "k"}, "published", v); verdict != 0 || err == nil {
			t.Errorf("a set that is %s: %v, %v", what, verdict, err)
		}
	}
	set = good
	if err := s.Accept(t.Context(), provider.Call{Key: "k", Fence: 7}, "published", v); err != nil {
		t.Fatal(err)
	}
	b.arrived = false
	if err := s.Refuse(t.Context(), provider.Call{Key: "k", Fence: 8}, "published", v); !isLater(err) || !strings.Contains(err.Error(), "readers") {
		t.Errorf("refuse: %v", err)
	}
	// The verifier that is tried refuses already: nothing need be waited for.
	if err := s.Refuse(t.Context(), provider.Call{Key: "k", Fence: 9}, "api", v); err != nil {
		t.Errorf("refuse at a verifier that refuses: %v", err)
	}
	if err := s.Accept(t.Context(), provider.Call{Key: "k", Fence: 10}, "api", v); !isLater(err) {
		t.Errorf("accept at a verifier that refuses: %v", err)
	}
	for i, want := range []uint64{7, 8, 9, 10} {
		if c := b.changes[i]; c.Fence != want || c.Issuer == "" || len(c.Endpoints) != 3 || c.Attributes["kid"] == "" {
			t.Errorf("change %+v", c)
		}
	}
}

func isLater(err error) bool {
	_, later := provider.IsLater(err)
	return later
}

// TestAProbeThatLetsEverybodyIn is found before a rotation begins.
func TestAProbeThatLetsEverybodyIn(t *testing.T) {
	for status, bad := range map[int]bool{204: true, 401: false, 500: true} {
		s := system(t, &board{}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }, nil, "")
		checker, _ := s.(provider.Preflighter)
		findings, err := checker.Preflight(t.Context(), provider.Call{Key: "k"}, nil)
		if (err != nil) != bad || len(findings) != 1 || findings[0].Code != "verifier-untried" {
			t.Errorf("status %d: %v, %v", status, findings, err)
		}
		if bad && (len(provider.Endpoints(err)) != 1 || provider.IsPermanent(err) != (status == 204)) {
			t.Errorf("status %d: %v at %v", status, err, provider.Endpoints(err))
		}
	}
}

// TestUseThatCannotBeSeen is no data, never zero.
func TestUseThatCannotBeSeen(t *testing.T) {
	refuse := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
	for _, s := range []provider.System{
		system(t, &board{}, refuse, nil, "signer: external"), system(t, &board{err: errors.New("away")}, refuse, nil, ""),
	} {
		meter, _ := s.(provider.Meter)
		if _, err := meter.Usage(t.Context(), provider.Call{Key: "k"}, minted(t, s)); !errors.Is(err, provider.ErrNoData) {
			t.Errorf("usage: %v", err)
		}
	}
}

// TestTakenIssuersAreToldToAHuman: repeating cannot mend them.
func TestTakenIssuersAreToldToAHuman(t *testing.T) {
	s := system(t, &board{err: jwks.ErrTaken}, nil, nil, "")
	if err := s.Accept(t.Context(), provider.Call{Key: "k"}, "published", minted(t, s)); !provider.IsPermanent(err) {
		t.Errorf("accept: %v", err)
	}
}

// TestEveryAlgorithmMints a key pair of its own with a name of its own.
func TestEveryAlgorithmMints(t *testing.T) {
	for _, algorithm := range []string{"EdDSA", "ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"} {
		config := configOf(t, good+"algorithm: "+algorithm)
		s, err := jwks.New(jwks.Config{Board: &board{arrived: true}, Now: time.Now}).Open(t.Context(), config, provider.Env{})
		if err != nil {
			t.Fatal(err)
		}
		v := minted(t, s)
		if v.Material.Attributes["alg"] != algorithm || len(v.Material.Attributes["kid"]) != 43 || !strings.Contains(v.Material.Secrets["privateKey"].RevealString(), "PRIVATE KEY") {
			t.Errorf("%s: %v", algorithm, v.Material.Attributes)
		}
		for _, private := range []string{`"d":`, `"p":`, `"k":`} {
			if strings.Contains(v.Material.Attributes["jwk"], private) {
				t.Errorf("%s: the public key has the field %s", algorithm, private)
			}
		}
	}
}
