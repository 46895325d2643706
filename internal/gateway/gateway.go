package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/datadir"
	"github.com/keyturn/keyturn/internal/gateway/relay"
	"github.com/keyturn/keyturn/internal/ingress"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// Options are what a gateway needs beside its configuration.
type Options struct {
	// LogTo takes the log. Default: standard error.
	LogTo io.Writer
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Gateway is a running gateway. Its methods may be called concurrently.
type Gateway struct {
	config Config
	log    *slog.Logger
	now    func() time.Time
	// monotonic never jumps.
	monotonic func() time.Time
	token     client.TokenSource
	keys      *file.Keeper
	cache     *sqlite.Store
	tally     *ingress.Tally
	// centre names the centre in what is sealed.
	centre string

	metrics *metrics
	// apiKeys is empty unless they are served.
	apiKeys      apiKeys
	accessTokens map[string]accessTokens
	// relay is nil unless delivery is served.
	relay *relay.Relay

	servers []*http.Server
	address string
	local   string
	caFile  string
	failed  chan error

	stopOnce sync.Once
	stopErr  error
}

// Start starts a gateway. When it returns nil the gateway answers, whether the centre
// does or not; Stop must be called. ctx bounds the start only.
func Start(ctx context.Context, config Config, options Options) (*Gateway, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	if options.LogTo == nil {
		options.LogTo = os.Stderr
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	g := &Gateway{
		config: config, log: config.Log.New(options.LogTo), now: options.Now, monotonic: time.Now, token: client.TokenFile(config.Centre.TokenFile),
		failed: make(chan error, 4), accessTokens: map[string]accessTokens{},
	}
	g.tally = ingress.NewTally(g.log, time.Now)
	if err := g.open(ctx); err != nil {
		return nil, err
	}
	if err := g.start(ctx); err != nil {
		return nil, errors.Join(err, g.Stop(ctx))
	}
	g.log.InfoContext(ctx, "ready", "name", config.Name, "address", g.address, "ca", g.caFile)
	return g, nil
}

// open opens the sealed cache. A cache without its key is of no use, and may hold what
// the centre has not heard of yet: that is for an operator to decide.
func (g *Gateway) open(ctx context.Context) error {
	if err := datadir.Make(g.config.DataDir); err != nil {
		return err
	}
	path := filepath.Join(g.config.DataDir, "cache.db")
	first, err := datadir.Missing(path)
	if err != nil {
		return err
	}
	g.keys, err = file.Open(file.Config{Path: g.config.Keeper.File, MustExist: !first})
	if err != nil {
		return fmt.Errorf("key-encryption key: %w; without it the cache cannot be read: bring it back, or delete %s, and the gateway fetches everything anew", err, path)
	}
	if g.cache, err = sqlite.Open(ctx, sqlite.Config{Path: path}); err != nil {
		if errors.Is(err, sqlite.ErrCorrupt) {
			err = fmt.Errorf("the gateway's cache: %w; a gateway has no backup: docs/runbooks/gateway.md says when its cache can be deleted, and what is lost with it", err)
		}
		return err
	}
	if g.centre, err = g.claim(ctx); err != nil {
		return errors.Join(err, g.cache.Stop())
	}
	return nil
}

func (g *Gateway) start(ctx context.Context) error {
	if _, err := g.token.Token(ctx); err != nil {
		return fmt.Errorf("%w: centre.tokenFile: %w", ErrConfig, err)
	}
	g.metrics = newMetrics(g)
	if g.config.serves(ServeAPIKeys) {
		if err := g.startAPIKeys(ctx); err != nil {
			return err
		}
	}
	if g.config.serves(ServeDelivery) {
		if err := g.startDelivery(ctx); err != nil {
			return err
		}
	}
	return g.serve(ctx)
}

// serve begins to take requests.
func (g *Gateway) serve(ctx context.Context) error {
	routes, err := g.routes(ctx)
	if err == nil {
		err = g.await(ctx)
	}
	if err != nil {
		return err
	}
	tlsConfig, caFile, err := ingress.NewTLS(ingress.TLSConfig{
		Cert: g.config.TLS.Cert, Key: g.config.TLS.Key, Dir: g.config.DataDir, Subject: "Keyturn gateway", Names: g.config.TLS.Names, Listen: g.config.Listen,
		Now: g.now,
	})
	if err != nil {
		return err
	}
	g.caFile = caFile
	listener, err := g.listen(ctx, "listen", "tcp", g.config.Listen)
	if err != nil {
		return err
	}
	g.address = "https://" + listener.Addr().String()
	region := ingress.NewServer(routes.region, g.log)
	region.TLSConfig = tlsConfig
	g.run(region, func() error { return region.ServeTLS(g.bound(listener), "", "") })

	if routes.local != nil {
		network, address := "tcp", g.config.Forward.Listen
		if path, ok := strings.CutPrefix(address, unixPrefix); ok {
			network, address = "unix", path
		}
		listener, err := g.listen(ctx, "forward.listen", network, address)
		if err != nil {
			return err
		}
		g.local = listener.Addr().String()
		local := ingress.NewServer(routes.local, g.log)
		local.Protocols = plainProtocols()
		g.run(local, func() error { return local.Serve(g.bound(listener)) })
	}
	if g.config.MetricsListen != "" {
		listener, err := g.listen(ctx, "metricsListen", "tcp", g.config.MetricsListen)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", g.metrics.handler())
		metrics := ingress.NewServer(mux, g.log)
		g.run(metrics, func() error { return metrics.Serve(listener) })
	}
	return nil
}

// await gives the centre a moment to answer for the first time, to all that needs it
// together.
func (g *Gateway) await(ctx context.Context) error {
	moment, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if g.apiKeys.late != nil {
		if err := g.apiKeys.wait(moment); err != nil {
			return fmt.Errorf("%w: apiKeys: %w", ErrConfig, err)
		}
	}
	for name, tokens := range g.accessTokens {
		if err := tokens.wait(moment); err != nil {
			return fmt.Errorf("%w: forward.tokens.%s: %w", ErrConfig, name, err)
		}
	}
	return ctx.Err()
}

// plainProtocols are those without TLS: proxies ask by HTTP/1.1, or by gRPC.
func plainProtocols() *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return &p
}

// socketMode is that of a socket: its owner and group may connect.
const socketMode = 0o660

func (g *Gateway) listen(ctx context.Context, field, network, address string) (net.Listener, error) {
	if network == "unix" {
		if err := removeSocket(address); err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; set another address in the configuration", field, err)
	}
	if network == "unix" {
		if err := os.Chmod(address, socketMode); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", field, err), listener.Close())
		}
	}
	return listener, nil
}

