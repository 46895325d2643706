package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const (
	agentProcesses = 2
	publications   = 5
	deliveryLimit  = 1000   // ms
	spreadEach     = 0.1    // ms, by which the server puts each acknowledgement off
	stormLimit     = 10_000 // ms
)

const deliveryPolicy = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: fleet}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 30s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: ` + keyName + `}
spec: {provider: instant, policy: fleet}
`

// instant is a system that does at once what it is asked for.
type instant struct{ accepted set }

// set is what an instant system accepts.
type set interface {
	put(element string, in bool) error
	has(element string) (bool, error)
}

// memory is a set of one process.
type memory struct {
	mu       sync.Mutex
	elements map[string]bool
}

func newInstant() *instant { return &instant{accepted: &memory{elements: map[string]bool{}}} }

func (m *memory) put(element string, in bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.elements[element] = in
	return nil
}

func (m *memory) has(element string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.elements[element], nil
}

func (s *instant) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "primary"}}, Capacity: 2}, nil
}

func (s *instant) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return s, nil
}

func (s *instant) Mint(_ context.Context, _ provider.Call, request provider.MintRequest) (provider.Material, error) {
	return provider.Material{
		Attributes: map[string]string{"username": fmt.Sprintf("orders_%d", request.Number%2)},
		Secrets:    map[string]secret.Value{"password": secret.NewString(fmt.Sprintf("password-number-%027d", request.Number))},
	}, nil
}

// login is what tells the versions of all keys apart.
func login(call provider.Call, v provider.Version) string {
	return fmt.Sprintf("%s %s", call.Key, v.Material.Secrets["password"].RevealString())
}

func (s *instant) Accept(_ context.Context, call provider.Call, _ string, v provider.Version) error {
	return s.accepted.put(login(call, v), true)
}

func (s *instant) Refuse(_ context.Context, call provider.Call, _ string, v provider.Version) error {
	return s.accepted.put(login(call, v), false)
}

func (s *instant) Probe(_ context.Context, call provider.Call, _ string, v provider.Version) (provider.Verdict, error) {
	accepted, err := s.accepted.has(login(call, v))
	if err != nil {
		return provider.Verdict(0), err
	}
	if accepted {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

func (s *instant) Usage(context.Context, provider.Call, provider.Version) (provider.Usage, error) {
	return provider.Usage{}, nil
}

// delivered is what one side of the benchmark measured.
type delivered struct {
	joined, joinedUsed time.Duration
	// p99 and durable of each publication: after how long 99 % of the agents held
	// the version, and all acknowledgements were on disk.
	p99, durable []time.Duration
	used         time.Duration
	// back is after how long since a restarted server was ready all agents had a
	// stream again, and stormed the processor time that took.
	back, stormed time.Duration
}

// fleets are the numbers of agents that versions are published to.
// KEYTURN_BENCH_AGENTS is another one.
func fleets(b *testing.B) map[string]int {
	b.Helper()
	other := os.Getenv("KEYTURN_BENCH_AGENTS")
	if other == "" {
		return map[string]int{"1000": 1000, "10000": 10_000}
	}
	n, err := strconv.Atoi(other)
	if err != nil || n < agentProcesses || n%agentProcesses != 0 {
		b.Fatalf("KEYTURN_BENCH_AGENTS: %q is no number that %d processes can share", other, agentProcesses)
	}
	return map[string]int{other: n}
}

// BenchmarkDelivery publishes versions to 1,000 and to 10,000 connected agents,
// each with a TLS connection of its own, and waits for their acknowledgements.
func BenchmarkDelivery(b *testing.B) {
	all := fleets(b)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		b.Run(name, func(b *testing.B) { delivery(b, all[name]) })
	}
}

func delivery(b *testing.B, count int) {
	var floor delivered
	stores := []struct {
		name, suffix string
		open         func(b *testing.B) server.StoreConfig
		ours         delivered
	}{
		{name: "ours", open: func(*testing.B) server.StoreConfig { return server.StoreConfig{} }},
		{name: "postgres", suffix: "_postgres", open: func(b *testing.B) server.StoreConfig {
			b.Helper()
			data, _ := postgresStore(b)
			return data
		}},
	}
	// Each cleans up before the next one begins: there are not files enough for two.
	b.Run("floor", func(b *testing.B) { floor = deliverBare(b, count) })
	for i := range stores {
		s := &stores[i]
		b.Run(s.name, func(b *testing.B) { s.ours = deliverKeyturn(b, s.open(b), count) })
		if !b.Failed() && len(s.ours.p99) > 0 && len(floor.p99) > 0 { // both were asked for
			showDelivery(b, s.suffix, count, s.ours, floor)
		}
	}
}

// showDelivery adds the rows of one store.
func showDelivery(b *testing.B, suffix string, count int, ours, floor delivered) {
	b.Helper()
	of := func(name string) string { return fmt.Sprintf("%s_%d%s", name, count, suffix) }
	scoreboard.add(b, result{Name: of("delivery_p99"), Unit: "ms", Ours: milliseconds(median(ours.p99)), Floor: milliseconds(median(floor.p99)), limit: deliveryLimit})
	scoreboard.add(b, result{Name: of("delivery_acks_durable"), Unit: "ms", Ours: milliseconds(median(ours.durable)), Floor: milliseconds(median(floor.durable)), limit: deliveryLimit + spreadEach*float64(count)})
	scoreboard.add(b, result{Name: of("delivery_cpu"), Unit: "ms", Ours: milliseconds(ours.used) / publications, Floor: milliseconds(floor.used) / publications})
	scoreboard.add(b, result{Name: of("join_agents"), Unit: "ms", Ours: milliseconds(ours.joined), Floor: milliseconds(floor.joined)})
	// Its floor is that of connecting first, which is not slower than after a loss.
	scoreboard.add(b, result{Name: of("reconnect_storm"), Unit: "ms", Ours: milliseconds(ours.back), Floor: milliseconds(floor.joined), limit: stormLimit})
	scoreboard.add(b, result{Name: of("reconnect_storm_cpu"), Unit: "ms", Ours: milliseconds(ours.stormed), Floor: milliseconds(floor.joinedUsed)})
}

func deliverKeyturn(b *testing.B, data server.StoreConfig, count int) (d delivered) {
	b.Helper()
	w := newWorldOn(b, data, map[string]provider.Driver{"instant": newInstant()}, deliveryPolicy)
	fleet, joined := startAgents(b, roleKeyturn, orders{Address: w.address, CAFile: w.caFile, Token: w.token, Count: count}, agentProcesses)
	d.joined = joined
	for n := range publications + 1 {
		before := cpu(b)
		seen := w.rotate(b)
		published, took := fleet.hold(b, seen.rotation.GetTo())
		if n == 0 {
			continue // it warmed the caches
		}
		d.used += cpu(b) - before
		d.p99 = append(d.p99, quantile(took, 0.99))
		d.durable = append(d.durable, seen.cutOver.Sub(published))
	}
	d.back, d.stormed = storm(b, w, fleet, count)
	return d
}

// storm restarts the server. No agent may fall back to polling, or meet an error
// that does not pass by itself, and all must hold a version that is published then.
func storm(b *testing.B, w *world, fleet *agents, count int) (back, used time.Duration) {
	b.Helper()
	was := fleet.total()
	w.pause()
	w.resume()
	before, ready := cpu(b), time.Now()
	fleet.wait(b, 5*time.Minute, func(all connections) bool { return all.Connected == count && all.Streams >= was.Streams+count })
	back, used = time.Since(ready), cpu(b)-before
	all := fleet.total()
	b.Logf("%d agents came back with %d failed tries, of which users were told %d", count, all.Failures-was.Failures, all.Errors-was.Errors)
	if all.Permanent != 0 || all.Polling != 0 || all.Errors != was.Errors {
		b.Errorf("after the restart: %+v", all)
	}
	fleet.hold(b, w.rotate(b).rotation.GetTo())
	return back, used
}

// bare serves fixed messages over HTTP/2 and keeps acknowledgements in a log.
type bare struct {
	mu      sync.Mutex
	streams []chan []byte
	log     *floorLog
	acks    chan chan error
	acked   chan int
}

func deliverBare(b *testing.B, count int) (d delivered) {
	b.Helper()
	s := &bare{log: newFloorLog(b), acks: make(chan chan error, count), acked: make(chan int, count)}
	mux := http.NewServeMux()
	mux.HandleFunc("/stream", s.stream)
	mux.HandleFunc("/ack", s.ack)
	srv := httptest.NewUnstartedServer(mux)
	srv.EnableHTTP2 = true
	// The same kind of key as that of Keyturn's own certificates.
	certificate := selfSigned(b)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	b.Cleanup(srv.Close)
	b.Cleanup(srv.CloseClientConnections)
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	go s.keep(ctx)
	caFile := filepath.Join(b.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}), 0o600); err != nil {
		b.Fatal(err)
	}
	before := cpu(b)
	fleet, joined := startAgents(b, roleBare, orders{Address: srv.URL, CAFile: caFile, Count: count}, agentProcesses)
	d.joined, d.joinedUsed = joined, cpu(b)-before
	for n := range publications + 1 {
		before := cpu(b)
		published := time.Now()
		s.publish(published, uint64(n+1))
		for acked := 0; acked < count; {
			select {
			case batch := <-s.acked:
				acked += batch
			case <-time.After(time.Minute):
				b.Fatalf("%d acknowledgements after a minute", acked)
			}
		}
		durable := time.Since(published)
		_, took := fleet.hold(b, uint64(n+1))
		if n == 0 {
			continue // it warmed the caches
		}
		d.used += cpu(b) - before
		d.p99 = append(d.p99, quantile(took, 0.99))
		d.durable = append(d.durable, durable)
	}
	return d
}

func selfSigned(b *testing.B) tls.Certificate {
	b.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		b.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

func (s *bare) publish(at time.Time, version uint64) {
	message := make([]byte, messageSize)
	binary.BigEndian.PutUint64(message, uint64(at.UnixNano()))
	binary.BigEndian.PutUint64(message[8:], version)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, stream := range s.streams {
		stream <- message
	}
}

func (s *bare) stream(w http.ResponseWriter, r *http.Request) {
	messages := make(chan []byte, 1)
	s.mu.Lock()
	s.streams = append(s.streams, messages)
	s.mu.Unlock()
	flush := http.NewResponseController(w)
	_ = flush.Flush() // the client is gone if this fails
	for {
		select {
		case <-r.Context().Done():
			return
		case message := <-messages:
			if _, err := w.Write(message); err != nil {
				return
			}
			_ = flush.Flush() // the client is gone if this fails
		}
	}
}

func (s *bare) ack(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // it is empty
	done := make(chan error, 1)
	s.acks <- done
	if err := <-done; err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// keep writes acknowledgements that wait together in one transaction.
func (s *bare) keep(ctx context.Context) {
	for {
		var waiting []chan error
		select {
		case <-ctx.Done():
			return
		case first := <-s.acks:
			waiting = append(waiting, first)
		}
		for more := true; more; {
			select {
			case next := <-s.acks:
				waiting = append(waiting, next)
			default:
				more = false
			}
		}
		records := make([][]byte, len(waiting))
		for i := range records {
			records[i] = make([]byte, 60)
		}
		err := s.log.append(records)
		for _, done := range waiting {
			done <- err
		}
		if err == nil {
			s.acked <- len(waiting)
		}
	}
}
