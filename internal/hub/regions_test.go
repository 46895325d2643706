package hub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/engine/enginetest"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// regional is a system with a verifier in each of two regions. Calls to region
// us fail, or hang, while it is cut off.
type regional struct {
	*system

	mu   sync.Mutex
	cut  bool
	hang bool
	// at is called before every operation, for example "accept db-us".
	at func(operation string)
}

func newRegional() *regional {
	r := &regional{system: newSystem()}
	r.accepted = map[string]map[string]bool{"db-eu": {}, "db-us": {}}
	return r
}

func (r *regional) set(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
}

func (r *regional) isCut() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cut
}

var errNoRoute = errors.New("no route to host")

// reach fails when the endpoint is cut off.
func (r *regional) reach(ctx context.Context, operation, endpoint string) error {
	if r.at != nil {
		r.at(operation + " " + endpoint)
	}
	if endpoint != "db-us" || !r.isCut() {
		return nil
	}
	if r.hang {
		<-ctx.Done()
	}
	return provider.At(endpoint, errors.Join(ctx.Err(), errNoRoute))
}

func (r *regional) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "db-eu", Region: "eu", Host: "db-eu"}, {Name: "db-us", Region: "us", Host: "db-us"}}, Capacity: 3}, nil
}

func (r *regional) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return r, nil
}

func (r *regional) Preflight(ctx context.Context, _ provider.Call, _ []provider.Version) ([]provider.Finding, error) {
	return nil, errors.Join(r.reach(ctx, "preflight", "db-eu"), r.reach(ctx, "preflight", "db-us"))
}

func (r *regional) Mint(ctx context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	return r.system.Mint(ctx, call, request)
}

func (r *regional) Accept(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	if err := r.reach(ctx, "accept", endpoint); err != nil {
		return err
	}
	return r.system.Accept(ctx, call, endpoint, v)
}

func (r *regional) Refuse(ctx context.Context, call provider.Call, endpoint string, v provider.Version) error {
	if err := r.reach(ctx, "refuse", endpoint); err != nil {
		return err
	}
	return r.system.Refuse(ctx, call, endpoint, v)
}

func (r *regional) Probe(ctx context.Context, call provider.Call, endpoint string, v provider.Version) (provider.Verdict, error) {
	if err := r.reach(ctx, "probe", endpoint); err != nil {
		return 0, err
	}
	return r.system.Probe(ctx, call, endpoint, v)
}

func (r *regional) Usage(ctx context.Context, call provider.Call, v provider.Version) (provider.Usage, error) {
	for _, endpoint := range []string{"db-eu", "db-us"} {
		if err := r.reach(ctx, "usage", endpoint); err != nil {
			return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
		}
	}
	return r.system.Usage(ctx, call, v)
}

// admits says whether the endpoint lets the version in.
func (r *regional) admits(endpoint string, v key.Version) bool {
	r.system.mu.Lock()
	defer r.system.mu.Unlock()
	return r.accepted[endpoint][fmt.Sprintf("plaintext-of-%d", v)]
}

const regionalDocuments = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: regional}
spec:
  stages: [{name: all, regions: [eu, us], bake: 1s, ackTimeout: 1m}]
  drain: {min: 1s, quiet: 1s, max: 1h, every: 1s}
  quarantine: 1m
  retain: {destroyAfter: 1m}
  emergency: {strategy: replace-first, grace: 30s}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/db}
