package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/internal/compat/jwks"
	"github.com/keyturn/keyturn/internal/configfile"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/ingress"
	provided "github.com/keyturn/keyturn/internal/provider/jwks"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// TokensConfig is about signing keys and the tokens signed with them.
type TokensConfig struct {
	// Outage is for how long keys are served and tokens signed while the store does
	// not answer; what a node that died published counts for as long. Default: 5m.
	Outage time.Duration `yaml:"outage"`
	// Skew is how far clocks of readers may differ. Default: 2s.
	Skew time.Duration `yaml:"skew"`
	// PerSecond is how many sets one address may fetch per second, Burst at once.
	// Defaults: 100 and 1,000.
	PerSecond float64 `yaml:"perSecond"`
	Burst     int     `yaml:"burst"`
	// IssuePerSecond is how many tokens one address may ask for per second. Default: 1,000.
	IssuePerSecond float64 `yaml:"issuePerSecond"`
	// ClientCertificates asks clients for a TLS certificate, for rules that go by it and
	// for tokens that are bound to it.
	ClientCertificates bool `yaml:"clientCertificates"`
	// Region and Labels are those of the server's signer, as a party.
	Region string            `yaml:"region"`
	Labels map[string]string `yaml:"labels"`
}

func (c *TokensConfig) fill() {
	configfile.Fill(&c.Outage, 5*time.Minute)
	configfile.Fill(&c.Skew, 2*time.Second)
	configfile.Fill(&c.PerSecond, 100)
	configfile.Fill(&c.Burst, 1000)
	configfile.Fill(&c.IssuePerSecond, 1000)
}

// Bounds of the tokens block.
const (
	minOutage, maxOutage = time.Second, 24 * time.Hour
	minSkew, maxSkew     = 10 * time.Millisecond, 5 * time.Minute
	maxTokenLabels       = 32
	maxTokenLabel        = 256
)

func (c *TokensConfig) check() []problem {
	var problems []problem
	between := func(field string, ok bool, value, least, most any) {
		if !ok {
			problems = append(problems, problem{Field: "tokens." + field, Message: fmt.Sprintf("%v is not between %v and %v", value, least, most)})
		}
	}
	between("outage", c.Outage >= minOutage && c.Outage <= maxOutage, c.Outage, minOutage, maxOutage)
	between("skew", c.Skew >= minSkew && c.Skew <= maxSkew, c.Skew, minSkew, maxSkew)
	between("perSecond", c.PerSecond > 0 && c.PerSecond <= maxRate, c.PerSecond, "more than 0", int(maxRate))
	between("issuePerSecond", c.IssuePerSecond > 0 && c.IssuePerSecond <= maxRate, c.IssuePerSecond, "more than 0", int(maxRate))
	between("burst", c.Burst >= 1 && c.Burst <= maxRate, c.Burst, 1, int(maxRate))
	if len(c.Labels) > maxTokenLabels {
		problems = append(problems, problem{Field: "tokens.labels", Message: fmt.Sprintf("there are %d, at most %d are allowed", len(c.Labels), maxTokenLabels)})
	}
	for name, value := range c.Labels {
		if name == "" || len(name) > maxTokenLabel || len(value) > maxTokenLabel {
			problems = append(problems, problem{Field: "tokens.labels", Message: fmt.Sprintf("label %q and its value have 1 to %d bytes each", name, maxTokenLabel)})
		}
	}
	return problems
}

// tokens publishes signing keys and signs with them.
type tokens struct {
	server *Server
	board  *token.Board
	signer *token.Signer
	node   string
	// sets serves without limits, for tries; public is what clients reach.
	sets, public http.Handler
}

// newTokens makes the service; it starts nothing.
func newTokens(s *Server, options Options) (*tokens, error) {
	node, err := nodeName(s.config.DataDir)
	if err != nil {
		return nil, err
	}
	t := &tokens{server: s, node: node}
	c := &s.config.Tokens
	t.board = token.NewBoard(token.BoardConfig{Store: s.store, Logger: s.log, Now: options.Now, Node: node, Outage: c.Outage, Skew: c.Skew, ClientCertificates: c.ClientCertificates, Restored: s.restored})
	t.signer = token.NewSigner(token.SignerConfig{
		Store: s.store, Board: t.board, Connect: t.connect, Report: t.report, Logger: s.log, Now: options.Now, Node: node, Outage: c.Outage, Skew: c.Skew,
	})
	rate := ingress.NewAddressRate(ingress.AddressRateConfig{
		Rate: ingress.Rate{PerSecond: c.PerSecond, Burst: c.Burst},
		What: "fetches of signing keys; tokens.perSecond and tokens.burst say how many an address may make", Now: options.Now, Tally: s.tally,
	})
	t.sets = jwks.New(jwks.Config{Board: t.board})
	t.public = jwks.New(jwks.Config{Board: t.board, Fetched: s.telemetry.SetFetched, Admit: rate.Admit})
	return t, nil
}

// driver is the provider of signing keys; without a service it only checks.
func (t *tokens) driver() provider.Driver {
	if t == nil {
		return provided.New(provided.Config{})
	}
	return provided.New(provided.Config{Board: board{t.board}, Sets: t.sets, Now: t.server.clock.Now})
}

