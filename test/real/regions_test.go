package real

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// regionalPolicy presents to a canary in each region, then to eu, then to us.
const regionalPolicy = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: database}
spec:
  stages:
    - {name: canary, match: 'party.labels.cohort == "canary"', bake: 0s, ackTimeout: 3s}
    - {name: rest, regions: [eu, us], bake: 0s, ackTimeout: 3s}
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
  endQuarantineEarly: true
  emergency: {strategy: replace-first, grace: 3s}
`

// globe is Keyturn and the primary in region eu, and the standby in region us.
// All that goes between the two regions goes through proxies.
type globe struct {
	*world

	// eu and us are the world as it is seen from there: the only server that
	// applications use is that of their own region.
	eu, us world
	// api leads from us to Keyturn, db from Keyturn to the standby, and replication
	// from the standby to the primary.
	api, db, replication *pgtest.Proxy
	// inEU and inUS are what the applications saw, by region.
	inEU, inUS *load
	// canaryUS, restEU are handles of applications.
	canaryUS, restEU *client.Handle
}

// newGlobe starts it; clients that stay away are forgotten after forget.
func newGlobe(t *testing.T, forget time.Duration) *globe {
	t.Helper()
	g := &globe{world: newSystems(t), inEU: &load{}, inUS: &load{}}
	g.config.Telemetry.RegionBehind = time.Second
	g.config.Limits.ForgetClients = forget
	g.start(t)
	t.Cleanup(func() { g.stop(t) })
	g.api, g.db, g.replication = pgtest.NewProxy(t, g.config.Listen), pgtest.NewProxy(t, g.standby.Addr()), pgtest.NewProxy(t, g.primary.Addr())
	g.replicateThrough(t, g.replication.Addr())
	g.eu, g.us = *g.world, *g.world
	g.eu.standby = g.primary
	g.us.primary, g.us.config.Listen = g.standby, g.api.Addr()

	document := strings.NewReplacer(
		"sslmode=disable", "sslmode=disable&connect_timeout=1", "replicaWait: 3s", "replicaWait: 1s", g.standby.Addr(), g.db.Addr(),
	).Replace(g.keyDocument(g.primary.Addr()))
	g.apply(t, regionalPolicy+"---\n"+document)
	g.first(t)
	g.eu.application(t, g.inEU, "canary-eu", "canary", "eu")
	g.restEU = g.eu.application(t, g.inEU, "rest-eu", "rest", "eu")
	g.canaryUS = g.us.application(t, g.inUS, "canary-us", "canary", "us")
	g.us.application(t, g.inUS, "rest-us", "rest", "us")
	return g
}

// replicateThrough makes the standby follow the primary at another address.
func (g *globe) replicateThrough(t *testing.T, addr string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), g.standby.SuperuserURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var info string
	if err := conn.QueryRow(t.Context(), "SHOW primary_conninfo").Scan(&info); err != nil {
		t.Fatal(err)
	}
	port := regexp.MustCompile(`port='?[0-9]+'?`)
	if !port.MatchString(info) {
		t.Fatal("primary_conninfo names no port")
	}
	info = port.ReplaceAllString(info, "port="+addr[strings.LastIndexByte(addr, ':')+1:])
	pgtest.Exec(
		t, g.standby, "postgres", "ALTER SYSTEM SET primary_conninfo = '"+strings.ReplaceAll(info, "'", "''")+"'",
		"ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'", "SELECT pg_reload_conf()",
	)
}

// cut is a way to be cut off.
type cut struct {
	name string
	do   func(*globe)
}

// The ways. heal undoes them all.
var (
	dropped   = cut{"everything is dropped", func(g *globe) { g.replication.Cut(); g.db.Cut(); g.api.Cut() }}
	broken    = cut{"everything is reset", func(g *globe) { g.replication.Break(); g.db.Break(); g.api.Break() }}
	noReplies = cut{"us hears and cannot answer", func(g *globe) { g.replication.CutReplies(); g.db.CutReplies(); g.api.CutRequests() }}
	noReplica = cut{"only replication is cut", func(g *globe) { g.replication.Cut() }}
	noReports = cut{"only the presenters cannot answer", func(g *globe) { g.api.CutRequests() }}
)

func (g *globe) heal() {
	g.replication.Restore()
	g.db.Restore()
	g.api.Restore()
}

// lag is what the metric says of a region, in seconds.
func (w *world) lag(t *testing.T, region string) float64 {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.address()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := w.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if text, ok := strings.CutPrefix(line, `keyturn_region_lag_seconds{region="`+region+`"} `); ok {
			seconds, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return seconds
		}
	}
	return -1
}

// isBehind waits until the rotation waits for us alone in the phase, and looks at
// what an operator sees; then that us goes on with what it has.
func (g *globe) isBehind(t *testing.T, what, id, phase string) {
	t.Helper()
	r := g.wait(t, id, func(r *keyturnv1.Rotation) bool {
		return r.GetPhase() == phase && slices.Equal(behind(r), []string{"us"})
	})
	if r.GetPhase() != phase {
		t.Fatalf("%s: the rotation ended as %s (%s)\n%s", what, r.GetPhase(), r.GetReason(), g.timeline(t, id))
	}
	g.paged(t, `"rotation":"`+id+`"`, `"regions":[{"region":"us"`, `"severity":"page"`, "region us: ")
	eventually(t, what+": the metric tells the lag", func() bool { return g.lag(t, "us") >= 1 })
	g.inUS.more(t, 20)
	g.inEU.more(t, 20)
	g.inUS.check(t)
	if now := g.wait(t, id, func(*keyturnv1.Rotation) bool { return true }); now.GetPhase() != phase || !slices.Equal(behind(now), []string{"us"}) {
		t.Errorf("%s: it went on to %s and waits for %v", what, now.GetPhase(), behind(now))
	}
	if t.Failed() {
		t.Fatalf("%s:\n%s", what, g.timeline(t, id))
	}
}

// behind returns the regions that the rotation waits for.
func behind(r *keyturnv1.Rotation) []string {
	var names []string
	for _, p := range r.GetRegions() {
		if p.GetLateVerifiers()+p.GetLatePresenters() > 0 {
			names = append(names, p.GetRegion())
		}
	}
	return names
}

// fine fails the test unless v alone is accepted, in both regions, and no
// application of either ever failed.
func (g *globe) fine(t *testing.T, what string, v, refused key.Version) {
	t.Helper()
	g.mustAccept(t, v)
	g.mustRefuse(t, refused)
	g.inEU.check(t)
	g.inUS.check(t)
	if t.Failed() {
		t.Fatal(what)
	}
}

// cutAt cuts us off when an effect is about to be carried out, begins a rotation,
// and returns it once that has happened.
func (g *globe) cutAt(t *testing.T, c cut, p point) string {
	t.Helper()
	gate, reached, release := at(p)
	g.tap.stand(gate)
	defer g.tap.stand(nil)
	id := g.rotate(t, &keyturnv1.RotateRequest{Reason: c.name})
	await(t, p.op, reached)
	c.do(g)
	release()
	return id
}

// cutWhen cuts us off when rest-eu is told to use v, and says then what apply says.
func (g *globe) cutWhen(t *testing.T, c cut, v key.Version, apply error) string {
	t.Helper()
	var once sync.Once
	come := make(chan struct{})
	remove := g.restEU.OnApply(func(_ context.Context, next client.Credential) error {
		if next.Version != v {
			return nil
		}
		once.Do(func() { c.do(g); close(come) })
		return apply
	})
	t.Cleanup(remove)
	id := g.rotate(t, &keyturnv1.RotateRequest{Reason: c.name})
	await(t, "eu is told", come)
	return id
}

// TestRegionCutOffOnTheWay (F7): region us is cut off in every phase in which a
// rotation needs it, in various ways. Its applications keep logging in at its
// standby, nobody is promoted past it, the page and the metric name it, and after
// healing the rotation goes on by itself. No query fails in either region.
func TestRegionCutOffOnTheWay(t *testing.T) {
	t.Parallel()
	g := newGlobe(t, 2*time.Second)
	agent := g.us.agentApp(t, "agent-us", "rest", "us", "")
	g.settled(t, agent.id, 1)
	next := key.Version(2)
	for _, test := range []struct {
		phase string
		cut   cut
		begin func(c cut) string
		// untold: no presenter is told before it heals.
		untold bool
	}{
		{"planned", dropped, func(c cut) string { return g.cutAt(t, c, point{op: "preflight"}) }, true},
		{"accepting", broken, func(c cut) string { return g.cutAt(t, c, point{op: "mint", version: next}) }, true},
		{"accepting", noReplies, func(c cut) string { return g.cutAt(t, c, point{op: "accept", endpoint: "primary", version: next}) }, true},
		{"presenting", broken, func(c cut) string { return g.cutWhen(t, c, next, nil) }, false},
		{"presenting", noReports, func(c cut) string { return g.cutWhen(t, c, next, nil) }, false},
		{"draining", dropped, func(c cut) string { return g.cutAt(t, c, point{op: "usage", version: next - 1}) }, false},
		{"revoking", noReplica, func(c cut) string {
			return g.cutAt(t, c, point{op: "refuse", endpoint: "primary", version: next - 1})
		}, false},
	} {
		what := fmt.Sprintf("%s, %s", test.phase, test.cut.name)
		began := time.Now()
		id := test.begin(test.cut)
		g.isBehind(t, what, id, test.phase)
		timeline := g.timeline(t, id)
		if test.untold && strings.Contains(timeline, "presenter.told") {
			t.Fatalf("%s: somebody was told:\n%s", what, timeline)
		}
		if test.phase == "presenting" {
			if now := g.current(t); now != uint64(next-1) {
				t.Errorf("%s: version %d is current", what, now)
			}
		}
		if test.phase == "presenting" && test.cut.name == broken.name {
			g.stay(t, what, 3) // in other ways they look connected
		}
		healed := time.Now()
		g.heal()
		g.finish(t, id, "done")
		t.Logf("%s: cut off for %v, %v after healing it was done", what, healed.Sub(began).Round(time.Millisecond), time.Since(healed).Round(time.Millisecond))
		g.fine(t, what, next, next-1)
		next++
	}
	// A rotation that needs nothing of us any more does not wait for it.
	id := g.cutAt(t, dropped, point{op: "destroy", version: next - 1})
	g.finish(t, id, "done")
	g.inUS.more(t, 20)
	g.heal()
	g.fine(t, "destroying", next, next-1)
	eventually(t, "nobody lags", func() bool { return g.lag(t, "us") == 0 && g.lag(t, "eu") == 0 })
	g.healthy(t)
}

// stay waits until clients that stay away are forgotten, the parties of us excepted.
func (g *globe) stay(t *testing.T, what string, parties int) {
	t.Helper()
	eventually(t, what+": the region is known to be silent", func() bool {
		return strings.Contains(g.logs.String(), "no party of a region is connected") && strings.Contains(g.logs.String(), "region=us")
	})
	response, err := g.control.ListParties(t.Context(), &keyturnv1.ListPartiesRequest{Key: keyName})
	if err != nil {
		t.Fatal(err)
	}
	away := 0
	for _, p := range response.GetParties() {
		if p.GetParty().GetRegion() == "us" && !p.GetConnected() {
			away++
		}
	}
	if away != parties {
		t.Errorf("%s: %d parties of us are away and registered, not %d", what, away, parties)
	}
}

// TestRegionCutOffOnTheWayBack (F7): us is cut off when a rotation fails in eu,
// while its canary uses the new version, and when the new version is revoked. It
// may use what it has until it is back; then the roll-back ends.
func TestRegionCutOffOnTheWayBack(t *testing.T) {
	t.Parallel()
	g := newGlobe(t, 2*time.Second)

	id := g.cutWhen(t, dropped, 2, errors.New("the orders service answers 500"))
	g.isBehind(t, "returning", id, "rolling-back")
	if v := g.canaryUS.Current().Version; v != 2 {
		t.Errorf("the canary of us uses %v", v)
	}
	g.mustAccept(t, 1)
	g.mustAccept(t, 2)
	g.heal()
	g.finish(t, id, "rolled-back")
	g.fine(t, "returning", 1, 2)

	remove := g.restEU.OnApply(func(_ context.Context, next client.Credential) error {
		if next.Version == 3 {
			return errors.New("the orders service answers 500")
		}
		return nil
	})
	defer remove()
	id = g.cutAt(t, noReplies, point{op: "refuse", endpoint: "primary", version: 3})
	g.isBehind(t, "revoking what failed", id, "rolling-back")
	g.heal()
	g.finish(t, id, "rolled-back")
	g.fine(t, "revoking what failed", 1, 3)

	g.finish(t, g.rotate(t, &keyturnv1.RotateRequest{Reason: "the next one"}), "done")
	g.fine(t, "the next one", 4, 1)
	g.healthy(t)
}

// TestEmergencyWithARegionCutOff (F7): replace-first waits for us, and nobody
// fails; contain-first refuses the compromised version in eu at once and says that
// us still accepts it. Healing completes both.
func TestEmergencyWithARegionCutOff(t *testing.T) {
	t.Parallel()
	g := newGlobe(t, 2*time.Second)

	dropped.do(g)
	id := g.rotate(t, &keyturnv1.RotateRequest{Reason: "the password was in a ticket", Emergency: true, Strategy: "replace-first"})
	g.isBehind(t, "replace-first", id, "planned")
	g.heal()
	g.finish(t, id, "done")
	g.fine(t, "replace-first", 2, 1)

	broken.do(g)
	id = g.rotate(t, &keyturnv1.RotateRequest{Reason: "it is being abused", Emergency: true, Strategy: "contain-first"})
	material := g.tap.material(t, 2)
	eventually(t, "eu refuses the compromised version", func() bool { return isRefused(tryLogin(t.Context(), g.primary.Addr(), material)) })
	g.paged(t, `"rotation":"`+id+`"`, `{"region":"us","verifiers":1`, `"severity":"page"`)
	r := g.wait(t, id, func(r *keyturnv1.Rotation) bool { return slices.Equal(behind(r), []string{"us"}) })
	for _, p := range r.GetRegions() {
		if refused := p.GetRefusing() == p.GetVerifiers(); refused != (p.GetRegion() == "eu") {
			t.Errorf("in %s the compromised version is said to be refused: %v", p.GetRegion(), refused)
		}
	}
	g.inUS.more(t, 20)
	g.inUS.check(t)
	if err := tryLogin(t.Context(), g.standby.Addr(), material); err != nil {
		t.Errorf("us is cut off and refuses what it has: %v", err)
	}
	g.heal()
	g.finish(t, id, "done")
	g.mustAccept(t, 3)
	g.mustRefuse(t, 2)
	g.healthy(t)
}