spec: {provider: memory, policy: regional}
`

// globe is an engine with its hub, and an application in each region.
type globe struct {
	*world

	db   *regional
	apps []*application
}

// newGlobe starts one within a synctest bubble; everything has ended with it.
func newGlobe(t *testing.T, hang bool) *globe {
	t.Helper()
	g := &globe{world: &world{}, db: newRegional()}
	g.db.hang = hang
	config, db := enginetest.Config(t, t.TempDir(), g.db)
	g.store, config.Logger = db, slog.New(slog.DiscardHandler)
	g.hub = hub.New(hub.Config{Logger: config.Logger, Now: time.Now})
	config.Fleet = g.hub
	var err error
	if g.engine, err = engine.New(config); err != nil {
		t.Fatal(err)
	}
	g.hub.Use(g.engine)
	g.engine.Start(t.Context())
	g.hub.Start(t.Context())
	result, err := g.engine.Apply(t.Context(), operator, engine.ApplyRequest{Documents: []engine.Document{{Name: "keys.yaml", Content: []byte(regionalDocuments)}}})
	if err != nil || result.Problems.Err() != nil {
		t.Fatal(err, result.Problems)
	}
	for _, region := range []string{"eu", "us"} {
		g.apps = append(g.apps, &application{globe: g, id: "app-" + region, region: region, healthy: func(key.Version) bool { return true }})
	}
	return g
}

func (g *globe) stop(t *testing.T) {
	t.Helper()
	g.hub.Stop()
	g.engine.Stop()
	if err := g.store.Stop(); err != nil {
		t.Error(err)
	}
}

// application is a client that logs in to the verifier of its region all the
// time, and to the other one while it can be reached.
type application struct {
	*globe

	id, region string
	healthy    func(key.Version) bool

	mu      sync.Mutex
	using   key.Version
	epoch   uint64
	logins  int
	refused []string
}

func (a *application) holding() engine.Holding {
	a.mu.Lock()
	defer a.mu.Unlock()
	return engine.Holding{Key: "prod/db", Version: a.using, Epoch: a.epoch}
}

// run keeps the application connected, but while its region is cut off, until
// ctx ends.
func (a *application) run(ctx context.Context, t *testing.T) {
	away := func() bool { return a.region == "us" && a.db.isCut() }
	for ctx.Err() == nil {
		if away() {
			a.rest(ctx)
			continue
		}
		party := engine.PartyRecord{ID: a.id, Kind: hub.KindClient, Region: a.region}
		session, err := a.hub.Connect(ctx, operator, party, []engine.Holding{a.holding()})
		if err != nil {
			return
		}
		for ctx.Err() == nil && !away() {
			a.login()
			deliveries, err := session.Next(ctx, 200*time.Millisecond)
			if err != nil || away() {
				break // what was sent is lost
			}
			for _, d := range deliveries {
				a.apply(ctx, t, d, away)
			}
		}
		session.Close()
	}
}

func (a *application) rest(ctx context.Context) {
	a.login()
	timer := time.NewTimer(200 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (a *application) apply(ctx context.Context, t *testing.T, d hub.Delivery, away func() bool) {
	a.mu.Lock()
	a.epoch = d.Epoch
	outcome := hub.Outcome{Key: d.Key, Epoch: d.Epoch, OK: a.healthy(d.Version), Detail: "not well"}
	if outcome.OK {
		a.using, outcome.Detail = d.Version, ""
	}
	outcome.Using = a.using
	a.mu.Unlock()
	if away() {
		return // the answer is lost
	}
	if err := a.hub.Acknowledge(ctx, a.id, []hub.Outcome{outcome}); err != nil && ctx.Err() == nil {
		t.Errorf("acknowledge: %v", err)
	}
}

func (a *application) login() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.using == 0 {
		return
	}
	for _, endpoint := range []string{"db-eu", "db-us"} {
		if a.db.isCut() && endpoint != "db-"+a.region {
			continue
		}
		a.logins++
		if !a.db.admits(endpoint, a.using) && len(a.refused) < 5 {
			a.refused = append(a.refused, fmt.Sprintf("%s was refused at %s with v%d", a.id, endpoint, a.using))
		}
	}
}

// late returns the regions that the rotation waits for.
func lateRegions(view engine.RotationView) []string {
	var names []string
	for _, p := range view.Regions {
		if p.Late() {
			names = append(names, p.Region)
		}
	}
	return names
}

// pass lets time pass.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
	synctest.Wait()
}

// TestRegionCutOffInEveryPhase (F7): region us is cut off at one point of a
// rotation, for longer than any timeout and than a client is remembered. Its
// application goes on with what it has and is never refused; the
// rotation does not pass the barrier, names us, and goes on by itself.
func TestRegionCutOffInEveryPhase(t *testing.T) {
	for _, test := range []struct {
		name string
		// at is the operation at which us is cut off, or the phase.
		at    string
		phase rotation.Phase
		// late: the rotation waits for us; otherwise it needs nothing of it.
		late bool
		end  rotation.Phase
		sick bool
	}{
		{"planned", "preflight db-us", rotation.Planned, true, rotation.Done, false},
		{"accepting", "accept db-us", rotation.Accepting, true, rotation.Done, false},
		{"accepting, being tried", "probe db-us", rotation.Accepting, true, rotation.Done, false},
		{"presenting", "stage all/us", rotation.Presenting, true, rotation.Done, false},
		{"draining", "usage db-us", rotation.Draining, true, rotation.Done, false},
		{"revoking", "refuse db-us", rotation.Revoking, true, rotation.Done, false},
		{"quarantine", "quarantine", rotation.Destroying, false, rotation.Done, false},
		{"rolling back", "refuse db-us", rotation.RollingBack, true, rotation.RolledBack, true},
		{"rolling back, being measured", "usage db-us", rotation.RollingBack, true, rotation.RolledBack, true},
	} {
		for _, hang := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/hang=%v", test.name, hang), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					g := newGlobe(t, hang)
					defer g.stop(t)
					ctx, cancel := context.WithCancel(t.Context())
					var running sync.WaitGroup
					for _, a := range g.apps {
						running.Go(func() { a.run(ctx, t) })
					}
					defer func() { cancel(); running.Wait() }()
					pass(t, time.Second)
					if view := g.wait(t, g.rotate(t, engine.RotateRequest{Reason: "first"}), ended); view.Phase != rotation.Done {
						t.Fatalf("the first rotation is %v", view.Phase)
					}
					pass(t, time.Second)
					if test.sick {
						// us follows; then eu, whose turn is over, falls ill.
						g.apps[1].healthy = func(v key.Version) bool { return v != 2 }
					}
					g.db.at = func(operation string) {
						if operation == test.at {
							g.db.set(true)
						}
					}
					id := g.rotate(t, engine.RotateRequest{Reason: test.name})
					if test.at == "stage all/us" || test.at == "quarantine" {
						g.wait(t, id, func(v engine.RotationView) bool {
							return v.Phase == rotation.Quarantine || v.Phase == rotation.Presenting && test.at == "stage all/us"
						})
						g.db.set(true)
					}
					pass(t, cutFor)
					view, err := g.engine.Rotation(t.Context(), id)
					if err != nil {
						t.Fatal(err)
					}
					g.cutOff(t, view, test.late, test.phase)
					g.db.at = nil
					g.db.set(false)
					if view = g.await(t, id); view.Phase != test.end {
						t.Errorf("after healing it ended as %v: %s", view.Phase, view.Reason)
					}
					g.fine(t, map[bool]key.Version{false: 2, true: 1}[test.sick])
				})
			})
		}
	}
}

// cutFor is longer than any timeout, and than a client is remembered.
const cutFor = 4 * time.Minute

// cutOff checks what is shown of a rotation while us is cut off.
func (g *globe) cutOff(t *testing.T, view engine.RotationView, late bool, phase rotation.Phase) {
	t.Helper()
	if !late {
		if !view.Ended() {
			t.Errorf("it needs nothing of us and is %v", view.Phase)
		}
		return
	}
	if view.Phase != phase {
		t.Fatalf("it is %v, not %v: %+v", view.Phase, phase, view.Waiting)
	}
	if got := lateRegions(view); !slices.Equal(got, []string{"us"}) {
		t.Errorf("it waits for regions %v", got)
	}
	if !slices.ContainsFunc(view.Waiting, func(w rotation.Waiting) bool { return w.Region == "us" }) && phase != rotation.RollingBack {
		t.Errorf("what it waits for does not name us: %+v", view.Waiting)
	}
	us := g.apps[1]
	us.mu.Lock()
	using := us.using
	us.mu.Unlock()
	if !g.db.admits("db-us", using) || phase < rotation.Revoking && !g.db.admits("db-eu", using) {
		t.Errorf("v%d, which us uses, is refused: %v", using, g.db.accepted)
	}
}

// await waits for the rotation's end, in the bubble's time.
func (g *globe) await(t *testing.T, id key.RotationID) engine.RotationView {
	t.Helper()
	for range 100 {
		view, err := g.engine.Rotation(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if view.Ended() {
			return view
		}
		pass(t, 10*time.Second)
	}
	view, _ := g.engine.Rotation(t.Context(), id)
	t.Fatalf("it does not go on by itself: %v, %+v, %+v", view.Phase, view.Hold, view.Waiting)
	return view
}

// fine checks that everybody uses the version, and nobody was ever refused.
func (g *globe) fine(t *testing.T, v key.Version) {
	t.Helper()
	for _, a := range g.apps {
		a.mu.Lock()
		if a.using != v || a.logins < 100 || len(a.refused) > 0 {
			t.Errorf("%s uses v%d after %d log-ins: %v", a.id, a.using, a.logins, a.refused)
		}
		a.mu.Unlock()
	}
	for _, other := range []key.Version{1, 2} {
		for _, endpoint := range []string{"db-eu", "db-us"} {
			if g.db.admits(endpoint, other) != (other == v) {
				t.Errorf("%s accepts v%d: %v", endpoint, other, other != v)
			}
		}
	}
}

// TestEmergencyWhileARegionIsCutOff: contain-first refuses the compromised version
// where it can be reached, and says that us may still accept it; replace-first
// keeps it until us can follow. Both end by themselves after healing, and nobody
// is told the compromised version again.
func TestEmergencyWhileARegionIsCutOff(t *testing.T) {
	for _, strategy := range []rotation.Strategy{rotation.ReplaceFirst, rotation.ContainFirst} {
		t.Run(strategy.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := newGlobe(t, false)
				defer g.stop(t)
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				for _, a := range g.apps {
					running.Go(func() { a.run(ctx, t) })
				}
				defer func() { cancel(); running.Wait() }()
				pass(t, time.Second)
				g.wait(t, g.rotate(t, engine.RotateRequest{Reason: "first"}), ended)
				pass(t, time.Second)
				g.db.set(true)
				id := g.rotate(t, engine.RotateRequest{Emergency: true, Strategy: strategy, Reason: "leaked"})
				pass(t, cutFor)
				view, err := g.engine.Rotation(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				if got := lateRegions(view); !slices.Equal(got, []string{"us"}) {
					t.Errorf("it is %v and waits for regions %v", view.Phase, got)
				}
				contained := strategy == rotation.ContainFirst
				if g.db.admits("db-eu", 1) == contained || !g.db.admits("db-us", 1) {
					t.Errorf("v1: %v", g.db.accepted)
				}
				for _, p := range view.Regions {
					if refused := p.Refusing == p.Verifiers; refused != (contained && p.Region == "eu") {
						t.Errorf("region %s: the compromised version is said to be refused: %v", p.Region, refused)
					}
				}
				us := g.apps[1]
				us.mu.Lock()
				if us.using != 1 || len(us.refused) > 0 {
					t.Errorf("us uses v%d: %v", us.using, us.refused)
				}
				us.mu.Unlock()
				g.db.set(false)
				if view = g.await(t, id); view.Phase != rotation.Done {
					t.Errorf("after healing it ended as %v: %s", view.Phase, view.Reason)
				}
				if contained {
					for _, a := range g.apps {
						a.mu.Lock()
						a.refused = nil // that is what containment does
						a.mu.Unlock()
					}
				}
				g.fine(t, 2)
			})
		})
	}
}
