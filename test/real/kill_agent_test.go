package real

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/agent"
	"github.com/keyturn/keyturn/internal/agent/lkg"
)

const (
	// agentVariable holds the path of an agent's configuration.
	agentVariable = "KEYTURN_TEST_AGENT"
	// supervisorSocket is the file descriptor on which a supervised child gives
	// its listener away.
	supervisorSocket = 3
)

// childAgent runs an agent until SIGTERM, as keyturn agent does.
func childAgent(path string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := superviseMe(supervisorSocket)
	if err == nil {
		var config agent.Config
		if config, err = agent.LoadConfig(path); err == nil {
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
			err = agent.Run(ctx, config, agent.Deps{Logger: log, Dumpable: true})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// supervised is a process whose system calls wait for a supervisor.
type supervised struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// supervise starts this program with a variable in its environment.
func supervise(t *testing.T, s *supervisor, stderr io.Writer, variable string) *supervised {
	t.Helper()
	socket, child := socketPair(t)
	p := &supervised{done: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	p.cmd.Env = append(os.Environ(), variable)
	p.cmd.Stderr, p.cmd.ExtraFiles = stderr, []*os.File{child}
	p.cmd.WaitDelay = time.Second // a command of a killed agent may hold the pipe
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child.Close()
	listener, err := receive(socket)
	if err != nil {
		t.Fatalf("the kernel gives no listener; it must be Linux 5.7 or newer: %v", err)
	}
	_ = syscall.Close(socket) // it has served
	go s.run(listener)
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // most are killed
	}()
	t.Cleanup(func() { p.kill() })
	return p
}

// kill is SIGKILL; it returns when the process is gone.
func (p *supervised) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// front stands between an agent and its server.
type front struct {
	*httptest.Server
	// away: nothing is let through.
	away atomic.Bool

	mu sync.Mutex
	// hold stops the next acknowledgement: holdBefore or holdAfter the server had it.
	hold    string
	reached chan struct{}
}

const (
	holdBefore = "before the server has the acknowledgement"
	holdAfter  = "before the agent hears that the server has it"
)

func newFront(t *testing.T, w *world) *front {
	t.Helper()
	to, err := url.Parse(w.address())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: true}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: transport, FlushInterval: -1, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	f := &front{reached: make(chan struct{}, 1)}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if f.away.Load() {
			panic(http.ErrAbortHandler)
		}
		hold := ""
		if strings.HasSuffix(r.URL.Path, "/Ack") {
			f.mu.Lock()
			hold, f.hold = f.hold, ""
			f.mu.Unlock()
		}
		if hold == "" {
			proxy.ServeHTTP(out, r)
			return
		}
		if hold == holdAfter {
			proxy.ServeHTTP(httptest.NewRecorder(), r)
		}
		f.reached <- struct{}{}
		<-r.Context().Done() // the agent is killed
	}))
	f.EnableHTTP2 = true
	f.Config.ErrorLog = proxy.ErrorLog
	f.StartTLS()
	t.Cleanup(func() { f.CloseClientConnections(); f.Close(); transport.CloseIdleConnections() })
	return f
}

func (f *front) holdAck(hold string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold = hold
}

// mortalAgent is an agent as a process that is killed and started again, before a
// real application.
type mortalAgent struct {
	*agentApp
	w        *world
	front    *front
	calls    *supervisor
	process  *supervised
	watching atomic.Bool
	// health is where the application says whether it is well.
	health string
}

const mortalID = "agent-0"

