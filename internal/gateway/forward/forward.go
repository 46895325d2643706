package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/client/tokencheck"
)

// Keys verifies API keys; apikeycheck.Checker is one.
type Keys interface {
	// Check tells whose key text is and counts the use, by whoever is at address. It fails
	// with the errors of apikeycheck.
	Check(text, address string) (apikeycheck.Result, error)
	// Identify is Check without a use.
	Identify(text string) (apikeycheck.Result, error)
}

// Tokens verifies access tokens for one audience; tokencheck.Checker is one.
type Tokens interface {
	// Check fails with the errors of tokencheck, and waits no longer than ctx.
	Check(ctx context.Context, shown *tokencheck.Shown) (tokencheck.Claims, error)
	// Nonce is one for proofs.
	Nonce() string
}

// Config is what a Service needs. Keys, Caller, Logger and Now are required, Tokens for
// the names of Settings.Tokens.
type Config struct {
	// Settings have been checked.
	Settings Settings
	Keys     Keys
	// Tokens are the verifiers of Settings.Tokens, by their names.
	Tokens map[string]Tokens
	// Caller says whether whoever made a request may ask; its error is logged, and not
	// told. What it reads of a request must be set by the caller's side of a connection:
	// proxies pass headers of clients on. ProxyTokens.Caller is one.
	Caller func(r *http.Request) error
	Logger *slog.Logger
	Now    func() time.Time
	// Metrics takes keyturn_gateway_decisions_total. Nil: nothing is counted.
	Metrics prometheus.Registerer
}

// ErrConfig is wrapped by every error about a Config.
var ErrConfig = errors.New("invalid configuration of what proxies ask for")

// checkTime bounds how long a token is verified: one of a key that is not known makes the
// set of keys be fetched.
const checkTime = 3 * time.Second

// Service answers. Its methods may be called concurrently.
type Service struct {
	config  Config
	gates   map[string]*gate
	trusted []netip.Prefix
	counts  counts
	said    said
	verify  http.Handler
	envoy   http.Handler
}

// gate is one of the configuration, with what it needs at hand.
type gate struct {
	GateConfig
	name   string
	tokens Tokens
	// scope are the scopes as a challenge names them.
	scope string
	// every: the patterns of keys match all.
	every bool
}

// New returns a service.
func New(config Config) (*Service, error) {
	if problems := config.Settings.Check(); len(problems) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrConfig, problems[0])
	}
	if config.Keys == nil || config.Caller == nil || config.Logger == nil || config.Now == nil {
		return nil, fmt.Errorf("%w: Keys, Caller, Logger and Now are required", ErrConfig)
	}
	s := &Service{config: config, gates: map[string]*gate{}, trusted: config.Settings.prefixes(), said: said{now: config.Now, log: config.Logger}}
	for name, g := range config.Settings.Gates {
		one := &gate{GateConfig: g, name: name, scope: strings.Join(g.Scopes, " ")}
		for _, pattern := range g.Keys {
			one.every = one.every || pattern == "**"
		}
		if g.Tokens != "" {
			if one.tokens = config.Tokens[g.Tokens]; one.tokens == nil {
				return nil, fmt.Errorf("%w: Tokens lacks the verifier %q of gate %q", ErrConfig, g.Tokens, name)
			}
		}
		s.gates[name] = one
	}
	var err error
	if s.counts, err = newCounts(config.Metrics, s.gates); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	s.verify = s.verifyHandler()
	s.envoy = s.envoyHandler()
	return s, nil
}

// The paths that are answered.
const (
	// Prefix is followed by the name of a gate, and whatever a proxy appends after a slash.
	Prefix     = "/v1/forward/"
	VerifyPath = "/v1/apikeys/verify"
	EnvoyPath  = "/envoy.service.auth.v3.Authorization/Check"
)

// Handler answers what is asked of this package, and passes the rest on to next. It must
// stand before anything that cleans paths and redirects, as http.ServeMux does: Envoy
// appends the client's path, and an answer of 3xx is none about a credential.
func (s *Service) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.EscapedPath()
		switch {
		case path == EnvoyPath:
			s.envoy.ServeHTTP(w, r)
		case path == VerifyPath && r.Method == http.MethodPost:
			s.verify.ServeHTTP(w, r)
		case strings.HasPrefix(path, Prefix):
			name, _, _ := strings.Cut(path[len(Prefix):], "/")
			s.forward(w, r, name)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// allowed asks the Config whether somebody may ask.
func (s *Service) allowed(r *http.Request) bool {
	err := s.config.Caller(r)
	if err != nil {
		s.counts.add(nil, 0, BadCaller)
		s.said.warn(r.Context(), "caller", "somebody asked about a credential who may not; show a token of a proxy, or see docs/reference/gateway-proxies.md",
			"error", err, "from", peerAddress(r.RemoteAddr))
	}
	return err == nil
}

// gateOf returns the gate that a proxy names.
func (s *Service) gateOf(ctx context.Context, name string) *gate {
	g := s.gates[name]
	if g == nil {
		s.counts.add(nil, 0, NoGate)
		s.said.warn(ctx, "gate "+name[:min(len(name), maxSaid)], "a proxy asked for a gate that is not in the configuration; its requests are refused",
			"gate", name[:min(len(name), maxSaid)])
	}
	return g
}
