package real

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/gateway"
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
