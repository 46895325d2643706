package bench

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/gateway"
	"github.com/keyturn/keyturn/internal/logging"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const (
	gatewayAgents = 2000
	// newcomers start one after the other while the server is stopped.
	newcomers = 50
	// newcomerLimit is what the relay may take to find out, in ms; afterwards it knows.
	newcomerLimit = 2500
	// homeLimit is the time for all streams to be relayed again after a return, in ms.
	homeLimit = 15_000
)

// BenchmarkGatewayRelays connects agents to a server, and as many to a gateway in front of it:
// how long until a version is at all of them, with as many acknowledgements. Then the
// server is stopped: how long a new client takes to have its credential, and before at the
// server. It is started again: how long until every stream is relayed, and how long the
// agents took to connect to the server first.
func BenchmarkGatewayRelays(b *testing.B) {
	w := newWorld(b, map[string]provider.Driver{"instant": newInstant()}, deliveryPolicy)
	w.rotate(b)
	var direct, firsts []time.Duration
	var joined time.Duration
	b.Run("direct", func(b *testing.B) {
		var fleet *agents
		fleet, joined = startAgents(b, roleKeyturn, orders{Address: w.address, CAFile: w.caFile, Token: w.token, Count: gatewayAgents}, agentProcesses)
		direct = publish(b, w, fleet)
		for range newcomers {
			firsts = append(firsts, newcomer(b, orders{Address: w.address, CAFile: w.caFile, Token: w.token}))
		}
		fleet.end(agentProcesses)
	})
	b.Run("gateway", func(b *testing.B) {
		g := startGateway(b, w)
		fleet, _ := startAgents(b, roleKeyturn, orders{Address: g.Address(), CAFile: g.CAFile(), Token: w.token, Count: gatewayAgents}, agentProcesses)
		through := publish(b, w, fleet)
		if len(direct) == 0 {
			b.Fatal("there is nothing to compare with; run direct as well")
		}
		scoreboard.add(b, result{Name: "gateway_delivery_p99", Unit: "ms", Ours: milliseconds(median(through)), Floor: milliseconds(median(direct)), limit: deliveryLimit})
		here := orders{Address: g.Address(), CAFile: g.CAFile(), Token: w.token}
		newcomer(b, here) // from now on the gateway knows the token of such clients
		was := fleet.total()
		w.pause()
		var took []time.Duration
		for range newcomers {
			took = append(took, newcomer(b, here))
		}
		w.resume()
		began := time.Now()
		for stats := g.Stats(); stats.Relayed < gatewayAgents; stats = g.Stats() {
			if time.Since(began) > time.Minute {
				b.Fatalf("after a minute: %+v", stats)
			}
			<-time.After(10 * time.Millisecond)
		}
		home := time.Since(began)
		if now := fleet.total(); now.Errors != was.Errors || now.Streams != was.Streams || now.Connected != gatewayAgents {
			b.Errorf("clients of the gateway noticed: %+v, before %+v", now, was)
		}
		scoreboard.add(b, result{Name: "gateway_newcomer_p99", Unit: "ms", Ours: milliseconds(quantile(took, 0.99)), Floor: milliseconds(quantile(firsts, 0.99)), limit: newcomerLimit})
		scoreboard.add(b, result{Name: "gateway_newcomer_median", Unit: "ms", Ours: milliseconds(median(took)), Floor: milliseconds(median(firsts)), limit: newcomerLimit})
		scoreboard.add(b, result{Name: "gateway_streams_home", Unit: "ms", Ours: milliseconds(home), Floor: milliseconds(joined), limit: homeLimit})
		fleet.hold(b, w.rotate(b).rotation.GetTo())
	})
}

// publish rotates several times, and returns after how long 99 % of the agents held each
// version.
func publish(b *testing.B, w *world, fleet *agents) (p99 []time.Duration) {
	b.Helper()
	for n := range publications + 1 {
		_, took := fleet.hold(b, w.rotate(b).rotation.GetTo())
		if n > 0 { // the first warmed the caches
			p99 = append(p99, quantile(took, 0.99))
		}
	}
	return p99
}

func startGateway(b *testing.B, w *world) *gateway.Gateway {
	b.Helper()
	token, err := w.control.CreateToken(b.Context(), &keyturnv1.CreateTokenRequest{Name: "gateway", Role: "gateway", Keys: []string{"**"}})
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token.GetToken()), 0o600); err != nil {
		b.Fatal(err)
	}
	g, err := gateway.Start(b.Context(), gateway.Config{
		Name: "gateway", DataDir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", Serve: []string{gateway.ServeDelivery},
		Centre: gateway.CentreConfig{Address: w.address, CAFile: w.caFile, TokenFile: file}, Log: logging.Config{Level: "error"},
		Limits: gateway.LimitsConfig{PerSecond: 100_000, Burst: 100_000}, // all agents share one token
	}, gateway.Options{LogTo: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := g.Stop(context.WithoutCancel(b.Context())); err != nil {
			b.Logf("stop the gateway: %v", err) // streams under way are cut off
		}
	})
	return g
}

// newcomer is how long a new client takes to have its credential.
func newcomer(b *testing.B, at orders) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Second)
	defer cancel()
	began := time.Now()
	keys, err := client.Open(ctx, client.Config{
		Address: at.Address, Token: client.StaticToken(secret.NewString(at.Token)), RootCAs: rootsOf(b, at.CAFile), Party: client.Party{Kind: client.KindClient},
	}, key.Name(keyName))
	if err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	if keys.Key(keyName).Current().Password().Len() == 0 {
		b.Error("the newcomer has no credential")
	}
	keys.Close()
	return took
}
