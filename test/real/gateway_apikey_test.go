package real

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/server"
)

// edgeLoad shows keys to an edge all the time: the present one, which must be let in,
// and those that were proven refused, which must not.
type edgeLoad struct {
	load
	// refusals counts how often a refused key was shown.
	refusals atomic.Int64

	mu      sync.Mutex
	present string
	refused []string
}

func (l *edgeLoad) use(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.present = text
}

// refuse has a key shown from now on that nobody may let in any more.
func (l *edgeLoad) refuse(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, text)
}

func (l *edgeLoad) shown() (present string, refused []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.present, slices.Clone(l.refused)
}

var errLetIn = errors.New("a key that was proven refused is let in")

// run starts n applications that show the present key, and one that shows refused ones.
func (l *edgeLoad) run(t *testing.T, e *edge, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	every := func(who string, do func() error) {
		running.Go(func() {
			for ctx.Err() == nil {
				if err := do(); err != nil && ctx.Err() == nil {
					l.fail(who, err)
				}
				select {
				case <-time.After(pauseBetween):
				case <-ctx.Done():
				}
			}
		})
	}
	for i := range n {
		v := e.visitor(t, fmt.Sprint("127.0.1.", i+1), "")
		every(fmt.Sprint("application ", i), func() error {
			text, _ := l.shown()
			said, _, err := v.show(ctx, "/orders", text)
			if err == nil && (!strings.HasPrefix(said, apiKey+" ") || !strings.HasSuffix(said, " ACME Ltd.")) {
				err = fmt.Errorf("%w: the origin heard of %q", errNotAdmitted, said)
			}
			l.queries.Add(1)
			return err
		})
	}
	old := e.visitor(t, "127.0.1.200", "")
	every("whoever has refused keys", func() error {
		_, refused := l.shown()
		for _, text := range refused {
			_, status, err := old.show(ctx, "/orders", text)
			switch {
			case err == nil:
				return errLetIn
			case status != http.StatusUnauthorized && status != http.StatusForbidden:
				return err
			}
			l.refusals.Add(1)
		}
		return nil
	})
}

// mustBeRefused fails the test unless a key is refused now, by each gateway and by nginx.
func mustBeRefused(t *testing.T, text string, v *visitor, gateways ...*gatewayProcess) {
	t.Helper()
	for _, g := range gateways {
		if status, outcome := g.asked(t, text); status != http.StatusUnauthorized || outcome != "refused" {
			t.Errorf("%s answers %d %q for a key that the rotation has proven refused", g.name, status, outcome)
		}
	}
	if _, status, err := v.show(t.Context(), "/orders", text); status != http.StatusUnauthorized {
		t.Errorf("nginx answers %v for a key that the rotation has proven refused", err)
	}
}

// newGatewayWorld starts a server as a process of its own and issues the key's first
// version.
func newGatewayWorld(t *testing.T) (w *world, centre *child) {
	t.Helper()
	w = &world{dir: t.TempDir(), logs: &logBuffer{}, tap: newTap()}
	w.config = server.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, "data"), Log: server.LogConfig{Format: "text", Level: "debug"},
		Limits: server.LimitsConfig{PerSecond: 5000, Burst: 20_000},
	}
	w.heard, w.config.Telemetry = newReceiver(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", w.logs.tail(6000))
		}
	})
	centre = w.startChild(t, childConfig{})
	w.apply(t, strings.Replace(apiKeyPolicy, "max: 1m", "max: 2s", 1)+"---\n"+example(t, "apikey/partner.yaml"))
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	return w, centre
}

// issue hands a version out into a file, as an operator does.
func (w *world) issue(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "acme.key")
	code, stdout, stderr := w.keyturn(t, "", append([]string{"apikey", "issue", apiKey, "--out", path}, args...)...)
	if code != cli.ExitOK {
		t.Fatalf("keyturn apikey issue: exit code %d: %s%s", code, stdout, stderr)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(content))
}

// prove shows the key that a client was told to use to the centre.
func (w *world) prove(t *testing.T, text string) {
	t.Helper()
	if code, own := w.self(t, http.MethodGet, ownStatus, text); code != http.StatusOK || own["proven"] == nil {
		t.Errorf("the proof: %d %v", code, own)
	}
}

