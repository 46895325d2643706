package real

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/server/servertest"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// takenOver is within what time another server carries out what one that died
// had begun: its lease, a poll, and what this machine may add.
const takenOver = 15 * time.Second

// oneServer is one of several servers, a process of its own.
type oneServer struct {
	*world
	process *child
}

// cluster is several servers on one PostgreSQL store, beside the pair whose
// credential they rotate.
type cluster struct {
	*world
	database *pgserver.Server
	nodes    []*oneServer
}

// onPostgres makes the world's server keep its data in a PostgreSQL of its own.
func (w *world) onPostgres(t *testing.T, config pgserver.Config) *pgserver.Server {
	t.Helper()
	database := pgtest.Start(t, config)
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	password := filepath.Join(w.dir, "store.password")
	if err := os.WriteFile(password, []byte(database.Password()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.config.Store.Postgres = &server.PostgresConfig{URL: database.URL(pgserver.Superuser, "", "keyturn"), PasswordFile: password}
	return database
}

// newCluster starts n servers and brings in the key's first version.
func newCluster(t *testing.T, n int, policy string) *cluster {
	t.Helper()
	c := &cluster{world: newSystems(t)}
	c.database = c.onPostgres(t, pgserver.Config{})
	var addresses []string
	for i := range n {
		w := *c.world
		w.logs = &logBuffer{}
		w.config.DataDir = filepath.Join(c.dir, fmt.Sprint("data-", i))
		if i > 0 {
			servertest.CopyKeys(t, c.nodes[0].config.DataDir, w.config.DataDir)
		}
		one := &oneServer{world: &w}
		c.nodes = append(c.nodes, one)
		one.process = one.startChild(t, childConfig{})
		addresses = append(addresses, one.address())
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the end of the log of server %d:\n%s", i, one.logs.tail(4000))
			}
		})
	}
	c.addresses = strings.Join(addresses, ",")
	c.use(c.nodes[0])
	c.apply(t, policy+"---\n"+c.keyDocument(c.primary.Addr()))
	c.first(t)
	return c
}

// use makes the test speak to a node.
func (c *cluster) use(n *oneServer) {
	c.config, c.control, c.client, c.roots, c.token = n.config, n.control, n.client, n.roots, n.token
}

// standing makes every node stand still at a point, and returns the one that
// comes there, once the rotation that begin begins has brought it there. The
// others will pass.
func (c *cluster) standing(t *testing.T, at stop, begin func() string) (first *oneServer, id string) {
	t.Helper()
	for _, n := range c.nodes {
		n.process.stopAt(t, at)
	}
	id = begin()
	eventually(t, fmt.Sprintf("a server comes to %+v", at), func() bool {
		for _, n := range c.nodes {
			select {
			case <-n.process.reached:
				first = n
			default:
			}
		}
		return first != nil
	})
	for _, n := range c.nodes {
		if n != first {
			n.process.stopAt(t, stop{Op: "nowhere"})
			c.use(n)
		}
	}
	return first, id
}

