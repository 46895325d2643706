package agent_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
	"github.com/keyturn/keyturn/internal/agent"
	"github.com/keyturn/keyturn/internal/agent/lkg"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
)

// TestRotationReachesTheApplication: a rotation, also one by hand, arrives in the
// file and the application hears of it (vault-k8s#614, vault-secrets-operator#494,
// #1002, consul-template#1504).
func TestRotationReachesTheApplication(t *testing.T) {
	dir := t.TempDir()
	target := dbTarget(dir)
	pidFile, reads := startApp(t, target.Path)
	if got := next(t, reads); got != "no file" {
		t.Fatal(got)
	}
	target.Reload = hup(pidFile)
	f := newFleet(t, target)
	if known := f.start(); len(known) != 1 || known[0] != (client.Known{Key: "db"}) {
		t.Errorf("known: %+v", known)
	}
	for v := key.Version(1); v <= 3; v++ {
		f.wantApplied(version("db", v, uint64(v)))
		if got := next(t, reads); got != content(v) {
			t.Errorf("version %d: the application read %q", v, got)
		}
	}
	info, err := os.Stat(target.Path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestUnchangedContentDisturbsNobody: neither a new version that renders the
// same, nor a repeated assignment, nor a restart of the agent writes or reloads
// (vault-secrets-operator#285, #644).
func TestUnchangedContentDisturbsNobody(t *testing.T) {
	dir := t.TempDir()
	target := dbTarget(dir)
	target.Template = `{{ (key "db").username }}`
	pidFile, reads := startApp(t, target.Path)
	next(t, reads)
	target.Reload = hup(pidFile)
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	next(t, reads)
	before, err := os.Stat(target.Path)
	if err != nil {
		t.Fatal(err)
	}
	same := version("db", 1, 2)
	same.Version = 2
	f.wantApplied(same)
	f.wantApplied(version("db", 1, 3))
	f.halt()
	if known := f.start(); known[0] != (client.Known{Key: "db", Version: 1, Epoch: 3}) {
		t.Errorf("known after a restart: %+v", known)
	}
	f.wantApplied(version("db", 1, 3))
	after, err := os.Stat(target.Path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was written again, %v", err)
	}
	f.wantApplied(version("db", 4, 4))
	if got := next(t, reads); got != "user-4" {
		t.Errorf("the application read %q: it was told without need", got)
	}
}

// TestTwoRotationsWithinOneSecond: the last one is in place and the application
// has been told of it (vault-secrets-operator#1228).
func TestTwoRotationsWithinOneSecond(t *testing.T) {
	server := clienttest.New(t)
	target := dbTarget(t.TempDir())
	pidFile, reads := startApp(t, target.Path)
	next(t, reads)
	target.Reload = hup(pidFile)
	f := newFleet(t, target)
	f.cfg.Server, f.cfg.CAFile = server.Config().Address, pemOf(t, server.Config().Address)
	f.cfg.TokenFile = filepath.Join(f.cfg.StateDir, "token")
	joinFile := filepath.Join(t.TempDir(), "join")
	if err := os.WriteFile(joinFile, []byte("once-only\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.cfg.JoinTokenFile = joinFile
	server.AllowJoin("once-only")
	server.Set(clienttest.Login("db", "user-1", "secret-db-1"))
	runAgent(t, f)
	server.WaitAck(t.Context(), "db", 1)
	for v := 2; v <= 9; v++ {
		server.Set(clienttest.Login("db", fmt.Sprintf("user-%d", v), fmt.Sprintf("secret-db-%d", v)))
	}
	if ack := server.WaitAck(t.Context(), "db", 9); ack.Code != client.Applied {
		t.Errorf("got %+v", ack)
	}
	wantFile(t, target.Path, content(9))
	for got := ""; got != content(9); {
		got = next(t, reads)
	}
	// Joining stored the token privately and used up the file.
	if info, err := os.Stat(f.cfg.TokenFile); err != nil || info.Mode() != 0o600 {
		t.Errorf("token: %v, %v", info, err)
	}
	if _, err := os.Stat(joinFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the join token is still there: %v", err)
	}
}

// runAgent runs an agent with a real client until the test ends.
func runAgent(t *testing.T, f *fleet) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- agent.Run(t.Context(), f.cfg, agent.Eager(agent.Deps{}, time.Hour)) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestJoinIsRefused(t *testing.T) {
	server := clienttest.New(t)
	f := newFleet(t, dbTarget(t.TempDir()))
	f.cfg.Server, f.cfg.CAFile = server.Config().Address, pemOf(t, server.Config().Address)
	f.cfg.TokenFile = filepath.Join(f.cfg.StateDir, "token")
	err := agent.Run(t.Context(), f.cfg, agent.Eager(agent.Deps{}, time.Hour))
	if !errors.Is(err, agent.ErrJoin) || !strings.Contains(err.Error(), "--role join") {
		t.Errorf("without any token: %v", err)
	}
	env := func(name string) string { return map[string]string{"KEYTURN_JOIN_TOKEN": "used-up"}[name] }
	err = agent.Run(t.Context(), f.cfg, agent.Eager(agent.Deps{Getenv: env}, time.Hour))
	if !errors.Is(err, agent.ErrJoin) || !strings.Contains(err.Error(), "works once") || strings.Contains(err.Error(), "used-up") {
		t.Errorf("with a used one: %v", err)
	}
	if err := os.WriteFile(f.cfg.TokenFile, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := agent.Run(t.Context(), f.cfg, agent.Eager(agent.Deps{}, time.Hour)); !errors.Is(err, agent.ErrJoin) || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("with an open token file: %v", err)
	}
}

// TestUserNameAndPasswordComeTogether: while versions change, a reader never
// sees the user name of one with the password of another (sapcc/helm-charts#8835).
func TestUserNameAndPasswordComeTogether(t *testing.T) {
	target := dbTarget(t.TempDir())
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	stop, torn := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(torn)
		for {
			select {
			case <-stop:
				return
			default:
			}
			b, err := os.ReadFile(target.Path)
			var user, password int
			if n, _ := fmt.Sscanf(string(b), "user-%d secret-db-%d", &user, &password); err != nil || n != 2 || user != password {
				torn <- fmt.Sprintf("%q, %v", b, err)
				return
			}
		}
	}()
	for v := key.Version(2); v < 60; v++ {
		f.wantApplied(version("db", v, uint64(v)))
	}
	close(stop)
	if got, bad := <-torn; bad {
		t.Errorf("a reader saw %s", got)
	}
}

// TestUnhealthyVersionIsTakenBack: the previous file is restored, the
// application is told again, the server hears why, and nothing leaks.
func TestUnhealthyVersionIsTakenBack(t *testing.T) {
	target := dbTarget(t.TempDir())
	pidFile, reads := startApp(t, target.Path)
	next(t, reads)
	target.Reload, target.Health = hup(pidFile), healthyUnless(target.Path, "user-2")
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	next(t, reads)
	f.wantFailed(1, "[redacted]", version("db", 2, 2))
	if a, b := next(t, reads), next(t, reads); a != content(2) || b != content(1) {
		t.Errorf("the application read %q, then %q", a, b)
	}
	wantFile(t, target.Path, content(1))
	// The server's roll-back changes nothing any more.
	f.wantApplied(version("db", 1, 3))
	// An older epoch is ignored.
	if out := f.assign(version("db", 2, 2)); len(out) != 0 {
		t.Errorf("an old epoch has the outcome %+v", out)
	}
	f.wantApplied(version("db", 3, 4))
	if got := next(t, reads); got != content(3) {
		t.Errorf("the application read %q: it was told without need", got)
	}
	if entries, err := os.ReadDir(filepath.Dir(target.Path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the file: %v, %v", entries, err)
	}
}

// TestFailedReload: a command that fails or hangs takes the version back as well.
func TestFailedReload(t *testing.T) {
	target := dbTarget(t.TempDir())
	target.Reload = agent.Reload{Timeout: 2 * time.Second, Command: []string{"/bin/sh", "-c", `
		grep user-2 "$KEYTURN_PATH" && { echo "$KEYTURN_TARGET: bad"; exit 7; }
		grep user-3 "$KEYTURN_PATH" && sleep 600
		exit 0`}}
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	f.wantFailed(1, "exit status 7", version("db", 2, 2))
	f.wantFailed(1, "timed out", version("db", 3, 3))
	wantFile(t, target.Path, content(1))
	f.wantApplied(version("db", 4, 4))
}

// TestTargetsThatShareAKeySwitchTogether: the second one fails, so the first one
// goes back too; a key that shares nothing with them is not held up (setec#155).
func TestTargetsThatShareAKeySwitchTogether(t *testing.T) {
	dir := t.TempDir()
	first, second, other := dbTarget(dir), dbTarget(dir), dbTarget(dir)
	first.Order = -1
	second.Name, second.Path = "second", filepath.Join(dir, "second.conf")
	second.Health = healthyUnless(second.Path, "user-2")
	other.Name, other.Path, other.Template = "other", filepath.Join(dir, "other.conf"), `{{ (key "mail").password }}`
	f := newFleet(t, second, other, first)
	f.start()
	f.wantApplied(version("db", 1, 1), version("mail", 1, 1))
	out := f.assign(version("db", 2, 2), version("mail", 2, 2))
	if out["db"].Code != client.Failed || out["db"].Using != 1 || out["mail"].Code != client.Applied {
		t.Errorf("got %+v", out)
	}
	wantFile(t, first.Path, content(1))
	wantFile(t, second.Path, content(1))
	wantFile(t, other.Path, "secret-mail-2")
}

// TestSeveralKeysInOneFile: a target that needs two keys waits for both, and is
// written once.
func TestSeveralKeysInOneFile(t *testing.T) {
	target := dbTarget(t.TempDir())
	target.Template = `{{ (key "db").password }} {{ (key "mail").password }}`
	f := newFleet(t, target)
	f.start()
	if out := f.assign(version("db", 1, 1)); len(out) != 0 {
		t.Errorf("with one key: %+v", out)
	}
	if _, err := os.Stat(target.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a file: %v", err)
	}
	f.wantApplied(version("mail", 5, 1))
	if o := <-f.acks; o.Key != "db" || o.Code != client.Applied {
		t.Errorf("the key that waited: %+v", o)
	}
	wantFile(t, target.Path, "secret-db-1 secret-mail-5")
	f.wantApplied(version("db", 2, 2))
	wantFile(t, target.Path, "secret-db-2 secret-mail-5")
}

// TestKeysOfOneFileChangeTogether: when the file fails with one of two new
// versions, neither is taken.
func TestKeysOfOneFileChangeTogether(t *testing.T) {
	target := dbTarget(t.TempDir())
	target.Template = `{{ (key "db").password }} {{ (key "mail").password }}`
	target.Health = healthyUnless(target.Path, "mail-2")
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1), version("mail", 1, 1))
	f.wantFailed(1, "unhealthy", version("db", 2, 2), version("mail", 2, 2))
	wantFile(t, target.Path, "secret-db-1 secret-mail-1")
}

// TestMissingField: a template that does not fit the version fails before
// anything is touched.
func TestMissingField(t *testing.T) {
	target := dbTarget(t.TempDir())
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	bare := version("db", 2, 2)
	bare.Attributes = nil
	f.wantFailed(1, `no field "username"`, bare)
	wantFile(t, target.Path, content(1))
}

// TestFullDisk: the old file stays, the failure is told, and the version arrives
// when there is room again.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root can mount a small tmpfs; the test runs as root in CI")
		return
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	target := dbTarget(dir)
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	filler := filepath.Join(dir, "filler")
	full, err := os.Create(filler)
	for err == nil {
		_, err = full.Write(make([]byte, 4096))
	}
	full.Close()
	f.wantFailed(1, "old file is untouched", version("db", 2, 2))
	wantFile(t, target.Path, content(1))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	select {
	case o := <-f.acks:
		if o.Code != client.Applied || o.Version != 2 || o.Epoch != 2 {
			t.Errorf("got %+v", o)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it was not tried again")
	}
	wantFile(t, target.Path, content(2))
	f.halt() // before the file system goes
}

// TestUnsafePlaces: a symbolic link at the path (envoy#39498) and a directory for
// everybody are refused with a hint, and are no reason for the agent to end.
func TestUnsafePlaces(t *testing.T) {
	linked, open := dbTarget(t.TempDir()), dbTarget(t.TempDir())
	open.Name, open.Template = "open", `{{ (key "mail").password }}`
	if err := os.Symlink("/etc/hostname", linked.Path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(open.Path), 0o777); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, linked, open)
	f.start()
	f.wantFailed(0, "symbolic link", version("db", 1, 1))
	f.wantFailed(0, "chmod o-w", version("mail", 1, 1))
}

// TestFirstDelivery: an application that is not there yet must find its file;
// there is nothing to go back to, so the file stays and health is tried again.
func TestFirstDelivery(t *testing.T) {
	dir := t.TempDir()
	target := dbTarget(dir)
	up := filepath.Join(dir, "up")
	target.Reload = hup(filepath.Join(dir, "no.pid"))
	target.Health = healthyUnless(target.Path, "nothing")
	target.Health.Command = []string{"/usr/bin/test", "-e", up}
	f := newFleet(t, target)
	f.start()
	f.wantFailed(1, "unhealthy", version("db", 1, 1))
	wantFile(t, target.Path, content(1))
	if err := os.WriteFile(up, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case o := <-f.acks:
		if o.Code != client.Applied || o.Version != 1 {
			t.Errorf("got %+v", o)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("health was not tried again")
	}
	// A replacement, however, needs the process.
	f.wantFailed(1, "not running", version("db", 2, 2))
	wantFile(t, target.Path, content(1))
}

// TestServedFromStateWhileTheServerIsAway: after a restart the files are there
// again, also when they lay on a file system that is empty now.
func TestServedFromStateWhileTheServerIsAway(t *testing.T) {
	target := dbTarget(t.TempDir())
	target.Health = healthyUnless(target.Path, "user-2")
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	f.wantFailed(1, "unhealthy", version("db", 2, 2))
	f.halt()
	if err := os.Remove(target.Path); err != nil {
		t.Fatal(err)
	}
	if known := f.start(); known[0] != (client.Known{Key: "db", Version: 1, Epoch: 1}) {
		t.Errorf("known: %+v; only what is in use counts", known)
	}
	wantFile(t, target.Path, content(1))
	f.halt()

	// The state of another server, and damaged state, are ignored with a warning.
	sealed := filepath.Join(f.cfg.StateDir, "last-known-good")
	b, err := os.ReadFile(sealed)
	if err != nil || strings.Contains(string(b), "secret-") {
		t.Fatal("state not readable, or not sealed: ", err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(sealed, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(target.Path); err != nil {
		t.Fatal(err)
	}
	if known := f.start(); known[0] != (client.Known{Key: "db"}) || !strings.Contains(f.log.String(), "are ignored") {
		t.Errorf("known from damaged state: %+v", known)
	}
	f.wantApplied(version("db", 1, 1))
	wantFile(t, target.Path, content(1))
}

// TestTwoAgentsOneState: the second one says so and ends.
func TestTwoAgentsOneState(t *testing.T) {
	f := newFleet(t, dbTarget(t.TempDir()))
	f.start()
	if err := agent.Run(t.Context(), f.cfg, agent.Eager(agent.Deps{Delivery: f}, 0)); !errors.Is(err, lkg.ErrInUse) {
		t.Errorf("got %v", err)
	}
}

// TestCrashBetweenFileAndReload: the file is new, the application was never
// told; the next start tells it although the file is right.
func TestCrashBetweenFileAndReload(t *testing.T) {
	target := dbTarget(t.TempDir())
	pidFile, reads := startApp(t, target.Path)
	next(t, reads)
	target.Reload = hup(pidFile)
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	next(t, reads)
	f.halt()
	// What a crash after the rename leaves behind.
	if err := os.WriteFile(target.Path, []byte(content(2)), 0o600); err != nil {
		t.Fatal(err)
	}
	state, err := lkg.Open(f.cfg.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(state.MarkSwitching([]string{"app"}), state.Close()); err != nil {
		t.Fatal(err)
	}
	f.start()
	wantFile(t, target.Path, content(1)) // the server may be away: the last known good
	if got := next(t, reads); got != content(1) {
		t.Errorf("the application read %q", got)
	}
	f.wantApplied(version("db", 2, 2))
	if got := next(t, reads); got != content(2) {
		t.Errorf("the application read %q", got)
	}
	f.halt()
	// And what a crash leaves behind while the application is told.
	if state, err = lkg.Open(f.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(state.MarkSwitching([]string{"app"}), state.Close()); err != nil {
		t.Fatal(err)
	}
	f.start()
	if got := next(t, reads); got != content(2) {
		t.Errorf("the application read %q", got)
	}
	f.halt()
	f.start()
	f.wantApplied(version("db", 2, 2))
	f.wantApplied(version("db", 3, 3))
	if got := next(t, reads); got != content(3) {
		t.Errorf("the application read %q: it was told without need", got)
	}
}

// TestStopInTheMiddle: an agent that is stopped while it waits for health puts
// the old version back and says nothing.
func TestStopInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	target := dbTarget(dir)
	begun := filepath.Join(dir, "begun")
	pidFile, reads := startApp(t, target.Path)
	next(t, reads)
	target.Reload = hup(pidFile)
	target.Health = healthyUnless(target.Path, "x")
	target.Health.Command = []string{"/bin/sh", "-c", "grep user-1 " + target.Path + " || { touch " + begun + "; sleep 600; }"}
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	next(t, reads)
	note := filepath.Join(f.cfg.StateDir, "switching.json")
	if _, err := os.Stat(note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a note of a switch outside of one: %v", err)
	}
	answer := make(chan []client.Outcome, 1)
	f.calls <- call{[]client.Assignment{version("db", 2, 2)}, answer}
	eventually(t, "the health check runs", func() bool {
		_, err := os.Stat(begun)
		return err == nil
	})
	if _, err := os.Stat(note); err != nil {
		t.Errorf("a crash now would go unnoticed: %v", err)
	}
	f.halt()
	if out := <-answer; len(out) != 0 {
		t.Errorf("outcomes: %+v", out)
	}
	wantFile(t, target.Path, content(1))
	if a, b := next(t, reads), next(t, reads); a != content(2) || b != content(1) {
		t.Errorf("the application read %q, then %q", a, b)
	}
}

// TestSamples: the server hears, version by version, how the application fares.
func TestSamples(t *testing.T) {
	dir := t.TempDir()
	target := dbTarget(dir)
	sick := filepath.Join(dir, "sick")
	target.Health = &agent.Health{
		Health:      run.Health{Command: []string{"/bin/sh", "-c", "! test -e " + sick + " || { cat " + target.Path + "; exit 1; }"}, Timeout: time.Minute},
		SampleEvery: 5 * time.Millisecond, SampleFor: time.Hour, SampleThen: time.Hour,
	}
	f := newFleet(t, target)
	f.start()
	f.wantApplied(version("db", 1, 1))
	if s := nextSample(t, f); s.Key != "db" || s.Version != 1 || s.Attempts == 0 || s.AuthFailures != 0 || !s.Healthy {
		t.Errorf("healthy: %+v", s)
	}
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for {
		s := nextSample(t, f)
		if s.Healthy {
			continue
		}
		if s.AuthFailures == 0 || s.AuthFailures > s.Attempts || !strings.Contains(s.Detail, "target app") || strings.Contains(s.Detail, "secret-") {
			t.Errorf("unhealthy: %+v", s)
		}
		break
	}
}

func nextSample(t *testing.T, f *fleet) client.Sample {
	t.Helper()
	select {
	case s := <-f.reports:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("no sample within 10 s")
		return client.Sample{}
	}
}

// eventually polls a condition of a real system, for at most 10 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited 10 s until %s", what)
		case <-tick.C:
		}
	}
}
