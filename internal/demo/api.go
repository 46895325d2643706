package demo

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// apiTarget is a real HTTP server that checks API keys, and the provider that
// rotates them. It stands in where there is no PostgreSQL.
type apiTarget struct {
	server *http.Server
	client *http.Client
	url    string

	mu       sync.Mutex
	accepted map[[32]byte]key.Version
	used     map[key.Version]map[string]time.Time
}

// inUse is how long a version counts as used after a request with it.
const inUse = 300 * time.Millisecond

func startAPI(ctx context.Context) (*apiTarget, error) {
	t := &apiTarget{client: &http.Client{Timeout: 5 * time.Second}, accepted: map[[32]byte]key.Version{}, used: map[key.Version]map[string]time.Time{}}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t.url = "http://" + listener.Addr().String() + "/orders"
	t.server = &http.Server{Handler: http.HandlerFunc(t.serve), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = t.server.Serve(listener) }() // it ends by close
	return t, nil
}

func (*apiTarget) name() string { return targetAPIKeys }

func (t *apiTarget) drivers() map[string]provider.Driver {
	return map[string]provider.Driver{"demo-api": t}
}

func (*apiTarget) keyDocument() string {
	return `apiVersion: keyturn/v1
kind: Key
metadata: {name: ` + keyName + `, owner: team-orders}
spec: {provider: demo-api, policy: demo}
`
}

func (t *apiTarget) close() error { return t.server.Close() }

// serve answers whoever shows an accepted key.
func (t *apiTarget) serve(w http.ResponseWriter, r *http.Request) {
	hash := sha256.Sum256([]byte(r.Header.Get("X-Api-Key")))
	t.mu.Lock()
	v, ok := t.accepted[hash]
	if ok {
		if t.used[v] == nil {
			t.used[v] = map[string]time.Time{}
		}
		t.used[v][r.Header.Get("User-Agent")] = time.Now()
	}
	t.mu.Unlock()
	if !ok {
		http.Error(w, "unknown API key", http.StatusUnauthorized)
		return
	}
	_, _ = io.WriteString(w, "ok\n") // the caller is gone if this fails
}

// Check implements provider.Driver.
func (*apiTarget) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "api"}}}, nil
}

// Open implements provider.Driver.
func (t *apiTarget) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return t, nil
}

// Mint implements provider.Issuer.
func (*apiTarget) Mint(context.Context, provider.Call, provider.MintRequest) (provider.Material, error) {
	return provider.Material{Secrets: map[string]secret.Value{"key": secret.NewString("demo_" + rand.Text())}}, nil
}

func hashOf(v provider.Version) [32]byte { return sha256.Sum256(v.Material.Secrets["key"].Reveal()) }

// Accept implements provider.Verifier.
func (t *apiTarget) Accept(_ context.Context, _ provider.Call, _ string, v provider.Version) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.accepted[hashOf(v)] = v.Number
	return nil
}

// Refuse implements provider.Verifier.
func (t *apiTarget) Refuse(_ context.Context, _ provider.Call, _ string, v provider.Version) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.accepted, hashOf(v))
	return nil
}

// Probe implements provider.Verifier: it makes a request, as a client would.
func (t *apiTarget) Probe(ctx context.Context, _ provider.Call, _ string, v provider.Version) (provider.Verdict, error) {
	status, err := t.get(ctx, v.Material.Secrets["key"], "keyturn-probe")
	switch {
	case err != nil:
		return 0, err
	case status == http.StatusOK:
		return provider.Accepted, nil
	case status == http.StatusUnauthorized:
		return provider.Refused, nil
	}
	return 0, fmt.Errorf("the API answered with status %d", status)
}

// Usage implements provider.Meter.
func (t *apiTarget) Usage(_ context.Context, _ provider.Call, v provider.Version) (provider.Usage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	usage := provider.Usage{}
	for who, at := range t.used[v.Number] {
		if who != "keyturn-probe" && time.Since(at) < inUse {
			usage.Sessions++
			usage.Holders = append(usage.Holders, provider.Holder{Endpoint: "api", Application: who, Sessions: 1})
		}
	}
	return usage, nil
}

func (t *apiTarget) get(ctx context.Context, apiKey secret.Value, who string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url, http.NoBody)
	if err != nil {
		return 0, err
	}
	r.Header.Set("X-Api-Key", apiKey.RevealString())
	r.Header.Set("User-Agent", who)
	response, err := t.client.Do(r)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, errors.Join(err, response.Body.Close())
}

func (t *apiTarget) user(a *app) user { return &apiUser{target: t, app: a} }

// apiUser calls the API with its current key.
type apiUser struct {
	target *apiTarget
	app    *app
}

func (u *apiUser) request(ctx context.Context) error {
	cred := u.app.handle.Current()
	status, err := u.target.get(ctx, cred.Secret("key"), u.app.id)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the API answered with status %d", status)
	}
	use := client.UseSucceeded
	switch {
	case status == http.StatusUnauthorized:
		use = client.UseRefused
	case err != nil:
		use = client.UseBroken
	}
	u.app.handle.RecordUse(cred.Version, use)
	return err
}

func (*apiUser) close() {}
