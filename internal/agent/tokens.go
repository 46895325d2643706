package agent

import (
	"context"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/internal/agent/metadata"
	"github.com/keyturn/keyturn/secret"
)

// Metadata is the endpoint by which processes get tokens.
type Metadata struct {
	Listen metadata.Address
	// AuthorizationFile is where the secret is written that processes must show; empty:
	// they begin a session instead.
	AuthorizationFile string
	// Mode, UID and GID are those of the socket and of the file; -1 leaves the agent's own.
	Mode     fs.FileMode
	UID, GID int
	// Google answers in the form of Google's metadata server as well, Azure in those of
	// Azure's managed identities.
	Google, Azure bool
	// Tokens are what may be asked for, at least one.
	Tokens []MetadataToken
}

// MetadataToken is a token that processes may ask for.
type MetadataToken struct {
	Name, Issuer      string
	Audiences, Scopes []string
	// SubjectFile holds the token that is exchanged; empty: the agent's own token is what
	// the agent proves by.
	SubjectFile, SubjectType string
}

// source is how a token is asked for.
func (t *MetadataToken) source(cfg Config, own client.TokenSource) tokensource.Config {
	c := tokensource.Config{Issuer: t.Issuer, Addresses: cfg.Server, Audiences: t.Audiences, Scopes: t.Scopes, CACertFile: cfg.CAFile}
	if t.SubjectFile == "" {
		c.Secret = own
	} else {
		c.Subject, c.SubjectType = client.TokenFile(t.SubjectFile), t.SubjectType
	}
	return c
}

// serveTokens opens the endpoint; what it returns waits for its end, which is that of ctx.
func serveTokens(ctx context.Context, cfg Config, deps Deps, own client.TokenSource, counted *metrics) (wait func(), err error) {
	m, owner := cfg.Metadata, metadata.Owner{Mode: cfg.Metadata.Mode, UID: cfg.Metadata.UID, GID: cfg.Metadata.GID}
	rules := metadata.Rules{Port: m.Listen.Port, Google: m.Google, Azure: m.Azure, Tokens: map[string]metadata.Given{}, Now: deps.Now}
	tally := &metadata.Tally{Now: deps.Now, Tell: func(refused int, why string) {
		deps.Logger.WarnContext(ctx, "requests for tokens were refused", "requests", refused, "last", why)
	}}
	rules.Refused, rules.Answered = tally.Add, counted.answered
	if m.AuthorizationFile != "" {
		if rules.Authorization, err = metadata.Secret(m.AuthorizationFile, owner); err != nil {
			return nil, err
		}
	}
	listener, err := metadata.Listen(ctx, m.Listen, owner)
	if err != nil {
		return nil, err
	}
	var sources []*tokensource.Source
	closeAll := func() {
		for _, s := range sources {
			s.Close()
		}
	}
	for i := range m.Tokens {
		t := &m.Tokens[i]
		config := t.source(cfg, own)
		config.Now, config.Logger = deps.Now, deps.Logger.With("token", t.Name)
		s, err := tokensource.Open(ctx, config)
		if err != nil {
			closeAll()
			_ = listener.Close() // it was not used
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
		sources = append(sources, s)
		counted.holds(t.Name, func() time.Time { return s.Status().Expires })
		rules.Tokens[t.Name] = metadata.Given{Source: s, Audiences: t.Audiences, Scopes: t.Scopes}
	}
	deps.Logger.InfoContext(ctx, "processes get tokens", "listen", m.Listen.Address, "tokens", len(sources))
	var running sync.WaitGroup
	running.Go(func() {
		defer closeAll()
		if err := metadata.Serve(ctx, listener, metadata.New(rules)); err != nil {
			deps.Logger.ErrorContext(ctx, "processes get no tokens any more; restart the agent", "error", err)
		}
	})
	return running.Wait, nil
}

// ownToken is what the agent proves by who it is.
func ownToken(cfg Config, who identity) client.TokenSource {
	if who.token != nil {
		return who.token
	}
	return tokensource.Func(func(ctx context.Context) (secret.Value, error) { return client.TokenFile(cfg.TokenFile).Token(ctx) })
}