// route answers what is published before everything else.
func (t *tokens) route(gate *ingress.Gate, next http.Handler) http.Handler {
	public := gate.Wrap(t.server.service.Forwarded(t.public, gate))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token.IsPublic(r.URL.Path) {
			public.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// board is the service as the provider sees it.
type board struct{ *token.Board }

// Change implements jwks.Board.
func (b board) Change(ctx context.Context, change provided.Change) (provided.Standing, error) {
	standing, err := b.Board.Change(ctx, token.Change(change))
	switch {
	case errors.Is(err, token.ErrTaken):
		err = fmt.Errorf("%w: %w", provided.ErrTaken, err)
	case errors.Is(err, token.ErrFenced):
		err = fmt.Errorf("%w: %w", provided.ErrFenced, err)
	}
	return provided.Standing(standing), err
}

// Standing implements jwks.Board.
func (b board) Standing(ctx context.Context, name key.Name, endpoint string, v key.Version) (provided.Standing, error) {
	standing, err := b.Board.Standing(ctx, name, endpoint, v)
	return provided.Standing(standing), err
}

// govern makes what is published of a key follow its config as it was applied.
func (t *tokens) govern(ctx context.Context, name key.Name) error {
	view, err := t.server.engine.Key(ctx, name)
	if errors.Is(err, engine.ErrNotFound) {
		return nil // it was deleted; what was published of it stays
	}
	if err != nil || view.Resource.Spec.Provider != "jwks" {
		return err
	}
	settings, err := provided.SettingsOf(view.Resource.Spec.Config)
	if err != nil {
		return err
	}
	governed := token.Settings{
		Issuer: settings.Issuer, TokenLife: settings.TokenLife, CacheLife: settings.CacheLife, External: settings.External, Readers: map[string]token.Reader{},
	}
	for endpoint, reader := range settings.Readers {
		governed.Readers[endpoint] = token.Reader(reader)
	}
	return t.board.Govern(ctx, name, governed)
}

// governAll does so for all keys: a server may have died after a config was applied.
func (t *tokens) governAll(ctx context.Context) {
	for _, name := range t.board.Keys() {
		if err := t.govern(ctx, name); err != nil && ctx.Err() == nil {
			t.server.log.WarnContext(ctx, "what a signing key publishes does not follow its config; apply it again", "key", name, "error", err)
		}
	}
}

// restored returns when the store was last put back to an earlier state.
func (s *Server) restored(ctx context.Context) (time.Time, error) {
	return engine.LastRestore(ctx, s.store)
}

// party is the ID of this node's signer.
func (t *tokens) party() string { return "signer-" + t.node }

// report tells the hub how a version fares at this node's signer.
func (t *tokens) report(ctx context.Context, name key.Name, v key.Version, failed error) error {
	sample := engine.Sample{Presenter: t.party(), Attempts: 1, Healthy: true}
	if failed != nil {
		sample.AuthFailures, sample.Healthy, sample.Detail = 1, false, "a token of this version is not accepted by the published set: "+failed.Error()
	}
	return t.server.hub.Report(ctx, name, v, sample)
}

// connect opens the session of this node's signer.
func (t *tokens) connect(ctx context.Context, holdings []token.Holding) (token.Session, error) {
	party := engine.PartyRecord{ID: t.party(), Kind: hub.KindClient, Region: t.server.config.Tokens.Region, Labels: t.server.config.Tokens.Labels, Address: engine.InProcess}
	list := make([]engine.Holding, 0, len(holdings))
	for _, h := range holdings {
		switch _, err := t.server.engine.Key(ctx, h.Key); {
		case errors.Is(err, engine.ErrNotFound):
			continue // it was deleted; what was published of it stays, as a database keeps its roles
		case err != nil:
			return nil, err
		}
		list = append(list, engine.Holding(h))
	}
	session, err := t.server.hub.Connect(ctx, engine.Server(), party, list)
	if err != nil {
		return nil, err
	}
	return signerSession{Session: session, hub: t.server.hub, party: party.ID}, nil
}

// signerSession is a session of the hub as the signer sees it.
type signerSession struct {
	*hub.Session
	hub   *hub.Hub
	party string
}

// Next implements token.Session.
func (s signerSession) Next(ctx context.Context, wait time.Duration) ([]token.Assignment, error) {
	deliveries, err := s.Session.Next(ctx, wait)
	if err != nil {
		return nil, err
	}
	list := make([]token.Assignment, len(deliveries))
	for i, d := range deliveries {
		list[i] = token.Assignment{Key: d.Key, Version: d.Version, Epoch: d.Epoch, Material: d.Material}
	}
	return list, nil
}

// Acknowledge implements token.Session.
func (s signerSession) Acknowledge(ctx context.Context, outcomes []token.Outcome) error {
	list := make([]hub.Outcome, len(outcomes))
	for i, o := range outcomes {
		list[i] = hub.Outcome{Key: o.Key, Epoch: o.Epoch, OK: o.OK, Using: o.Using, Detail: o.Detail}
	}
	return s.hub.Acknowledge(ctx, s.party, list)
}
