package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/console"
	"github.com/keyturn/keyturn/internal/datadir"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/handout"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/ingress"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/rpc"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/provider"
)

// Options are what a server needs beside its configuration.
type Options struct {
	// Drivers replace providers of the same name, and add to them.
	Drivers map[string]provider.Driver
	// LogTo takes the log. Default: standard error.
	LogTo io.Writer
	// Now is the machine's clock. Default: time.Now. A store that servers share has
	// one of its own, by which it is set.
	Now func() time.Time
	// Version is that of the program; backups name it.
	Version string

	// effectTime is for tests; 0 is the engine's.
	effectTime time.Duration
}

// Server is a running server. Its methods may be called concurrently.
type Server struct {
	config    Config
	log       *slog.Logger
	store     storage
	clock     *clock
	engine    *engine.Engine
	hub       *hub.Hub
	identity  *identity.Registry
	telemetry *telemetry
	apiKeys   *apikey.Service
	teller    *teller
	signer    *audit.Signer
	tokens    *tokens
	// emergencies declares groups.
	emergencies *emergency.Service
	broker      *broker.Broker
	handouts    *handout.Service

	servers   []*http.Server
	address   string
	caFile    string
	tokenFile string
	failed    chan error
	service   *rpc.Service
	tally     *ingress.Tally

	stopSweeping context.CancelFunc
	running      sync.WaitGroup

	stopOnce sync.Once
	stopErr  error
}

// Start starts a server. When it returns nil the server is ready; Stop must be
// called. ctx bounds the start only.
func Start(ctx context.Context, config Config, options Options) (_ *Server, err error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.LogTo == nil {
		options.LogTo = os.Stderr
	}
	if err := datadir.Make(config.DataDir); err != nil {
		return nil, err
	}
	s := &Server{config: config, log: config.Log.New(options.LogTo), failed: make(chan error, 2)}
	s.tally = ingress.NewTally(s.log, time.Now)
	keys, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	own := options.Now
	s.clock = newClock(ctx, own, s.store, s.log)
	options.Now = s.clock.Now
	if err := s.assemble(ctx, options, keys); err != nil {
		return nil, errors.Join(err, s.store.Stop())
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, s.store.Stop())
	}
	if err := s.tokens.board.Start(ctx); err != nil {
		return nil, errors.Join(err, s.store.Stop())
	}
	sweeping, stopSweeping := context.WithCancel(context.WithoutCancel(ctx))
	s.stopSweeping = stopSweeping
	s.running.Go(func() { s.sweep(sweeping) })
	s.running.Go(func() { s.clock.run(sweeping) })
	s.running.Go(func() { s.rewrap(sweeping, keys) })
	s.teller = s.newTeller(options.Now, keys)
	s.running.Go(func() { s.teller.run(sweeping) })
	s.running.Go(func() { s.engine.TryFullStore(sweeping) })
	s.running.Go(func() { s.emergencies.Run(sweeping) })
	if _, shared := s.store.(store.Clock); shared {
		s.running.Go(func() { s.followRevocations(sweeping) })
	}
	s.tokens.governAll(ctx)
	s.telemetry.start(ctx, s.engine, partners{s.engine, s.teller})
	s.apiKeys.Start(ctx)
	s.engine.Start(ctx)
	s.hub.Start(ctx)
	s.tokens.signer.Start(ctx)
	if err := s.broker.Start(ctx); err != nil {
		return nil, errors.Join(err, s.Stop(ctx))
	}
	if err := s.serve(ctx, options, own); err != nil {
		return nil, errors.Join(err, s.Stop(ctx))
	}
	s.checkDescriptors(ctx)
	s.log.InfoContext(ctx, "ready", "address", s.Address(), "ca", s.caFile)
	return s, nil
}