func newMortalAgent(t *testing.T, health string) *mortalAgent {
	t.Helper()
	w := newWorld(t, vary(t, "ackTimeout: 5s", "ackTimeout: 60s"))
	w.first(t)
	m := &mortalAgent{
		agentApp: &agentApp{id: mortalID, dir: filepath.Join(t.TempDir(), "files"), logs: &logBuffer{}}, w: w, front: newFront(t, w),
		calls: &supervisor{names: temporaries("db.json", "last-known-good", "switching.json")},
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.health = "http://" + m.startApplication(t, w) + "/"
	if health == "" {
		health = fmt.Sprintf("http: '%s', retries: 300", m.health)
	}
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{
		Name: m.id, Role: "join", Keys: []string{"prod/**"},
		Party: &keyturnv1.Party{Id: m.id, Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT, Region: "eu", Labels: map[string]string{"cohort": "canary"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	join, authority := filepath.Join(m.dir, "join.token"), filepath.Join(m.dir, "front.pem")
	text := fmt.Sprintf(agentConfig, m.front.URL, authority, join, m.state(), m.id, "eu", "canary", m.file(), m.pidFile(), strings.ReplaceAll(health, "DIR", m.dir))
	// Samples would be calls that belong to no change.
	text = strings.Replace(text, "sample: {every: 500ms}", "sample: {every: 1h, then: 1h}", 1)
	m.write(t, "agent.yaml", text)
	m.write(t, "join.token", token.GetToken()+"\n")
	m.write(t, "front.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.front.Certificate().Raw})))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of the agent:\n%s", m.logs.tail(4000))
		}
	})
	m.startProcess(t)
	w.settled(t, m.id, 1)
	m.watch(t)
	return m
}

func (m *mortalAgent) state() string { return filepath.Join(m.dir, "state") }

func (m *mortalAgent) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m *mortalAgent) startProcess(t *testing.T) {
	t.Helper()
	m.process = supervise(t, m.calls, m.logs, agentVariable+"="+filepath.Join(m.dir, "agent.yaml"))
}

// version is the one in the file, which must be wholly of one version and private.
func (m *mortalAgent) version(t *testing.T) uint64 {
	t.Helper()
	info, err := os.Stat(m.file())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	file, err := readAppFile(m.file())
	if err != nil {
		t.Errorf("the file cannot be read: %v", err)
	}
	m.w.tap.mu.Lock()
	defer m.w.tap.mu.Unlock()
	for _, v := range m.w.tap.minted {
		if v.Material.Attributes["username"] == file.Username && v.Material.Secrets["password"].RevealString() == file.Password {
			return uint64(v.Number)
		}
	}
	t.Errorf("the file has user %s with a password of no version", file.Username)
	return 0
}

// watch looks at the file all the time.
func (m *mortalAgent) watch(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	m.watching.Store(true)
	var running sync.WaitGroup
	looks := 0
	running.Go(func() {
		for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil && !t.Failed(); <-tick.C {
			if m.watching.Load() {
				m.version(t)
				looks++
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		t.Logf("the file was looked at %d times", looks)
	})
}

// using is the version that the server believes the agent to use.
func (m *mortalAgent) using(t *testing.T) uint64 {
	t.Helper()
	response, err := m.w.control.ListParties(t.Context(), &keyturnv1.ListPartiesRequest{Key: keyName})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range response.GetParties() {
		if p.GetParty().GetId() == m.id && len(p.GetKeys()) == 1 {
			return p.GetKeys()[0].GetUsing()
		}
	}
	t.Fatalf("the server does not know %s", m.id)
	return 0
}

// tidy fails the test if anything was left beside the files.
func (m *mortalAgent) tidy(t *testing.T) {
	t.Helper()
	for _, dir := range []string{m.dir, m.state()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".keyturn-") || e.Name() == "switching.json" {
				t.Errorf("%s was left in %s", e.Name(), dir)
			}
		}
	}
}