// TestAPIKeyThroughGateways: a partner shows its API key to an nginx that asks two
// gateways, all the time. The key rotates by the partner's own hand, and one gateway is
// killed on the way; the centre is killed, and while it is away both gateways are, one
// after the other, and come back with what they kept sealed; then the key rotates by the
// command line, while somebody at a known place stays with the old key, is let in, named,
// and waited for. No request with a good key fails and none with a refused one is let in,
// whoever was killed. In an emergency nginx refuses the key at once, and a gateway that
// is dead is named until it has come back and refuses it too.
func TestAPIKeyThroughGateways(t *testing.T) {
	t.Parallel()
	w, centre := newGatewayWorld(t)
	first := w.issue(t)
	w.prove(t, first)
	one := w.gateway(t, "gateway-1", "unix:"+filepath.Join(w.dir, "gateway.sock"), "apikeys")
	two := w.gateway(t, "gateway-2", "", "apikeys")
	e := w.nginx(t, one, two)
	v := e.visitor(t, "127.0.2.1", "")
	for _, g := range []*gatewayProcess{one, two} {
		g.knows(t, first)
	}
	if said, _, err := v.show(t.Context(), "/orders", first); err != nil || said != apiKey+" 1 ACME Ltd." {
		t.Fatalf("the first key: %q, %v", said, err)
	}
	for what, text := range map[string]string{"mistyped": first[:len(first)-1], "none": "", "another": strings.Replace(first, "acme", "acmf", 1)} {
		if _, status, err := v.show(t.Context(), "/orders", text); status != http.StatusUnauthorized {
			t.Errorf("%s: %v", what, err)
		}
	}
	l := &edgeLoad{}
	l.use(first)
	l.run(t, e, 4)
	l.more(t, 20)

	// The partner's own hand.
	id := w.rotateKey(t, apiKey, "yearly")
	w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == "presenting" })
	_, next := w.self(t, http.MethodPost, ownSuccessor, first)
	second, _ := next["key"].(string)
	l.use(second)
	one.kill(t) // what it kept lets the first key in: the rotation waits for it
	l.more(t, 20)
	w.prove(t, second)
	l.more(t, 20)
	one.start(t)
	w.finish(t, id, "done")
	mustBeRefused(t, first, v, one, two)
	l.refuse(first)
	l.more(t, 20)

	// Nobody answers but the gateways, and they are killed as well.
	centre.kill(t)
	l.more(t, 20)
	for _, g := range []*gatewayProcess{one, two} {
		g.kill(t)
		l.more(t, 20)
		g.start(t)
		if status, outcome := g.asked(t, second); status != http.StatusOK {
			t.Errorf("%s was started without the centre and answers %d %q", g.name, status, outcome)
		}
		l.more(t, 20)
	}
	w.startChild(t, childConfig{})

	// The command line, and somebody who is late.
	id = w.rotateKey(t, apiKey, "yearly again")
	w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == "presenting" })
	third := w.issue(t)
	w.late(t, l, e, second, id, func() {
		l.use(third)
		w.prove(t, third)
	})
	w.finish(t, id, "done")
	mustBeRefused(t, second, v, one, two)
	l.refuse(second)
	l.more(t, 20)
	l.check(t)
	if l.refusals.Load() == 0 {
		t.Error("no refused key was shown")
	}
	fourth := w.revoked(t, third, v, one, two)
	w.revokedWithout(t, fourth, two, v, one)
	w.healthy(t)
	for _, g := range []*gatewayProcess{one, two} {
		for place, text := range map[string]string{"log": g.logs.String(), "metrics": g.scrape(t)} {
			if found := leaks(map[string]string{"first": first, "second": second, "third": third, "its token": g.token, "a proxy's token": g.proxyToken}, []byte(text)); len(found) > 0 {
				t.Errorf("the %s of %s has %v", place, g.name, found)
			}
		}
	}
}