// assemble makes the parts and connects them; it starts nothing.
func (s *Server) assemble(ctx context.Context, options Options, keys keeper.Keeper) error {
	var err error
	s.hub = hub.New(hub.Config{
		Logger: s.log, Now: options.Now, Store: s.store, MaxSessions: s.config.Limits.Parties, ForgetClients: s.config.Limits.ForgetClients,
		Sampled: s.sampled,
	})
	if s.telemetry, err = newTelemetry(&s.config, s.log, options.Now, s.hub.Connected, &ledger{server: s, node: rand.Text()}); err != nil {
		return err
	}
	if err := s.newAPIKeys(options.Now, keys); err != nil {
		return err
	}
	if s.tokens, err = newTokens(s, options); err != nil {
		return err
	}
	s.engine, err = engine.New(engine.Config{
		Store: s.store, Keeper: keys, Drivers: s.drivers(options), Signer: s.signer, Fleet: s.hub, Observer: s.telemetry,
		Logger: s.log, Now: options.Now, Random: rand.Reader, Seen: s.keepSeen, EffectTime: options.effectTime,
		Acts: s.config.Limits.RuleEmergencies, ActsOfKey: s.config.Limits.RuleEmergenciesPerKey,
	})
	if err != nil {
		return err
	}
	s.hub.Use(s.engine)
	s.broker = s.newBroker(keys)
	s.identity = identity.New(identity.Config{Store: s.store, Journal: s.engine, Now: options.Now, Random: rand.Reader})
	s.tokenFile, err = rootToken(ctx, s.identity, s.config.DataDir)
	regional := gateways{identity: s.identity, engine: s.engine, presence: s.hub.Presence, verifiers: s.apiKeys.Verifiers, now: options.Now}
	s.emergencies = emergency.New(emergency.Config{
		Store: s.store, Engine: s.engine, Fleet: s.engine, Tokens: s.readingTokens, Untold: regional.untold, Logger: s.log, Now: options.Now, Random: rand.Reader,
	})
	s.handouts = handout.New(handout.Config{Store: s.store, Journal: s.engine, Now: options.Now})
	s.service = rpc.New(rpc.Config{
		Engine: applier{s.engine, s.apiKeys, s.tokens, expiries{s.store, s.engine, options.Now}, regional}, Hub: s.hub, Identity: s.identity, Backups: backups{server: s, now: options.Now, version: options.Version},
		LogKeys: []string{s.signer.VerifierKey()}, Now: options.Now, StreamsPerToken: s.config.Limits.StreamsPerToken, Emergencies: s.emergencies, Handouts: s.handouts,
	})
	return err
}

// sweepEvery is how often expired tokens are deleted.
const sweepEvery = time.Hour

func (s *Server) sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		if err := s.identity.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "expired tokens could not be deleted; trying again later", "error", err)
		}
		if err := s.handouts.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "old notes of gateways could not be deleted; trying again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// serve begins to answer calls. Certificates are made and read by the machine's
// own clock, as others read them.
func (s *Server) serve(ctx context.Context, options Options, own func() time.Time) error {
	tlsConfig, caFile, err := ingress.NewTLS(s.ingressTLS(own))
	if err != nil {
		return err
	}
	s.caFile = caFile
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w; set another address as listen in the configuration", err)
	}
	s.address = "https://" + listener.Addr().String()
	api := ingress.NewServer(s.routes(options), s.log)
	api.TLSConfig = tlsConfig
	s.servers = append(s.servers, api)
	bounded := ingress.Bound(listener, ingress.ListenerConfig{
		Connections: s.config.Limits.Connections, PerAddress: s.config.Limits.ConnectionsPerAddress,
		Refused: func() {
			s.tally.Add("connections; limits.connections and limits.connectionsPerAddress say how many may be open")
		},
	})
	go s.watch(func() error { return api.ServeTLS(bounded, "", "") })
	if s.config.Telemetry.MetricsListen == "" {
		return nil
	}
	metrics, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.Telemetry.MetricsListen)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.telemetry.handler())
	plain := ingress.NewServer(mux, s.log)
	s.servers = append(s.servers, plain)
	go s.watch(func() error { return plain.Serve(metrics) })
	return nil
}

// ingressTLS is the certificate of the API.
func (s *Server) ingressTLS(now func() time.Time) ingress.TLSConfig {
	c := &s.config
	config := ingress.TLSConfig{
		Cert: c.TLS.Cert, Key: c.TLS.Key, Dir: c.DataDir, Subject: "Keyturn server", Names: c.TLS.Names, Listen: c.Listen, Now: now,
	}
	if c.Tokens.ClientCertificates {
		config.ClientAuth = tls.RequestClientCert // who issued it matters to the rules of signing keys alone
	}
	return config
}

// watch tells of a server that ends by itself.
func (s *Server) watch(serve func() error) {
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		s.failed <- err
	}
}