// removeSocket removes what a process that was killed has left.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is there, and is no socket; remove it, or name another path", path)
	}
	return os.Remove(path)
}

func (g *Gateway) bound(l net.Listener) net.Listener {
	return ingress.Bound(l, ingress.ListenerConfig{
		Connections: g.config.Limits.Connections, PerAddress: g.config.Limits.ConnectionsPerAddress,
		Refused: func() {
			g.tally.Add("connections; limits.connections and limits.connectionsPerAddress say how many may be open")
		},
	})
}

// run serves until the server ends, and tells of one that ends by itself.
func (g *Gateway) run(server *http.Server, serve func() error) {
	g.servers = append(g.servers, server)
	go func() {
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			g.fail(err)
		}
	}()
}

func (g *Gateway) fail(err error) {
	select {
	case g.failed <- err:
	default: // one is enough
	}
}

// Address is where the region is served, for example https://127.0.0.1:7449.
func (g *Gateway) Address() string { return g.address }

// LocalAddress is where proxies on this machine are served: host and port, or a path;
// empty if nowhere.
func (g *Gateway) LocalAddress() string { return g.local }

// CAFile is the PEM file of the CA that clients should trust; empty if the certificate
// is the operator's own.
func (g *Gateway) CAFile() string { return g.caFile }

// Stats says how deliveries fare; zero when none are served.
func (g *Gateway) Stats() relay.Stats {
	if g.relay == nil {
		return relay.Stats{}
	}
	return g.relay.Stats()
}

// Failed receives when the gateway ended by itself.
func (g *Gateway) Failed() <-chan error { return g.failed }

// Stop ends the gateway: streams are told to come back, calls under way may end until
// ctx does, uses that were not reported are. Calling it again returns the same result.
func (g *Gateway) Stop(ctx context.Context) error {
	g.stopOnce.Do(func() {
		if g.relay != nil {
			g.relay.Stop()
		}
		var problems []error
		for _, server := range g.servers {
			if err := server.Shutdown(ctx); err != nil {
				problems = append(problems, err, server.Close())
			}
		}
		for _, tokens := range g.accessTokens {
			if checker := tokens.end(); checker != nil {
				checker.Close()
			}
		}
		g.stopAPIKeys(ctx)
		problems = append(problems, g.cache.Stop())
		g.stopErr = errors.Join(problems...)
		g.log.InfoContext(ctx, "stopped")
	})
	return g.stopErr
}
