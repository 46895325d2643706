package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/compat/apikeys"
	"github.com/keyturn/keyturn/internal/configfile"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/ingress"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/policy"
	apikeydriver "github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/key"
)

// APIKeysConfig says how API keys are verified.
type APIKeysConfig struct {
	// Stale is how long this node goes on letting in what it knows while it cannot
	// read its database. Refusing a key waits so long for a server that has died.
	// Default: 5m.
	Stale time.Duration `yaml:"stale"`
	// PerSecond is how many keys one token may verify per second, and at once.
	// Default: 100,000.
	PerSecond float64 `yaml:"perSecond"`
	// Mail says how partners are told by e-mail.
	Mail MailConfig `yaml:"mail"`
	// Webhooks says which webhooks of partners may be called.
	Webhooks WebhooksConfig `yaml:"webhooks"`
	// Page is where partners find the page for their keys, for notices.
	Page string `yaml:"page"`
}

func (c *APIKeysConfig) fill() {
	configfile.Fill(&c.Stale, 5*time.Minute)
	configfile.Fill(&c.PerSecond, 100_000)
}

// minStale leaves a node time to be restarted.
const minStale = 15 * time.Second

func (c *APIKeysConfig) check() []problem {
	var problems []problem
	if c.Stale < minStale || c.Stale > maxForget {
		problems = append(problems, problem{Field: "apiKeys.stale", Message: fmt.Sprintf("%v is not between %v and %v", c.Stale, minStale, maxForget)})
	}
	if c.PerSecond < 1 || c.PerSecond > maxVerified {
		problems = append(problems, problem{Field: "apiKeys.perSecond", Message: fmt.Sprintf("%v is not between 1 and %d", c.PerSecond, int(maxVerified))})
	}
	problems = append(append(problems, c.Mail.check()...), c.Webhooks.check()...)
	return append(problems, checkPage(c.Page)...)
}

const maxVerified = 1e7

// newAPIKeys makes the service that verifies API keys.
func (s *Server) newAPIKeys(now func() time.Time, keys keeper.Keeper) error {
	counters := map[keytable.Reason]prometheus.Counter{}
	for reason := keytable.Good; reason <= keytable.Limited; reason++ {
		counters[reason] = s.telemetry.Verifications(reason.String())
	}
	node, err := nodeName(s.config.DataDir)
	if err != nil {
		return err
	}
	s.apiKeys = apikey.New(apikey.Config{
		Store: s.store, Keeper: keys, Logger: s.log, Now: now, Node: node, Stale: s.config.APIKeys.Stale, Alone: s.config.Store.Postgres == nil,
		Proven: func(ctx context.Context, name key.Name, v key.Version) error {
			return s.engine.Forget(ctx, apikeys.ActorOf(name), name, v, apikeys.PartyOf(name))
		},
		Used: s.observeAPIKeys, Tried: s.telemetry.PartnersSeen,
		Verified: func(reason keytable.Reason) {
			if counter, ok := counters[reason]; ok {
				counter.Inc()
			}
		},
	})
	return nil
}

// nodeName is the same after every start from one data folder, and another one at
// every other.
func nodeName(dataDir string) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the name of this machine: %w", err)
	}
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return "", fmt.Errorf("data folder: %w", err)
	}
	sum := sha256.Sum256([]byte(dir))
	return host + "-" + hex.EncodeToString(sum[:4]), nil
}