// routes is everything that the API's address answers.
func (s *Server) routes(options Options) http.Handler {
	// An assignment is small: compressing it costs more than it saves, a thousand
	// times for each publication.
	limit := connect.WithHandlerOptions(ingress.ReadAtMost(s.config.Limits.Body), connect.WithConditionalHandlerOptions(compression))
	gate := ingress.NewGate(ingress.GateConfig{
		Tokens:  ingress.Rate{PerSecond: s.config.Limits.PerSecond, Burst: s.config.Limits.Burst},
		MaxBody: s.config.Limits.Body, Times: callTimes(), Now: options.Now, Tally: s.tally,
	})
	service := s.service
	authenticated := func(h http.Handler) http.Handler { return service.Authenticate(h, gate) }
	api := http.NewServeMux()
	deliveryPath, delivery := keyturnv1connect.NewDeliveryServiceHandler(rpc.Delivery{Service: service}, limit)
	controlPath, control := keyturnv1connect.NewControlServiceHandler(rpc.Control{Service: service}, limit)
	api.Handle(deliveryPath, authenticated(delivery))
	api.Handle(keyturnv1connect.DeliveryServiceJoinProcedure, service.Public(delivery, gate))
	api.Handle(controlPath, authenticated(control))
	gatewayPath, gateway := keyturnv1connect.NewGatewayServiceHandler(rpc.Gateway{Service: service}, limit)
	api.Handle(gatewayPath, authenticated(gateway))
	api.Handle("GET /metrics", authenticated(service.Everything(s.telemetry.handler())))
	s.apiKeyRoutes(api, gate)
	s.leakRoutes(api, gate, options.Now)
	api.Handle("GET /emergency", console.Emergency())
	mux := http.NewServeMux()
	mux.Handle("/", gate.Wrap(service.Forwarded(api, gate)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { ingress.AnswerHealth(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { ingress.AnswerHealth(w, s.checkReady(r)) })
	return s.brokerRoutes(gate, s.tokens.route(gate, mux))
}

// Timeouts of calls that are not ingress.CallTimeout.
const (
	pollTimeout   = 90 * time.Second
	exportTimeout = 10 * time.Minute
	// backupTimeout bounds how long a snapshot keeps what has changed since.
	backupTimeout = time.Hour
)

// callTimes are how long calls may take, by the end of their path, where that is not
// ingress.CallTimeout; 0 is a stream, which is bounded by its heartbeats instead.
func callTimes() map[string]time.Duration {
	return map[string]time.Duration{
		"/Watch": 0, "/WatchRotation": 0, "/WatchEmergency": 0, "/ExportLog": exportTimeout, "/Backup": backupTimeout,
		"/Doctor": exportTimeout, "/Poll": pollTimeout, "/v1/apikeys/snapshot": 0,
	}
}

// compressFrom is the size of an answer, in bytes, from which on it is compressed.
const compressFrom = 4 << 10

// compression says from which size on an answer is compressed: what is encrypted
// never is.
func compression(spec connect.Spec) []connect.HandlerOption {
	if spec.Procedure == keyturnv1connect.ControlServiceBackupProcedure {
		return []connect.HandlerOption{connect.WithCompressMinBytes(math.MaxInt)}
	}
	return []connect.HandlerOption{connect.WithCompressMinBytes(compressFrom)}
}

// errNotReady is all that a caller without a token learns of why.
var errNotReady = errors.New("the store does not answer; the server's log says why")

// checkReady reports whether the store answers.
func (s *Server) checkReady(r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	err := s.store.View(ctx, func(tx store.Tx) error {
		_, err := tx.Index.List(ctx, "ready", "", "", 1)
		return err
	})
	if err == nil {
		return nil
	}
	if r.Context().Err() == nil {
		s.log.WarnContext(r.Context(), "not ready", "error", err)
	}
	return errNotReady
}

// Address is where the API answers, for example https://127.0.0.1:7447.
func (s *Server) Address() string { return s.address }

// CAFile is the PEM file of the CA that clients should trust; empty if the
// certificate is the operator's own.
func (s *Server) CAFile() string { return s.caFile }

// TokenFile holds the first admin token; empty if there were tokens already.
func (s *Server) TokenFile() string { return s.tokenFile }

// VerifierKey is the public key of the audit log.
func (s *Server) VerifierKey() string { return s.signer.VerifierKey() }

// Failed receives when the server ended by itself.
func (s *Server) Failed() <-chan error { return s.failed }

// Stop ends the server: streams are told to come back, calls under way may end
// until ctx does, effects under way are left to the next start. Calling it again
// returns the same result.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() {
		s.tokens.signer.Stop(ctx)
		s.hub.Stop()
		s.service.Stop()
		var problems []error
		for _, server := range s.servers {
			if err := server.Shutdown(ctx); err != nil {
				problems = append(problems, err, server.Close())
			}
		}
		s.broker.Stop(ctx)
		s.stopSweeping()
		s.running.Wait()
		s.engine.Stop()
		s.tokens.board.Stop(ctx)
		s.apiKeys.Stop(ctx)
		problems = append(problems, s.telemetry.stop(ctx), s.store.Stop())
		s.stopErr = errors.Join(problems...)
		s.log.InfoContext(ctx, "stopped")
	})
	return s.stopErr
}
