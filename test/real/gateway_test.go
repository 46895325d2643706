package real

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/gateway"
	"github.com/keyturn/keyturn/key"
)

// gatewayRegion is a gateway, and the world as those see it who reach nothing else.
type gatewayRegion struct {
	*world
	config  gateway.Config
	gateway *gateway.Gateway
	logs    *logBuffer
}

func (w *world) behindGateway(t *testing.T, name string) *gatewayRegion {
	t.Helper()
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: name, Role: "gateway", Keys: []string{"prod/**"}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.dir, name+".token")
	if err := os.WriteFile(path, []byte(token.GetToken()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &gatewayRegion{logs: &logBuffer{}}
	b.config = gateway.Config{
		Name: name, Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, name), Serve: []string{gateway.ServeDelivery},
		Centre: gateway.CentreConfig{Address: w.address(), CAFile: w.caFile(), TokenFile: path},
	}
	b.start(t)
	t.Cleanup(func() { b.stop(t) })
	region := *w
	region.addresses, region.config.DataDir = b.gateway.Address(), b.config.DataDir
	pem, err := os.ReadFile(b.gateway.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	region.roots = x509.NewCertPool()
	region.roots.AppendCertsFromPEM(pem)
	b.world = &region
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the gateway's log:\n%s", b.logs.tail(4000))
		}
	})
	return b
}

// start starts the gateway, at the address it had before if there is one.
func (b *gatewayRegion) start(t *testing.T) {
	t.Helper()
	var err error
	if b.gateway, err = gateway.Start(t.Context(), b.config, gateway.Options{LogTo: b.logs}); err != nil {
		t.Fatal(err)
	}
	b.config.Listen = strings.TrimPrefix(b.gateway.Address(), "https://")
}

func (b *gatewayRegion) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := b.gateway.Stop(ctx); err != nil {
		t.Errorf("stop the gateway: %v", err)
	}
}

// odd are keys without a version, of which one is not covered by the gateway's token.
const odd = `---
apiVersion: keyturn/v1
kind: Key
metadata: {name: partners/acme, owner: team-partners}
spec: {provider: apikey, policy: database, config: {client: ACME, prefix: acme_live, keep: sealed}}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/acme, owner: team-partners}
spec: {provider: apikey, policy: database, config: {client: ACME, prefix: acme_live, keep: sealed}}
`

// TestGatewayPresentsWhatItMay: a key that the gateway may not present keeps it from no
// other key.
func TestGatewayPresentsWhatItMay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	w.apply(t, quickPolicy+"---\n"+w.keyDocument(w.primary.Addr())+odd)
	b := w.behindGateway(t, "gateway-eu")
	presents := func(names ...key.Name) func() bool {
		return func() bool {
			response, err := w.control.ListParties(t.Context(), &keyturnv1.ListPartiesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range response.GetParties() {
				if p.GetParty().GetId() != "gateway-eu" {
					continue
				}
				var list []key.Name
				for _, k := range p.GetKeys() {
					list = append(list, key.Name(k.GetKey()))
				}
				slices.Sort(list)
				return slices.Equal(list, names)
			}
			return false
		}
	}
	l := &load{}
	b.application(t, l, "app", "canary", "eu")
	watcher, err := client.New(b.party(client.KindClient, "watcher", "rest", "eu"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = watcher.Watch(ctx, []client.Known{{Key: "partners/acme"}, {Key: "prod/acme"}}, func(context.Context, []client.Assignment) []client.Outcome { return nil })
	}()
	eventually(t, "the gateway presents what its token covers", presents("prod/acme", keyName))
	cancel()
	<-done
	w.stop(t)
	w.start(t)
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "beside a key that is relayed only"}), "done")
	if !presents("prod/acme", keyName)() {
		t.Error("the gateway presents something else after the server was restarted")
	}
	says(t, "the gateway's log", b.logs.String(), `"key":"partners/acme","error":"permission_denied`)
	l.more(t, 20)
	l.check(t)
}

// TestGateway: applications and an agent reach a gateway only. A rotation passes through
// it under load; then the server is killed, and applications begin that hold nothing. When
// the server is back it rotates at once. Then it is killed again, and the gateway is
// restarted without it. No log-in fails, and the audit log tells who was given what.
func TestGateway(t *testing.T) {
	t.Parallel()
	m := newMortal(t, quickPolicy, false)
	b := m.behindGateway(t, "gateway-eu")
	l := &load{}
	for i := range 3 {
		b.application(t, l, fmt.Sprintf("app-%d", i), cohort(i, 3), region(i))
	}
	b.agentApp(t, "agent-0", "rest", "eu", "")
	m.settled(t, "agent-0", 1)
	m.finish(t, m.rotate(t, &keyturnv1.RotateRequest{Reason: "through the gateway"}), "done")
	m.mustRefuse(t, 1)
	l.more(t, 20)

	m.process.kill(t)
	for i := range 3 {
		b.application(t, l, fmt.Sprintf("new-%d", i), cohort(i, 3), region(i))
	}
	l.more(t, 20)

	m.later += lease
	m.process = m.startChild(t, childConfig{Later: m.later})
	id := m.rotate(t, &keyturnv1.RotateRequest{Reason: "as soon as the server is back"})
	m.finish(t, id, "done")
	m.mustRefuse(t, 2)
	m.mustAccept(t, 3)
	l.more(t, 20)
	for i := range 3 {
		handout := func() bool {
			for _, entry := range m.verified(t) {
				if strings.Contains(entry, "secret.handout") && strings.Contains(entry, fmt.Sprintf("new-%d", i)) && strings.Contains(entry, "gateway-eu") {
					return true
				}
			}
			return false
		}
		eventually(t, fmt.Sprintf("the audit log tells of new-%d", i), handout)
	}
	m.healthy(t)

	m.process.kill(t)
	b.stop(t)
	b.start(t)
	b.application(t, l, "last", "rest", "eu")
	l.more(t, 20)
	l.check(t)
}
