package real

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/agent"
)

// agentApp is an application as a process of its own, served by an agent that
// joined with a one-time token.
type agentApp struct {
	id, dir string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	config  agent.Config
	logs    *logBuffer
	stop    func(*testing.T)
	// joinToken is the one-time token it joined with.
	joinToken string
	// result is what the application saw, once it has ended.
	result *appResult
}

// file is the path of what the agent renders.
func (a *agentApp) file() string { return filepath.Join(a.dir, "db.json") }

// agentConfig is what an operator writes.
const agentConfig = `
server: %s
caFile: %s
joinTokenFile: %s
stateDir: %s
party: {id: %s, region: %s, labels: {cohort: %s}}
targets:
  - name: db
    path: %s
    template: '{"username": {{ (key "prod/orders/db").username | json }}, "password": {{ (key "prod/orders/db").password | json }}}'
    reload: {signal: {name: HUP, pidFile: %s}}
    health: {%s, interval: 100ms, timeout: 30s, sample: {every: 500ms}}
`

// agentApp starts an application and its agent. health replaces the check of the
// application's own health, if it is not empty; FILE in it is the path of the
// file. What the application saw fails
// the test at its end, if any of it failed.
func (w *world) agentApp(t *testing.T, id, cohort, region, health string) *agentApp {
	t.Helper()
	a := &agentApp{id: id, dir: t.TempDir(), logs: &logBuffer{}}
	address := a.startApplication(t, w)
	if health == "" {
		health = fmt.Sprintf("http: 'http://%s/', retries: 300", address)
	}
	token, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{
		Name: id, Role: "join", Keys: []string{"prod/**"},
		Party: &keyturnv1.Party{Id: id, Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT, Region: region, Labels: map[string]string{"cohort": cohort}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.joinToken = token.GetToken()
	join := filepath.Join(a.dir, "join.token")
	if err := os.WriteFile(join, []byte(token.GetToken()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(agentConfig, w.known(), w.caFile(), join, filepath.Join(a.dir, "state"), id, region, cohort, a.file(), a.pidFile(),
		strings.ReplaceAll(health, "FILE", a.file()))
	if a.config, err = agent.ParseConfig("agent.yaml", []byte(text)); err != nil {
		t.Fatal(err)
	}
	a.startAgent(t)
	t.Cleanup(func() {
		a.stop(t)
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", id, a.logs.tail(2000))
		}
	})
	return a
}

func (a *agentApp) pidFile() string { return filepath.Join(a.dir, "app.pid") }

// startApplication starts the process and returns the address of its health check.
func (a *agentApp) startApplication(t *testing.T, w *world) string {
	t.Helper()
	servers, err := json.Marshal([]string{w.primary.Addr(), w.standby.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	a.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	a.cmd.Env = append(os.Environ(), appVariable+"="+a.file(), serversVariable+"="+string(servers))
	a.cmd.Stderr = os.Stderr
	if a.stdin, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.stdout = bufio.NewReader(stdout)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.endApplication(t) })
	address, err := a.stdout.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.pidFile(), []byte(strconv.Itoa(a.cmd.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return address[:len(address)-1]
}

// endApplication ends the process, if it runs, and fails the test for what
// failed there.
func (a *agentApp) endApplication(t *testing.T) {
	t.Helper()
	if a.result != nil {
		return
	}
	_ = a.stdin.Close() // that is the sign to end
	var result appResult
	a.result = &result
	if err := json.NewDecoder(a.stdout).Decode(&result); err != nil {
		t.Errorf("%s: its result: %v", a.id, err)
	}
	if err := a.cmd.Wait(); err != nil {
		t.Errorf("%s: %v", a.id, err)
	}
	t.Logf("%s: %d queries, %d failures, %d reloads", a.id, result.Queries, result.Failures, result.Reloads)
	if result.Queries == 0 || result.Failures > 0 {
		t.Errorf("%s: %d queries, of which failed %d: %v", a.id, result.Queries, result.Failures, result.Errors)
	}
}

// startAgent runs the agent until a.stop is called.
func (a *agentApp) startAgent(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, a.config, agent.Deps{
			Logger: slog.New(slog.NewTextHandler(a.logs, &slog.HandlerOptions{Level: slog.LevelDebug})), Dumpable: true,
		})
	}()
	a.stop = func(t *testing.T) {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent %s: %v", a.id, err)
		}
		a.stop = func(*testing.T) {}
	}
}

// rotations is how many rotations a long run has.
func rotations() int {
	if testing.Short() {
		return 8
	}
	return 50
}

// TestRotateUnderLoad rotates under continuous load from agents and SDK clients
// in three cohorts: no log-in and no query may fail.
func TestRotateUnderLoad(t *testing.T) {
	w := newWorld(t, quickPolicy)
	w.first(t)
	const parties, agents = 10, 4
	l := &load{}
	for i := range parties {
		// The agents are in all cohorts: 0, 3, 6 and 9 of 10.
		if i%3 == 0 {
			w.agentApp(t, fmt.Sprintf("agent-%d", i), cohort(i, parties), region(i), "")
		} else {
			w.application(t, l, fmt.Sprintf("app-%d", i), cohort(i, parties), region(i))
		}
	}
	for i := range parties {
		if i%3 == 0 {
			w.settled(t, fmt.Sprintf("agent-%d", i), 1)
		}
	}
	started := time.Now()
	phases := map[string]time.Duration{}
	for n := range rotations() {
		id := w.rotate(t, &keyturnv1.RotateRequest{Reason: fmt.Sprintf("rotation %d under load", n)})
		w.finish(t, id, "done")
		w.addPhases(t, id, phases)
	}
	took := time.Since(started)
	t.Logf("%d rotations in %v, of which were spent", rotations(), took.Round(time.Millisecond))
	for phase, sum := range phases {
		t.Logf("  %-12s %8v each", phase, (sum / time.Duration(rotations())).Round(time.Millisecond))
	}
	if now := w.current(t); now != uint64(rotations())+1 {
		t.Errorf("version %d is current after %d rotations", now, rotations())
	}
	l.check(t)
	w.healthy(t)
}

// addPhases adds how long a rotation was in each phase.
func (w *world) addPhases(t *testing.T, id string, sums map[string]time.Duration) {
	t.Helper()
	response, err := w.control.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	phase, since := "", time.Time{}
	for _, entry := range response.GetTimeline() {
		if entry.GetEvent() != "rotation.phase" {
			continue
		}
		if !since.IsZero() {
			sums[phase] += entry.GetAt().AsTime().Sub(since)
		}
		phase = entry.GetMessage()
		if _, to, found := strings.Cut(phase, "→ "); found {
			phase = to
		}
		since = entry.GetAt().AsTime()
	}
}

// TestAgentRestoresItsFile: the agent's health check says that the application
// is not well with the new version. The agent puts the old file back, the
// rotation is rolled back by itself, and says why.
func TestAgentRestoresItsFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := &load{}
	w.application(t, l, "app-1", "rest", "us")
	// orders_b is the user of version 2.
	a := w.agentApp(t, "agent-0", "canary", "eu", "command: [/bin/sh, -c, '! grep -q orders_b FILE'], retries: 1")
	w.settled(t, "agent-0", 1)
	before, err := readAppFile(a.file())
	if err != nil {
		t.Fatal(err)
	}

	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "an application that is not well"})
	r := w.finish(t, id, "rolled-back")
	says(t, "the reason", r.GetReason(), "stage canary failed", "agent-0", "unhealthy")
	says(t, "the timeline", w.timeline(t, id), "rolling-back", "agent-0")
	after, err := readAppFile(a.file())
	if err != nil || after != before {
		t.Errorf("the file was not put back: user %s, %v", after.Username, err)
	}
	w.settled(t, "agent-0", 1)
	w.mustAccept(t, 1)
	w.mustRefuse(t, 2)
	l.check(t)
}
