package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/store"
)

// ErrConfig is wrapped by every error about a Config.
var ErrConfig = errors.New("invalid configuration of the relay")

// Config is what a Relay needs. Name, Centre, CentreName, Token, Store, Keeper and Now
// are required; everything else has a default.
type Config struct {
	// Name is the gateway's as a party. Further parties are NAME/2, NAME/3, …
	Name string
	// Region and Labels are those of the party.
	Region string
	Labels map[string]string
	// Centre is the way to the servers, without a token of its own.
	Centre *client.Route
	// CentreName says which centre it is; what was cached of another one does not open.
	CentreName string
	// Token supplies the gateway's own token, of a role that may present and forward.
	Token client.TokenSource
	// Store and Keeper are the cache, which belongs to this relay alone.
	Store  store.Store
	Keeper keeper.Keeper
	// Random draws the cache's key. Default: crypto/rand.
	Random io.Reader
	Now    func() time.Time
	// Monotonic is a clock that never jumps. Default: time.Now.
	Monotonic func() time.Time
	// Logger takes what is worth telling an operator, never a secret. Nil discards.
	Logger *slog.Logger
	// Refused is told, with the context of the request, of every token that is shown
	// while the centre is away and is not known here. May be nil.
	Refused func(ctx context.Context)

	// ServeFor is how long after the centre last accepted a token for a key the relay
	// hands the key out by itself. Default: 24 hours, at most 7 days.
	ServeFor time.Duration
	// KeepKeys is after how long without anybody asking for it a key is dropped.
	// Default: 30 days.
	KeepKeys time.Duration
	// ForgetClients is the centre's setting of that name: how long after its connection
	// ended a client counts as ended. Default: 2 minutes.
	ForgetClients time.Duration
	// Late is how long the centre may take to answer before the relay answers by itself.
	// Default: 2 seconds.
	Late time.Duration
	// Heartbeat is how often a stream that the relay serves by itself is given a sign of
	// life. Default: 10 seconds.
	Heartbeat time.Duration

	// Parties bounds the parties of the relay, each with 1,000 keys. Default: 4.
	Parties int
	// MaxGrants bounds what is remembered of tokens, in pairs of token and key; the oldest
	// are forgotten first. Default: 100,000.
	MaxGrants int
	// MaxHandouts bounds the hand-outs that wait to be told to the centre, each of one
	// version to one party. Default: 100,000.
	MaxHandouts int
	// MaxStreams bounds the streams and polls that are served at the same time. Default:
	// 20,000.
	MaxStreams int
}

const mostServeFor = 7 * 24 * time.Hour

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Name == "" || len(c.Name) > 120:
		return c, fmt.Errorf("%w: Name must have 1 to 120 characters, not %d", ErrConfig, len(c.Name))
	case c.Centre == nil || c.CentreName == "" || c.Token == nil:
		return c, fmt.Errorf("%w: Centre, CentreName and Token are required", ErrConfig)
	case c.Store == nil || c.Keeper == nil || c.Now == nil:
		return c, fmt.Errorf("%w: Store, Keeper and Now are required", ErrConfig)
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	if c.Monotonic == nil {
		c.Monotonic = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Refused == nil {
		c.Refused = func(context.Context) {}
	}
	for _, d := range []struct {
		name           string
		value          *time.Duration
		fallback, most time.Duration
	}{
		{"ServeFor", &c.ServeFor, 24 * time.Hour, mostServeFor},
		{"KeepKeys", &c.KeepKeys, 30 * 24 * time.Hour, 10 * 365 * 24 * time.Hour},
		{"ForgetClients", &c.ForgetClients, 2 * time.Minute, 24 * time.Hour},
		{"Late", &c.Late, 2 * time.Second, time.Minute},
		{"Heartbeat", &c.Heartbeat, 10 * time.Second, time.Minute},
	} {
		if *d.value < 0 || *d.value > d.most {
			return c, fmt.Errorf("%w: %s is %v; it must lie between 0 and %v", ErrConfig, d.name, *d.value, d.most)
		}
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	for _, n := range []struct {
		name                  string
		value                 *int
		fallback, least, most int
	}{
		{"Parties", &c.Parties, 4, 1, 100},
		{"MaxGrants", &c.MaxGrants, 100_000, 16, 10_000_000},
		{"MaxHandouts", &c.MaxHandouts, 100_000, 1, 10_000_000},
		{"MaxStreams", &c.MaxStreams, 20_000, 1, 10_000_000},
	} {
		if *n.value == 0 {
			*n.value = n.fallback
		}
		if *n.value < n.least || *n.value > n.most {
			return c, fmt.Errorf("%w: %s is %d; it must lie between %d and %d", ErrConfig, n.name, *n.value, n.least, n.most)
		}
	}
	return c, nil
}

// Stats is how the relay fares, for metrics.
type Stats struct {
	// Relayed and Own count the open streams and polls: those that the centre answers,
	// and those that the relay serves by itself. What waits for an answer is in neither.
	Relayed, Own int
	// HandedOut counts the versions that were handed out since the start.
	HandedOut uint64
	// Untold counts the hand-outs that the centre was not told of yet; Full says that
	// there is no room for more, so that nothing is handed out.
	Untold int
	Full   bool
	// Grants counts the pairs of token and key that may be served.
	Grants int
	// Keys are those that the relay holds a version of, OnlyRelayed those that it was
	// asked for and does not hold: its token does not cover them, or there are too many.
	Keys, OnlyRelayed int
	// Held counts the acknowledgements that wait for somebody who was served by the relay
	// itself and was not heard of by the centre since.
	Held int
	// Up says that the centre answers, Refused that it refuses the relay's own token;
	// then nothing is handed out.
	Up, Refused bool
	// LastWord is when the centre last answered anything, by Config.Monotonic; zero:
	// never since the start.
	LastWord time.Time
}
