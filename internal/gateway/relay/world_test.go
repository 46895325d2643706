package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/gateway/relay"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// world is a centre, a gateway, and what is behind the gateway.
type world struct {
	t      testing.TB
	ctx    context.Context
	centre *centre
	// up leads from the gateway to the centre, down from the clients to the gateway.
	up, down *network
	disk     *disk
	handle   *handle
	relay    *relay.Relay
	adapt    func(*relay.Config)
	// skew is what the gateway's clock is ahead.
	skew    time.Duration
	refused int
	apps    []*app
	ends    []func()
	mu      sync.Mutex
	log     *slog.Logger
}

// run runs a test in simulated time.
func run(t *testing.T, f func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "prod/db", "prod/cache", "other/db")
		defer w.end()
		w.startGateway()
		f(w)
	})
}

// synctestWorld is run without a gateway to begin with.
func synctestWorld(t *testing.T, f func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "prod/db", "prod/cache", "other/db")
		defer w.end()
		f(w)
	})
}

func newWorld(t testing.TB, keys ...string) *world {
	w := &world{t: t, ctx: t.Context(), centre: newCentre(t, keys...), up: newNetwork(), down: newNetwork(), disk: &disk{memstore.New()}, adapt: func(*relay.Config) {}}
	w.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	w.up.serve(w.centre.handler())
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				w.centre.forget()
			}
		}
	}()
	w.ends = append(w.ends, func() { cancel(); <-done })
	return w
}

func (w *world) end() {
	w.stopGateway()
	for i := len(w.ends) - 1; i >= 0; i-- {
		w.ends[i]()
	}
	w.up.stop()
	w.down.stop()
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.skew)
}

func (w *world) setSkew(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.skew = d
}

// stopCentre kills the centre.
func (w *world) stopCentre() {
	w.centre.run(false)
	w.up.stop()
}

func (w *world) startCentre() {
	w.centre.run(true)
	w.up.serve(w.centre.handler())
}

// startGateway starts one, in the place of the one that was killed.
func (w *world) startGateway() {
	w.t.Helper()
	http1, closeIdle := w.up.client()
	route, err := client.NewRoute(client.Config{Address: "http://127.0.0.1:1", HTTPClient: http1})
	if err != nil {
		w.t.Fatal(err)
	}
	w.handle = w.disk.open()
	config := relay.Config{
		Name: gatewayName, Centre: route, CentreName: "centre", Token: client.StaticToken(secret.NewString(gatewayToken)),
		Store: w.handle, Keeper: lock{}, Now: w.now, Logger: w.log, Heartbeat: beat, Parties: 1,
		Refused: func(context.Context) { w.mu.Lock(); w.refused++; w.mu.Unlock() },
	}
	w.adapt(&config)
	w.relay, err = relay.Open(w.ctx, config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.relay.Start(w.ctx)
	mux := http.NewServeMux()
	mux.Handle(keyturnv1connect.NewDeliveryServiceHandler(w.relay))
	w.down.serve(mux)
	w.ends = append(w.ends, closeIdle)
}

// killGateway ends the process: nothing of it is written any more.
func (w *world) killGateway() {
	w.handle.kill()
	w.stopGateway()
}

func (w *world) stopGateway() {
	if w.relay == nil {
		return
	}
	w.down.stop()
	w.relay.Stop()
	w.relay = nil
}

// app is a client behind the gateway.
type app struct {
	w     *world
	id    string
	close func()

	mu     sync.Mutex
	uses   map[key.Name]key.Version
	got    []client.Assignment
	status []client.Status
	// slow is how long it takes to take a version into use.
	slow func() time.Duration
	// applied hears of every version that is in use.
	applied func(name key.Name, v key.Version)
}

func (w *world) app(id string, kind client.PartyKind, token string, names ...key.Name) *app {
	known := make([]client.Known, len(names))
	for i, name := range names {
		known[i].Key = name
	}
	return w.appWith(id, kind, token, known)
}

func (w *world) appWith(id string, kind client.PartyKind, token string, known []client.Known) *app {
	w.t.Helper()
	a := w.prepare(id)
	for _, k := range known {
		if k.Version != 0 {
			a.uses[k.Key] = k.Version
		}
	}
	a.start(kind, token, known)
	return a
}

func (w *world) prepare(id string) *app {
	return &app{w: w, id: id, uses: map[key.Name]key.Version{}, slow: func() time.Duration { return 0 }, applied: func(key.Name, key.Version) {}}
}

func (a *app) start(kind client.PartyKind, token string, known []client.Known) {
	w := a.w
	http1, closeIdle := w.down.client()
	c, err := client.New(client.Config{
		Address: "http://127.0.0.1:2", HTTPClient: http1, Token: client.StaticToken(secret.NewString(token)),
		Party: client.Party{ID: a.id, Kind: kind}, PermanentRetry: 5 * time.Second,
		OnStatus: func(s client.Status) { a.mu.Lock(); a.status = append(a.status, s); a.mu.Unlock() },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Watch(ctx, known, a.take)
	}()
	var once sync.Once
	a.close = func() { once.Do(func() { cancel(); <-done; closeIdle() }) }
	w.ends = append(w.ends, a.close)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.apps = append(w.apps, a)
}

func (a *app) take(ctx context.Context, list []client.Assignment) []client.Outcome {
	if d := a.slow(); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
	var outcomes []client.Outcome
	for _, one := range list {
		if want := fmt.Sprintf("%s-%d", one.Key, one.Version); one.Secrets["password"].RevealString() != want {
			a.w.t.Errorf("%s got %s %d with another secret", a.id, one.Key, one.Version)
		}
		a.mu.Lock()
		a.uses[one.Key] = one.Version
		a.got = append(a.got, one)
		applied := a.applied
		a.mu.Unlock()
		applied(one.Key, one.Version)
		outcomes = append(outcomes, client.Outcome{Key: one.Key, Version: one.Version, Epoch: one.Epoch, Code: client.Applied})
	}
	return outcomes
}

func (a *app) using(name key.Name) key.Version {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.uses[name]
}

// troubles counts the times that the client noticed that something was wrong.
func (a *app) troubles() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, s := range a.status {
		if s.Err != nil || s.Mode == 0 {
			n++
		}
	}
	return n
}

func (a *app) lastError() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.status) == 0 {
		return nil
	}
	return a.status[len(a.status)-1].Err
}

// closeAfter ends the client after a time.
func (a *app) closeAfter(d time.Duration) {
	after(d)
	a.close()
}

// after lets time pass.
func after(d time.Duration) {
	<-time.After(d) // simulated
	synctest.Wait()
}

func (w *world) uses(a *app, name key.Name, v key.Version) {
	w.t.Helper()
	if got := a.using(name); got != v {
		w.t.Errorf("%s uses version %d of %s, not %d", a.id, got, name, v)
	}
}