// late has two applications stay with the old key while everybody else turns to the
// next one. They are let in until they turn as well, named by the addresses that the
// proxies told, and waited for.
func (w *world) late(t *testing.T, l *edgeLoad, e *edge, old, id string, turn func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
	}()
	for path, v := range map[string]*visitor{"/real": e.visitor(t, "127.0.3.1", "198.51.100.7"), "/orders": e.visitor(t, "127.0.3.2", "198.51.100.9")} {
		running.Go(func() {
			for ctx.Err() == nil {
				if _, _, err := v.show(ctx, path, old); err != nil && ctx.Err() == nil {
					l.fail("whoever is late", err)
				}
				select {
				case <-time.After(pauseBetween):
				case <-ctx.Done():
				}
			}
		})
	}
	turn()
	places := func(r *keyturnv1.Rotation) (list []string) {
		for _, holder := range r.GetHolders() {
			if strings.HasPrefix(holder.GetApplication(), "gateway-") {
				list = append(list, holder.GetAddress())
			}
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	want := []string{"127.0.3.1", "198.51.100.9"}
	held := w.wait(t, id, func(r *keyturnv1.Rotation) bool {
		return r.GetHold().GetReason() == "drain-max" && slices.Equal(places(r), want)
	})
	if held.GetEnded() || !slices.Equal(places(held), want) {
		t.Errorf("the old key is in use, and the holders are %v (%v)\n%s", held.GetHolders(), held.GetPhase(), w.timeline(t, id))
	}
}

// revoked revokes the key in an emergency and measures when nginx refuses it. It returns
// the next one, which the client is handed out by hand: its old one is refused.
func (w *world) revoked(t *testing.T, text string, v *visitor, gateways ...*gatewayProcess) string {
	t.Helper()
	began := time.Now()
	id := w.revoke(t)
	declared := time.Since(began)
	eventually(t, "nginx refuses the revoked key", func() bool {
		_, status, _ := v.show(t.Context(), "/orders", text)
		return status == http.StatusUnauthorized
	})
	t.Logf("declared after %v, first refused by nginx after %v", declared, time.Since(began))
	w.reached(t, id, "presenting")
	next := w.issue(t)
	w.prove(t, next)
	w.finish(t, id, "done")
	mustBeRefused(t, text, v, gateways...)
	return next
}

// revoke has the key refused at once and returns the rotation.
func (w *world) revoke(t *testing.T) string {
	t.Helper()
	code, stdout, stderr := w.keyturn(t, "", "apikey", "revoke", apiKey, "--reason", "found in a repository", "--strategy", "contain-first")
	if code != cli.ExitOK {
		t.Fatalf("keyturn apikey revoke: exit code %d: %s%s", code, stdout, stderr)
	}
	response, err := w.control.ListRotations(t.Context(), &keyturnv1.ListRotationsRequest{Key: apiKey})
	if err != nil || len(response.GetRotations()) == 0 {
		t.Fatalf("the rotations: %v, %v", response, err)
	}
	return response.GetRotations()[0].GetId()
}

// revokedWithout revokes the key while a gateway is dead: what it keeps lets the key in.
// The others refuse it at once; the rotation names the one that is missing, and ends when
// that has come back and refuses the key as well.
func (w *world) revokedWithout(t *testing.T, text string, dead *gatewayProcess, v *visitor, others ...*gatewayProcess) {
	t.Helper()
	for _, g := range append(others, dead) {
		g.knows(t, text)
	}
	dead.kill(t)
	id := w.revoke(t)
	for _, g := range others {
		eventually(t, g.name+" refuses the revoked key", func() bool {
			status, _ := g.asked(t, text)
			return status == http.StatusUnauthorized
		})
	}
	if soaking { // it takes 5 s
		named := func(r *keyturnv1.Rotation) bool {
			_, messages := waitsFor(r)
			return strings.Contains(messages, dead.name)
		}
		if r := w.wait(t, id, named); !named(r) {
			t.Errorf("the rotation does not name %s: %v", dead.name, r)
		}
	}
	if r := w.wait(t, id, func(*keyturnv1.Rotation) bool { return true }); r.GetEnded() {
		t.Errorf("the rotation has ended without %s: %v", dead.name, r)
	}
	dead.start(t)
	w.reached(t, id, "presenting")
	w.prove(t, w.issue(t))
	w.finish(t, id, "done")
	mustBeRefused(t, text, v, append(others, dead)...)
}
