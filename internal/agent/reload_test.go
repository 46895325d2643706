package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
	"github.com/keyturn/keyturn/internal/agent"
	"github.com/keyturn/keyturn/internal/agent/run"
)

// victim is an agent that is killed: it runs until then.
func victim(path string) {
	config, err := agent.LoadConfig(path)
	if err == nil {
		err = agent.Run(context.Background(), config, agent.Eager(agent.Deps{}, time.Hour))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// reloads is a reload command that hangs, with a child, at the versions for which a
// file hang-USER exists. It notes what it does, as the health check does.
type reloads struct{ dir string }

func (r reloads) path(name string) string { return filepath.Join(r.dir, name) }

func (r reloads) command() []string {
	return []string{"/bin/sh", "-c", `
		cd ` + r.dir + `; user=$(cut -d' ' -f1 "$KEYTURN_PATH"); echo "$user begun" >> journal
		if [ -e "hang-$user" ]; then
			sleep 600 & echo $$ $! > pids.tmp; mv pids.tmp pids; wait
		fi
		echo "$user told" >> journal`}
}

func (r reloads) check() []string {
	return []string{"/bin/sh", "-c", `cd ` + r.dir + `; echo "$(cut -d' ' -f1 "$KEYTURN_PATH") checked" >> journal`}
}

func (r reloads) hangAt(t *testing.T, user string) {
	t.Helper()
	if err := os.WriteFile(r.path("hang-"+user), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r reloads) letGo(t *testing.T, user string) {
	t.Helper()
	if err := errors.Join(os.Remove(r.path("hang-"+user)), os.Remove(r.path("pids"))); err != nil {
		t.Fatal(err)
	}
}

// hanging waits until the command hangs and returns its process, a group's first,
// and its child.
func (r reloads) hanging(t *testing.T) (leader, child int) {
	t.Helper()
	eventually(t, "the reload command hangs", func() bool {
		text, err := os.ReadFile(r.path("pids"))
		if err == nil {
			_, err = fmt.Sscan(string(text), &leader, &child)
		}
		return err == nil
	})
	return leader, child
}

// did fails the test unless this and nothing else was done since the last call.
func (r reloads) did(t *testing.T, want ...string) {
	t.Helper()
	text, err := os.ReadFile(r.path("journal"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSpace(string(text)), "\n"); !slices.Equal(got, want) {
		t.Errorf("what was done: %q, want %q", got, want)
	}
	if err := os.Remove(r.path("journal")); err != nil {
		t.Fatal(err)
	}
}

// wantGone fails the test if a process goes on.
func wantGone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprint("process ", pid, " has ended"), func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// TestReloadIsInterrupted: a reload command that is killed half way, or hangs until
// its limit, leaves nothing of itself running; the old file is back and the
// application has been told of it. A version counts as used once the command has
// succeeded and the health check has passed, not before.
func TestReloadIsInterrupted(t *testing.T) {
	t.Parallel()
	r := reloads{t.TempDir()}
	target := dbTarget(r.dir)
	target.Reload = agent.Reload{Command: r.command(), Timeout: time.Minute}
	target.Health = healthyUnless(target.Path, "x")
	target.Health.Command = r.check()
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	r.did(t, "user-1 begun", "user-1 told", "user-1 checked")

	// Killed half way.
	r.hangAt(t, "user-2")
	answer := make(chan []client.Outcome, 1)
	f.calls <- call{[]client.Assignment{version("db", 2, 2)}, answer}
	leader, child := r.hanging(t)
	wantFile(t, target.Path, content(2))
	if err := syscall.Kill(leader, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	out := <-answer
	if len(out) != 1 || out[0].Code != client.Failed || out[0].Using != 1 || !strings.Contains(out[0].Detail, "signal: killed") {
		t.Errorf("killed half way: %+v", out)
	}
	wantFile(t, target.Path, content(1))
	wantGone(t, child)
	r.did(t, "user-2 begun", "user-1 begun", "user-1 told")
	r.letGo(t, "user-2")

	// It takes its time.
	r.hangAt(t, "user-3")
	f.calls <- call{[]client.Assignment{version("db", 3, 3)}, answer}
	_, child = r.hanging(t)
	select {
	case out := <-answer:
		t.Errorf("while the application is told: %+v", out)
	case ack := <-f.acks:
		t.Errorf("while the application is told: %+v", ack)
	default:
	}
	r.letGo(t, "user-3")
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out = <-answer; len(out) != 1 || out[0].Code != client.Applied || out[0].Using != 3 {
		t.Errorf("it took its time: %+v", out)
	}
	wantFile(t, target.Path, content(3))
	r.did(t, "user-3 begun", "user-3 told", "user-3 checked")
	f.halt()

	// It hangs until its limit.
	f.cfg.Targets[0].Reload.Timeout = 2 * time.Second
	f.start()
	r.hangAt(t, "user-4")
	f.calls <- call{[]client.Assignment{version("db", 4, 4)}, answer}
	leader, child = r.hanging(t)
	out = <-answer
	if len(out) != 1 || out[0].Code != client.Failed || out[0].Using != 3 || !strings.Contains(out[0].Detail, run.ErrTimeout.Error()) {
		t.Errorf("it hangs: %+v", out)
	}
	wantGone(t, leader)
	wantGone(t, child)
	wantFile(t, target.Path, content(3))
	r.did(t, "user-4 begun", "user-3 begun", "user-3 told")
}

// TestAgentKilledDuringReload: the file is of one version, nothing is acknowledged,
// and the next start tells the application again before it says that the version is
// used.
func TestAgentKilledDuringReload(t *testing.T) {
	t.Parallel()
	server := clienttest.New(t)
	r := reloads{t.TempDir()}
	target := dbTarget(r.dir)
	state, join := r.path("state"), r.path("join")
	text := fmt.Sprintf(`
server: %q
caFile: %q
stateDir: %q
joinTokenFile: %q
party: {id: node-1}
targets:
  - name: app
    path: %q
    template: %q
    reload: {command: [%q, %q, %q], timeout: 1m}
    health: {command: [%q, %q, %q]}
`, server.Config().Address, pemOf(t, server.Config().Address), state, join, target.Path, target.Template,
		r.command()[0], r.command()[1], r.command()[2], r.check()[0], r.check()[1], r.check()[2])
	config := r.path("agent.yaml")
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o600), os.WriteFile(join, []byte("once-only\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	server.AllowJoin("once-only")
	server.Set(clienttest.Login("db", "user-1", "secret-db-1"))
	start := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "AGENT_TEST_VICTIM="+config)
		cmd.Stderr = t.Output()
		cmd.WaitDelay = time.Second // a command that it left behind may hold the pipe
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	first := start()
	server.WaitAck(t.Context(), "db", 1)
	r.did(t, "user-1 begun", "user-1 told", "user-1 checked")

	r.hangAt(t, "user-2")
	server.Set(clienttest.Login("db", "user-2", "secret-db-2"))
	leader, _ := r.hanging(t)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed
	wantFile(t, target.Path, content(2))
	if err := syscall.Kill(-leader, syscall.SIGKILL); err != nil { // what it left behind
		t.Fatal(err)
	}
	for _, ack := range server.Acks() {
		if ack.Version != 1 {
			t.Errorf("acknowledged: %+v", ack)
		}
	}
	r.did(t, "user-2 begun")
	r.letGo(t, "user-2")

	second := start()
	if ack := server.WaitAck(t.Context(), "db", 2); ack.Code != client.Applied {
		t.Errorf("after the restart: %+v", ack)
	}
	wantFile(t, target.Path, content(2))
	// The last known good comes first: the server may be away.
	r.did(t, "user-1 begun", "user-1 told", "user-1 checked", "user-2 begun", "user-2 told", "user-2 checked")
	if err := second.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = second.Wait() // it was killed
}
