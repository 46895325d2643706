//go:build soak

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
)

const (
	// threeAgents agents present threeKeys keys, each the same number; a process of
	// agents presents one of them.
	threeAgents = 50_000
	threeKeys   = 10
	threePrefix = "prod/fleet/"
)

// BenchmarkThreeServers connects 50,000 agents, each with a TLS connection of its
// own, to three servers on one PostgreSQL, publishes versions of ten keys at once,
// and stops a server: its agents go to the other two. KEYTURN_BENCH_AGENTS is
// another number. It wants 16 GiB of memory, and the right
// to open 400,000 files: the three servers are in one process.
func BenchmarkThreeServers(b *testing.B) {
	count := threeAgents
	if other := os.Getenv("KEYTURN_BENCH_AGENTS"); other != "" {
		n, err := strconv.Atoi(other)
		if err != nil || n < threeKeys || n%threeKeys != 0 {
			b.Fatalf("KEYTURN_BENCH_AGENTS: %q is no number that %d processes can share", other, threeKeys)
		}
		count = n
	}
	files := syscall.Rlimit{Cur: 400_000, Max: 400_000}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		b.Fatalf("%d open files are needed: %v", files.Cur, err)
	}
	servers := startThree(b, count)
	first := servers[0]
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, s.address)
	}
	all := orders{Address: strings.Join(addresses, ","), CAFile: first.caFile, Token: first.token, Key: threePrefix + "%d", Count: count}
	before := mebibytes(b)
	fleet, joined := startAgents(b, roleKeyturn, all, threeKeys)
	b.Logf("%d agents are connected after %v; %.1f KiB each at the servers", count, joined.Round(time.Millisecond), (mebibytes(b)-before)*1024/float64(count))
	var p99, durable []time.Duration
	for n := range publications {
		published, took, cutOver := publishAll(b, first, fleet)
		if n > 0 { // the first warmed the caches
			p99 = append(p99, quantile(took, 0.99))
			durable = append(durable, cutOver.Sub(published))
		}
	}
	b.Logf("a version is at all: p99 %v, acknowledgements durable after %v", median(p99), median(durable))

	was := fleet.total()
	servers[2].stop()
	stopped := time.Now()
	fleet.wait(b, 5*time.Minute, func(now connections) bool { return now.Connected == count && now.Streams > was.Streams })
	now := fleet.total()
	b.Logf("a server is stopped: its %d agents are at the others after %v, with %d failed tries, of which users were told %d",
		now.Streams-was.Streams, time.Since(stopped).Round(time.Millisecond), now.Failures-was.Failures, now.Errors-was.Errors)
	if now.Permanent != 0 || now.Polling != 0 || now.Errors != was.Errors {
		b.Errorf("after the stop: %+v", now)
	}
	_, took, _ := publishAll(b, first, fleet)
	b.Logf("two servers: p99 %v", quantile(took, 0.99))
}

// mebibytes is the memory of this process, which is that of the servers.
func mebibytes(b *testing.B) float64 {
	b.Helper()
	mib, err := resident(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	return mib
}

// publishAll rotates every key at once.
func publishAll(b *testing.B, w *world, fleet *agents) (published time.Time, took []time.Duration, cutOver time.Time) {
	b.Helper()
	seen := make([]rotated, threeKeys)
	var rotating sync.WaitGroup
	for i := range seen {
		rotating.Go(func() { seen[i] = w.rotateKey(b, fmt.Sprint(threePrefix, i), 3*time.Minute) })
	}
	rotating.Wait()
	if b.Failed() {
		b.FailNow()
	}
	for _, s := range seen {
		if s.rotation.GetTo() != seen[0].rotation.GetTo() {
			b.Fatal("the keys are not at the same version")
		}
		if s.cutOver.After(cutOver) {
			cutOver = s.cutOver
		}
	}
	published, took = fleet.hold(b, seen[0].rotation.GetTo())
	return published, took, cutOver
}

// startThree starts three servers on one PostgreSQL.
func startThree(b *testing.B, count int) []*world {
	b.Helper()
	data, _ := postgresStore(b)
	drivers := map[string]provider.Driver{"instant": &instant{accepted: map[string]bool{}}}
	var servers []*world
	for i := range 3 {
		config := server.Config{
			DataDir: filepath.Join(b.TempDir(), fmt.Sprint("data-", i)),
			Store:   data,
			// Two of them take all, and all share one token and one address.
			Limits: server.LimitsConfig{Parties: count/2 + 1000, ConnectionsPerAddress: count + 1000, StreamsPerToken: count/2 + 1000, PerSecond: 1_000_000, Burst: 1_000_000},
		}
		if i > 0 {
			shareKeys(b, filepath.Dir(servers[0].caFile), config.DataDir)
		}
		servers = append(servers, startServer(b, config, drivers))
	}
	documents := strings.Split(deliveryPolicy, "---\n")[0]
	for i := range threeKeys {
		documents += fmt.Sprintf("---\napiVersion: keyturn/v1\nkind: Key\nmetadata: {name: %s%d}\nspec: {provider: instant, policy: fleet}\n", threePrefix, i)
	}
	servers[0].apply(b, documents)
	for i := range threeKeys {
		servers[0].rotateKey(b, fmt.Sprint(threePrefix, i), time.Minute)
	}
	return servers
}

// shareKeys gives another server the keys of the first one.
func shareKeys(b *testing.B, from, to string) {
	b.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"kek.json", "audit.key", "ca.pem", "ca.key", "root.token"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			b.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if name == "ca.pem" {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(to, name), data, mode); err != nil {
			b.Fatal(err)
		}
	}
}
