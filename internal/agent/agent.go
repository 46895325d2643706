package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/lkg"
	"github.com/keyturn/keyturn/internal/harden"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Deps are what an agent takes from outside. The zero value is ready for use.
type Deps struct {
	// Logger takes what an operator should know; nil discards it.
	Logger *slog.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Getenv supplies KEYTURN_TOKEN and KEYTURN_JOIN_TOKEN; nil means that there
	// are none.
	Getenv func(string) string
	// Delivery replaces the connection to the server; nil makes one from the
	// configuration, joining first when there is no token.
	Delivery Delivery
	// Dumpable leaves out harden.Process, which Run calls otherwise.
	Dumpable bool

	pacing *pacing
}

// Run runs the agent until ctx ends; that is no error. A change that is under
// way then is put back, and taken up by the next start.
//
// It returns an error, at once, only for what an operator must mend: the error
// wraps ErrConfig, ErrJoin, metadata.ErrListen, lkg.ErrDirectory or lkg.ErrInUse. A server that is
// away is no error: the last known good versions are served meanwhile.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Getenv == nil {
		deps.Getenv = func(string) string { return "" }
	}
	if deps.pacing == nil {
		p := defaultPacing()
		deps.pacing = &p
	}
	if !deps.Dumpable {
		if err := harden.Process(); err != nil {
			return err
		}
	}
	var targets []*target
	if len(cfg.Targets) > 0 || cfg.Metadata == nil {
		var err error
		if targets, err = newTargets(cfg.Targets); err != nil {
			return err
		}
	}
	state, err := lkg.Open(cfg.StateDir)
	if err != nil {
		return err
	}
	err = run1(ctx, cfg, deps, targets, state)
	return errors.Join(err, state.Close())
}

// run1 is Run with the state directory open.
func run1(ctx context.Context, cfg Config, deps Deps, targets []*target, state store) error {
	id, delivery := cfg.PartyID, deps.Delivery
	var who identity
	if delivery == nil {
		var err error
		if who, err = identify(ctx, cfg, deps); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		id = who.party
		if delivery, err = connect(cfg, deps, who); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	counted := newMetrics()
	if cfg.MetricsListen != "" {
		ctx, cancel := context.WithCancel(ctx)
		wait, err := counted.serve(ctx, cfg.MetricsListen, deps)
		if err != nil {
			cancel()
			return err
		}
		defer wait()
		defer cancel()
	}
	if cfg.Metadata != nil {
		ctx, cancel := context.WithCancel(ctx)
		wait, err := serveTokens(ctx, cfg, deps, ownToken(cfg, who), counted)
		if err != nil {
			cancel()
			return err
		}
		defer wait()
		defer cancel()
		if len(targets) == 0 {
			<-ctx.Done()
			return nil
		}
	}
	w := &worker{
		log: deps.Logger.With("party", id), now: deps.Now, store: state, binding: lkg.Binding(id, cfg.Server),
		delivery: delivery, pacing: *deps.pacing, targets: targets, samples: newSamples(), wake: make(chan struct{}, 1),
		desired: make(map[key.Name]client.Assignment), applied: make(map[key.Name]client.Assignment),
		failures: make(map[key.Name]failure),
	}
	known := w.start(ctx)
	w.log.InfoContext(ctx, "the agent watches", "keys", len(known), "targets", len(targets), "server", cfg.Server)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var background sync.WaitGroup
	background.Go(func() { w.retry(ctx) })
	background.Go(func() { w.samples.send(ctx, delivery, w.log) })
	for _, t := range targets {
		if t.cfg.Health != nil {
			background.Go(func() { w.sample(ctx, t) })
		}
	}
	err := delivery.Watch(ctx, known, w.handle)
	ended := ctx.Err() != nil
	cancel()
	background.Wait()
	w.acks.Wait()
	if ended {
		w.log.InfoContext(ctx, "the agent has ended; the files stay as they are")
		return nil
	}
	return fmt.Errorf("watch %s: %w", cfg.Server, err)
}

// identity is who the agent is, by its token.
type identity struct {
	party string
	token client.TokenSource
}

// connect makes the client of the agent.
func connect(cfg Config, deps Deps, who identity) (*client.Client, error) {
	log := deps.Logger
	return client.New(client.Config{
		Address: cfg.Server, CACertFile: cfg.CAFile, Token: who.token, Now: deps.Now, Logger: log,
		Party: client.Party{ID: who.party, Kind: client.KindAgent, Region: cfg.Region, Labels: cfg.Labels},
		OnStatus: func(s client.Status) {
			switch {
			case s.Mode != 0:
				log.Info("the server is reached", "mode", s.Mode.String())
			case s.Err == nil:
				log.Info("the server restarts; the last known good versions stay in use", "retry_in", s.RetryIn)
			case s.Permanent:
				log.Error("the server refuses the agent; the last known good versions stay in use", "retry_in", s.RetryIn, "error", s.Err)
			default:
				log.Warn("the server is not reached; the last known good versions stay in use", "retry_in", s.RetryIn, "error", s.Err)
			}
		},
	})
}

// static is a token that came by the environment.
func static(token string) client.TokenSource { return client.StaticToken(secret.NewString(token)) }