// well waits until the application uses what is in the file, and can log in with it.
func (m *mortalAgent) well(t *testing.T) {
	t.Helper()
	eventually(t, "the application uses what is in the file", func() bool {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.health, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// moment is a system call of a change: the nth such call.
type moment struct {
	call call
	nth  int
}

func (m moment) String() string { return fmt.Sprintf("%v (%d)", m.call, m.nth) }

// moments are the calls of one undisturbed change.
func (m *mortalAgent) moments(t *testing.T, end string) []moment {
	t.Helper()
	var (
		mu   sync.Mutex
		seen []call
	)
	m.calls.look(func(c call) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, c)
	})
	m.w.finish(t, m.w.rotate(t, &keyturnv1.RotateRequest{Reason: "what an agent does"}), end)
	m.calls.look(nil)
	mu.Lock()
	defer mu.Unlock()
	count := map[call]int{}
	var all []moment
	for _, c := range seen {
		count[c]++
		// How often a health check is tried is a matter of chance.
		if c.what != "connect" || count[c] == 1 {
			all = append(all, moment{c, count[c]})
		}
	}
	t.Logf("a change makes %d calls: %v", len(all), all)
	return all
}

// killAt kills the agent just before a call, once. The channel is closed then.
func (m *mortalAgent) killAt(at moment) <-chan struct{} {
	killed := make(chan struct{})
	left := at.nth
	process := m.process
	m.calls.look(func(c call) {
		if c != at.call {
			return
		}
		if left--; left != 0 {
			return
		}
		process.kill() // it is gone before its call could be let through
		close(killed)
	})
	return killed
}

// offline starts the agent while it cannot reach the server: what it has is
// served. Then the server is back.
func (m *mortalAgent) offline(t *testing.T, want uint64) {
	t.Helper()
	m.front.away.Store(true)
	before := strings.Count(m.logs.String(), "the agent watches")
	m.startProcess(t)
	eventually(t, "the agent has started", func() bool { return strings.Count(m.logs.String(), "the agent watches") > before })
	if now := m.version(t); now != want {
		t.Errorf("without the server version %d is served, want the last known good, %d", now, want)
	}
	m.well(t)
	m.tidy(t)
	m.front.away.Store(false)
}

// part takes every nth, all of them in the long run.
func part[T any](all []T, nth int) []T {
	if soaking {
		return all
	}
	var some []T
	for i := nth / 2; i < len(all); i += nth {
		some = append(some, all[i])
	}
	return some
}

// TestAgentKilledAtEveryCall kills the agent before each of the system calls with
// which it takes a version into use, and around its acknowledgement. The next
// start ends where no kill would have, and no application notices.
func TestAgentKilledAtEveryCall(t *testing.T) {
	t.Parallel()
	m := newMortalAgent(t, "")
	all := m.moments(t, "done")
	n := uint64(2)
	for i, at := range part(all, 5) {
		m.w.settled(t, m.id, n)
		killed := m.killAt(at)
		n++
		m.killed(t, at.String(), n, killed, false, i%2 == 0)
	}
	for _, hold := range []string{holdBefore, holdAfter} {
		m.w.settled(t, m.id, n)
		m.front.holdAck(hold)
		n++
		m.killed(t, hold, n, m.front.reached, hold == holdAfter, true)
	}
	if soaking {
		m.atRandom(t, n)
	}
}

// killed rotates to version n, waits until the agent was or is to be killed, and
// starts it again. acknowledged says whether the server had heard of its success.
func (m *mortalAgent) killed(t *testing.T, at string, n uint64, killed <-chan struct{}, acknowledged, offline bool) {
	t.Helper()
	begun := time.Now()
	id := m.w.rotate(t, &keyturnv1.RotateRequest{Reason: "an agent is killed at " + at})
	await(t, at, killed)
	m.process.kill()
	m.calls.look(nil)
	found := m.version(t)
	if found != n && found != n-1 {
		t.Errorf("version %d is in the file, want %d or %d", found, n-1, n)
	}
	// Before the acknowledgement it is not known what an agent uses that was told.
	if now := m.using(t); (now == n) != acknowledged {
		t.Errorf("the server believes that version %d is used; acknowledged was version %d: %v", now, n, acknowledged)
	}
	saved := m.saved(t)
	if offline {
		m.offline(t, saved)
	} else {
		m.startProcess(t)
	}
	m.w.finish(t, id, "done")
	m.same(t, n)
	t.Logf("killed at %s with version %d in the file and %d saved; it took %v", at, found, saved, time.Since(begun).Round(time.Millisecond))
	if t.Failed() {
		t.Fatalf("this was the kill at %s\n%s", at, m.w.timeline(t, id))
	}
}

// same fails the test unless all is as after n versions without any kill.
func (m *mortalAgent) same(t *testing.T, n uint64) {
	t.Helper()
	m.w.settled(t, m.id, n)
	if now := m.version(t); now != n {
		t.Errorf("version %d is in the file, want %d", now, n)
	}
	if now := m.w.current(t); now != n {
		t.Errorf("version %d is current, want %d", now, n)
	}
	m.well(t)
	m.tidy(t)
}

// saved is the version of the last known good state.
func (m *mortalAgent) saved(t *testing.T) uint64 {
	t.Helper()
	store, err := lkg.Open(m.state()) // nobody else has it
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	saved, err := store.Load(lkg.Binding(m.id, m.front.URL))
	if err != nil || len(saved) != 1 {
		t.Fatalf("the last known good state: %d keys, %v", len(saved), err)
	}
	return uint64(saved[0].Version)
}

// atRandom kills at moments that are no system calls.
func (m *mortalAgent) atRandom(t *testing.T, n uint64) {
	t.Helper()
	for range 40 {
		m.w.settled(t, m.id, n)
		killed := make(chan struct{})
		after := rand.N(30 * time.Millisecond)
		process := m.process
		m.calls.look(func() func(call) {
			var once sync.Once
			return func(call) {
				once.Do(func() {
					time.AfterFunc(after, func() { _ = process.cmd.Process.Kill(); close(killed) })
				})
			}
		}())
		n++
		id := m.w.rotate(t, &keyturnv1.RotateRequest{Reason: "an agent is killed at some moment"})
		await(t, "some moment", killed)
		m.process.kill()
		m.calls.look(nil)
		m.startProcess(t)
		m.w.finish(t, id, "done")
		m.same(t, n)
		if t.Failed() {
			t.Fatalf("this was the kill %v after the first call\n%s", after, m.w.timeline(t, id))
		}
	}
}

// TestAgentKilledWhileItRestores kills the agent during a health check that will
// fail, and at each call with which it restores the old version. The rotation is
// rolled back all the same, and the application goes on with the old version.
func TestAgentKilledWhileItRestores(t *testing.T) {
	t.Parallel()
	// orders_b is the user of every version that follows the first; the file that
	// the check makes is a call at which the agent can be killed in mid-check.
	m := newMortalAgent(t, "command: [/bin/sh, -c, ': > DIR/checked; ! grep -q orders_b DIR/db.json'], retries: 1")
	all := m.moments(t, "rolled-back")
	checked := slices.IndexFunc(all, func(at moment) bool { return at.call.to == "checked" })
	if checked < 0 {
		t.Fatal("there was no health check")
	}
	n := uint64(2)
	for i, at := range part(all[checked:], 8) {
		m.w.settled(t, m.id, 1)
		n++
		killed := m.killAt(at)
		id := m.w.rotate(t, &keyturnv1.RotateRequest{Reason: "an agent is killed at " + at.String()})
		await(t, at.String(), killed)
		m.process.kill()
		m.calls.look(nil)
		found := m.version(t)
		if found != 1 && found != n {
			t.Errorf("version %d is in the file, want 1 or %d", found, n)
		}
		if now := m.using(t); now == n {
			t.Errorf("the server believes that version %d is used", now)
		}
		if i%2 == 0 {
			m.offline(t, 1)
		} else {
			m.startProcess(t)
		}
		r := m.w.finish(t, id, "rolled-back")
		says(t, "the reason", r.GetReason(), "stage canary failed", m.id, "unhealthy")
		m.same(t, 1)
		m.w.mustAccept(t, 1)
		t.Logf("killed at %v with version %d in the file", at, found)
		if t.Failed() {
			t.Fatalf("this was the kill at %v\n%s", at, m.w.timeline(t, id))
		}
	}
	m.recovers(t)
}

// recovers starts the agent while the server is down and the file is gone.
func (m *mortalAgent) recovers(t *testing.T) {
	t.Helper()
	m.watching.Store(false)
	m.process.kill()
	if err := os.Remove(m.file()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.file()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	m.offline(t, 1)
}
