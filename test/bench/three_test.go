//go:build soak

package bench

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/server/servertest"
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
// and stops a server: its agents go to the other two. Servers and agents are
// processes of their own. KEYTURN_BENCH_AGENTS is another number of agents. It wants
// 16 GiB of memory. Where a process may not open files enough for half of the agents,
// as many agents as that are too many end before the server is stopped.
func BenchmarkThreeServers(b *testing.B) {
	count := threeAgents
	if other := os.Getenv("KEYTURN_BENCH_AGENTS"); other != "" {
		n, err := strconv.Atoi(other)
		if err != nil || n < threeKeys || n%threeKeys != 0 {
			b.Fatalf("KEYTURN_BENCH_AGENTS: %q is no number that %d processes can share", other, threeKeys)
		}
		count = n
	}
	servers := startThree(b, count)
	first := servers[0]
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, s.address)
	}
	all := orders{Address: strings.Join(addresses, ","), CAFile: first.caFile, Token: first.token, Key: threePrefix + "%d", Count: count}
	before := mebibytes(b, servers)
	fleet, joined := startAgents(b, roleKeyturn, all, threeKeys)
	b.Logf("%d agents are connected after %v; %.1f KiB each at the servers", count, joined.Round(time.Millisecond), (mebibytes(b, servers)-before)*1024/float64(count))
	var p99, durable []time.Duration
	for n := range publications {
		published, took, cutOver := publishAll(b, first, fleet)
		if n > 0 { // the first warmed the caches
			p99 = append(p99, quantile(took, 0.99))
			durable = append(durable, cutOver.Sub(published))
		}
	}
	b.Logf("a version is at all: p99 %v, acknowledgements durable after %v", median(p99), median(durable))

	for count/2+spareFiles > filesOfAProcess(b) {
		fleet.end(1)
		count -= fleet.each
	}
	fleet.wait(b, time.Minute, func(now connections) bool { return now.Connected == count })
	was := fleet.total()
	stopped := time.Now()
	servers[2].stop()
	fleet.wait(b, 5*time.Minute, func(now connections) bool { return now.Connected == count && now.Streams > was.Streams })
	now := fleet.total()
	b.Logf("a server of %d agents is stopped: its %d are at the others after %v, with %d failed tries, of which users were told %d",
		count, now.Streams-was.Streams, fleet.settled().Sub(stopped).Round(time.Millisecond), now.Failures-was.Failures, now.Errors-was.Errors)
	if now.Permanent != 0 || now.Polling != 0 || now.Errors != was.Errors {
		b.Errorf("after the stop: %+v", now)
	}
	_, took, _ := publishAll(b, first, fleet)
	b.Logf("two servers: p99 %v", quantile(took, 0.99))
}

// spareFiles are those that a server opens beside one for each agent, and the
// difference that chance makes.
const spareFiles = 1500

func filesOfAProcess(b *testing.B) int {
	b.Helper()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		b.Fatal(err)
	}
	return int(min(files.Max, math.MaxInt32))
}

// mebibytes is the memory of all servers.
func mebibytes(b *testing.B, servers []*world) (sum float64) {
	b.Helper()
	for _, s := range servers {
		mib, err := resident(s.pid)
		if err != nil {
			b.Fatal(err)
		}
		sum += mib
	}
	return sum
}

// publishAll rotates every key at once that agents present.
func publishAll(b *testing.B, w *world, fleet *agents) (published time.Time, took []time.Duration, cutOver time.Time) {
	b.Helper()
	seen := make([]rotated, len(fleet.children))
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
	accepted := b.TempDir()
	var servers []*world
	for i := range 3 {
		config := server.Config{
			DataDir: filepath.Join(b.TempDir(), fmt.Sprint("data-", i)),
			Store:   data,
			// Two of them take all, and all share one token and one address.
			Limits: server.LimitsConfig{Parties: count/2 + 1000, ConnectionsPerAddress: count + 1000, StreamsPerToken: count/2 + 1000, PerSecond: 1_000_000, Burst: 1_000_000},
		}
		if i > 0 {
			servertest.CopyKeys(b, filepath.Dir(servers[0].caFile), config.DataDir)
		}
		servers = append(servers, startServerProcess(b, serverOrders{Config: config, Accepted: accepted}))
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
