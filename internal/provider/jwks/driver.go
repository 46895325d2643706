package jwks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Board keeps what is published. Its methods may be called concurrently.
type Board interface {
	// Change lists a version at an endpoint, or takes it off, and says how far that
	// has come. Repeating it changes nothing. It fails with an error that wraps
	// ErrFenced when a call with a larger fence came before, and with one that wraps
	// ErrTaken when another key has the issuer.
	Change(ctx context.Context, change Change) (Standing, error)
	// Standing says how a version stands at an endpoint.
	Standing(ctx context.Context, name key.Name, endpoint string, v key.Version) (Standing, error)
	// Tokens counts the tokens that a version signed and that have not expired.
	Tokens(ctx context.Context, name key.Name, v key.Version) (provider.Usage, error)
}

// Keeper is implemented by a Board that can tell what it keeps, and drop it.
type Keeper interface {
	// Held returns the versions that are listed at any endpoint.
	Held(ctx context.Context, name key.Name) ([]provider.Held, error)
	// Drop forgets a version that is listed nowhere.
	Drop(ctx context.Context, name key.Name, v key.Version) error
}

var (
	// ErrFenced: a later call has decided otherwise.
	ErrFenced = errors.New("a later call came before")
	// ErrTaken: two keys have the same issuer.
	ErrTaken = errors.New("another key has this issuer")
)

// Change is what a Board is asked to do.
type Change struct {
	Key      key.Name
	Endpoint string
	Version  key.Version
	// Listed: the set of the endpoint is to hold the version.
	Listed bool
	Fence  uint64
	// Attributes are those of the version.
	Attributes map[string]string

	// Issuer, TokenLife, CacheLife and External are those of the key, Endpoints all
	// of its endpoints.
	Issuer    string
	TokenLife time.Duration
	CacheLife time.Duration
	External  bool
	Endpoints []string
	// Shared: several readers fetch the endpoint's set. From, if not empty, are the
	// networks whose fetches count.
	Shared bool
	From   []netip.Prefix
}

// Standing is how a version stands at an endpoint.
type Standing struct {
	Listed bool
	// Arrived: no reader that obeys Cache-Control holds a set that says otherwise.
	Arrived bool
	// Waiting says what for if it has not arrived, Until when that ends at the latest;
	// zero if that is not known.
	Waiting string
	Until   time.Time
}

// Config is what a Driver needs. All of it is required.
type Config struct {
	Board Board
	// Sets serves the sets under their paths, as readers get them.
	Sets http.Handler
	Now  func() time.Time
}

// New returns the driver "jwks".
func New(config Config) provider.Driver { return driver{config} }

type driver struct{ config Config }

// Check implements provider.Driver.
func (driver) Check(config provider.Config) (provider.Topology, error) {
	s, err := parse(config)
	if err != nil {
		return provider.Topology{}, err
	}
	topology := provider.Topology{Endpoints: []provider.Endpoint{{Name: published}}}
	for i := range s.verifiers {
		v := &s.verifiers[i]
		endpoint := provider.Endpoint{Name: v.name, Region: v.region}
		if v.probe != nil {
			endpoint.Host = v.probe.url.Host
		}
		topology.Endpoints = append(topology.Endpoints, endpoint)
	}
	return topology, nil
}

// Open implements provider.Driver.
func (d driver) Open(_ context.Context, config provider.Config, _ provider.Env) (provider.System, error) {
	s, err := parse(config)
	if err != nil {
		return nil, err
	}
	opened := &system{Config: d.config, settings: s, clients: map[string]*http.Client{}}
	opened.stranger = sync.OnceValues(opened.mint)
	for i := range s.verifiers {
		v := &s.verifiers[i]
		if v.probe == nil {
			continue
		}
		if opened.clients[v.name], err = v.probe.client(); err != nil {
			return nil, fmt.Errorf("verifiers[%d].probe.ca: %w", i, err)
		}
	}
	return opened, nil
}

// system is one key's issuer.
type system struct {
	Config
	settings settings
	clients  map[string]*http.Client
	// stranger is a key pair that is never published.
	stranger func() (provider.Material, error)
}

// Close implements io.Closer.
func (s *system) Close() error {
	for _, client := range s.clients {
		client.CloseIdleConnections()
	}
	return nil
}

// client returns one that tries a verifier: without redirects, without proxies of
// the environment, and with the given CA only.
func (p *probe) client() (*http.Client, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if p.ca != "" {
		pem, err := os.ReadFile(p.ca)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", p.ca)
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}