// fences fails the test unless the target was changed under fences that never
// went back.
func (c *cluster) fences(t *testing.T) {
	t.Helper()
	log, err := os.ReadFile(c.primary.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]uint64{}
	for _, match := range regexp.MustCompile(`COMMENT ON ROLE "?(\w+)"? .*"fence":(\d+)`).FindAllStringSubmatch(string(log), -1) {
		fence, err := strconv.ParseUint(match[2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if fence < last[match[1]] {
			t.Errorf("role %s was changed under fence %d after %d", match[1], fence, last[match[1]])
		}
		last[match[1]] = fence
	}
	if len(last) != 2 {
		t.Errorf("the log tells of changes of %v", last)
	}
}

// ended fails the test unless the rotation ended with version n everywhere, and
// the version before refused.
func (c *cluster) ended(t *testing.T, id string, n uint64) {
	t.Helper()
	c.finish(t, id, "done")
	k := c.key(t)
	if k.GetCurrent() != n || len(k.GetVersions()) != int(n) || len(k.GetRotationIds()) != 0 {
		t.Errorf("current is %d of %d versions, %d rotations are open; want %d of %d, and none", k.GetCurrent(), len(k.GetVersions()), len(k.GetRotationIds()), n, n)
	}
	c.mustRefuse(t, key.Version(n-1))
	c.mustAccept(t, key.Version(n))
	c.healthy(t)
}

// TestServersDieUnderLoad: three servers share a store. The one that is in the
// middle of an effect is killed, or frozen for longer than its lease: another one
// carries the effect out within seconds, under a new fence. What the frozen one
// does and says late is refused, by the target and by the store. Parties connected
// to it go to another one; no application notices.
func TestServersDieUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quickPolicy)
	l := c.fleet(t, 3)
	file := c.agentApp(t, "file-app", "rest", "eu", "")
	c.use(c.nodes[0])
	n := uint64(1)
	begin := func(reason string) func() string {
		n++
		return func() string { return c.rotate(t, &keyturnv1.RotateRequest{Reason: reason}) }
	}

	// Nothing is done twice while all live, whoever does it.
	set := c.changes(t).accepted
	for range 3 {
		id := begin("three servers")()
		c.ended(t, id, n)
	}
	if times := c.changes(t).accepted - set; times != 3 {
		t.Errorf("3 rotations set a password %d times", times)
	}

	for _, at := range []stop{
		{Op: "accept", Endpoint: "primary", After: true},
		{Op: "refuse", Endpoint: "primary"},
	} {
		at.Version = n + 1
		if at.Op == "refuse" {
			at.Version = n
		}
		dead, id := c.standing(t, at, begin("its server is killed"))
		dead.process.kill(t)
		killed := time.Now()
		c.ended(t, id, n)
		if took := time.Since(killed); took > takenOver {
			t.Errorf("killed at %s: the rotation ended %v later", at.Op, took)
		}
		t.Logf("killed at %s, after: %v; ended %v later", at.Op, at.After, time.Since(killed).Round(time.Millisecond))
		dead.process = dead.startChild(t, childConfig{})
	}

	before := stop{Op: "accept", Endpoint: "primary", Version: n + 1, Deaf: true}
	frozen, id := c.standing(t, before, begin("its server is frozen"))
	frozen.process.signal(t, syscall.SIGSTOP)
	stopped := time.Now()
	c.ended(t, id, n)
	t.Logf("frozen before accept; ended %v later", time.Since(stopped).Round(time.Millisecond))
	// Its call goes on where it stood, in the middle of the next rotation.
	all := c.nodes
	c.nodes = slices.DeleteFunc(slices.Clone(all), func(n *oneServer) bool { return n == frozen })
	after := stop{Op: "accept", Endpoint: "primary", Version: n + 1, After: true, Deaf: true}
	_, next := c.standing(t, after, begin("the frozen server is back"))
	frozen.process.signal(t, syscall.SIGCONT)
	frozen.process.stopAt(t, release)
	eventually(t, "the late call is refused by the target, and its result by the store", func() bool {
		log := frozen.logs.String()
		return strings.Contains(log, "fencing token") && strings.Contains(log, "lease lost")
	})
	c.release(t)
	c.nodes = all
	c.ended(t, next, n)
	c.fences(t)
	c.verifies(t)
	l.check(t)
	if logs := file.logs.String(); strings.Contains(logs, "level=ERROR") {
		t.Errorf("the agent's log has errors:\n%s", logs)
	}
}

// release lets whichever node stands go on.
func (c *cluster) release(t *testing.T) {
	t.Helper()
	for _, n := range c.nodes {
		n.process.stopAt(t, release)
	}
}

// verifies fails the test unless the audit log is whole and signed, as any node
// shows it.
func (c *cluster) verifies(t *testing.T) {
	t.Helper()
	for _, n := range c.nodes {
		c.use(n)
		c.healthy(t)
		c.verified(t)
	}
}

func (c *child) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}