// apiKeyRoutes adds what concerns API keys. Verifying has a rate of its own.
func (s *Server) apiKeyRoutes(api *http.ServeMux, usual *ingress.Gate) {
	writer := connect.NewErrorWriter()
	principal := func(ctx context.Context) (authz.Principal, error) { return s.service.Principal(ctx, authz.Verify) }
	refuse := func(w http.ResponseWriter, r *http.Request, err error) {
		_ = writer.Write(w, r, err) // the caller is gone if this fails
	}
	handlers := apikeys.New(apikeys.Config{Keys: s.apiKeys, Principal: principal, Refuse: refuse})
	often := usual.WithTokens(ingress.Rate{PerSecond: s.config.APIKeys.PerSecond, Burst: int(s.config.APIKeys.PerSecond)})
	reader := func(ctx context.Context) (authz.Principal, error) { return s.service.Principal(ctx, authz.Read) }
	usesConfig := apikeys.UsesConfig{Uses: s.apiKeys, Principal: reader, Refuse: refuse}
	api.Handle("GET /v1/apikeys/uses", s.service.Authenticate(apikeys.NewUses(usesConfig), usual))
	api.Handle("GET /v1/apikeys/clients", s.service.Authenticate(apikeys.NewClients(usesConfig), usual))
	stream := apikeys.NewStream(apikeys.StreamConfig{Snapshots: s.apiKeys, Principal: principal, Refuse: refuse, Guard: s.service.Guard})
	api.Handle("GET /v1/apikeys/snapshot", s.service.Authenticate(http.HandlerFunc(stream.Snapshot), often))
	api.Handle("POST /v1/apikeys/report", s.service.Authenticate(http.HandlerFunc(stream.Report), often))
	self := apikeys.NewSelf(apikeys.SelfConfig{Keys: s.apiKeys, Engine: s.engine, Hub: s.hub, Notices: s.teller, Uses: s.apiKeys, Blocked: usual.Blocked, Refused: usual.Refused})
	page := self.Page()
	api.Handle("GET /apikeys", page)
	api.Handle("POST /apikeys", page)
	api.HandleFunc("GET /v1/apikeys/self", self.Status)
	api.HandleFunc("POST /v1/apikeys/self/successor", self.Successor)
	api.HandleFunc("GET /v1/apikeys/self/webhook-secret", self.WebhookSecret)
	api.HandleFunc("POST /v1/apikeys/self/webhook-secret", self.WebhookSecret)
	telling := apikeys.NewTelling(apikeys.NoticesConfig{Notices: s.teller, Principal: s.service.Principal, Refuse: refuse})
	api.Handle("GET /v1/apikeys/notices", s.service.Authenticate(http.HandlerFunc(telling.List), usual))
	api.Handle("POST /v1/apikeys/notices", s.service.Authenticate(http.HandlerFunc(telling.Tell), usual))
	api.Handle("POST /v1/apikeys/webhook-secret", s.service.Authenticate(http.HandlerFunc(telling.Secret), usual))
	api.Handle("POST /v1/apikeys/verify", s.service.Authenticate(http.HandlerFunc(handlers.Verify), often))
}

// applier gives the versions of API keys, and published signing keys, the rules of
// their keys when these are applied.
type applier struct {
	*engine.Engine
	apiKeys  *apikey.Service
	tokens   *tokens
	expiries expiries
	gateways gateways
}

// Doctor implements rpc.Engine: the engine's checks, the API keys that end soon, and
// the gateways that are away.
func (a applier) Doctor(ctx context.Context) ([]engine.Check, error) {
	checks, err := a.Engine.Doctor(ctx)
	if err != nil {
		return checks, err
	}
	ending, err := a.expiries.check(ctx)
	if err != nil {
		return checks, err
	}
	away, err := a.gateways.check(ctx)
	return append(checks, ending, away), err
}

// Apply implements rpc.Engine. What is applied is stored even if the rules could not
// be passed on; applying it again passes them on.
func (a applier) Apply(ctx context.Context, actor audit.Actor, request engine.ApplyRequest) (engine.ApplyResult, error) {
	result, err := a.Engine.Apply(ctx, actor, request)
	signing := a.tokens.board.Keys()
	if err != nil || request.DryRun || a.apiKeys.Len() == 0 && len(signing) == 0 {
		return result, err
	}
	for i := range result.Changes {
		change := &result.Changes[i]
		if change.Kind != policy.KindKey {
			continue
		}
		name := key.Name(change.Name)
		var err error
		switch {
		case change.Op != policy.Deleted && slices.Contains(signing, name):
			err = a.tokens.govern(ctx, name)
		case change.Op == policy.Changed || change.Op == policy.Unchanged:
			err = a.govern(ctx, name)
		}
		if err != nil {
			return result, fmt.Errorf("key %s is applied, and its versions have the rules of before; apply it again: %w", change.Name, err)
		}
	}
	return result, nil
}

func (a applier) govern(ctx context.Context, name key.Name) error {
	if held, err := a.apiKeys.Held(ctx, name); err != nil || len(held) == 0 {
		return err
	}
	view, err := a.Engine.Key(ctx, name)
	if errors.Is(err, engine.ErrNotFound) {
		return nil // it is deleted
	}
	if err != nil || view.Resource.Spec.Provider != "apikey" {
		return err
	}
	rules, err := apikeydriver.RulesOf(view.Resource.Spec.Config)
	if err != nil {
		return err
	}
	return a.apiKeys.Govern(ctx, name, rules)
}
