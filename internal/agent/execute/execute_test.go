package execute_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
	"github.com/keyturn/keyturn/internal/agent/execute"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
)

// program is a running Run with a test server.
type program struct {
	t      *testing.T
	server *clienttest.Server
	opts   execute.Options
	lines  *bufio.Reader
	done   chan result
	stop   context.CancelFunc
}

type result struct {
	code int
	err  error
}

// script makes options that run a shell script.
func script(t *testing.T, text string) *program {
	t.Helper()
	server := clienttest.New(t)
	server.Set(clienttest.Login("prod/db", "user-1", "secret-1"))
	c, err := client.New(server.Config())
	if err != nil {
		t.Fatal(err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{
		t: t, server: server, lines: bufio.NewReader(out), done: make(chan result, 1),
		opts: execute.Options{
			Delivery: c, Keys: []key.Name{"prod/db"}, Command: []string{"/bin/sh", "-c", text},
			Environ: append(os.Environ(), "KEYTURN_TOKEN=mine", "DB_USERNAME=stale"), Stdout: in, Stderr: os.Stderr,
			OnChange: execute.Restart, KillAfter: 5 * time.Second, Settle: 100 * time.Millisecond, Wait: 10 * time.Second, Dumpable: true,
		},
	}
	t.Cleanup(func() {
		if p.stop != nil {
			p.stop()
			p.wait()
		}
		in.Close()
		out.Close()
	})
	return p
}

func (p *program) start() {
	ctx, cancel := context.WithCancel(p.t.Context())
	p.stop = cancel
	go func() {
		code, err := execute.Run(ctx, p.opts)
		p.done <- result{code, err}
	}()
}

func (p *program) wait() result {
	p.t.Helper()
	p.stop = nil
	select {
	case r := <-p.done:
		return r
	case <-time.After(20 * time.Second):
		p.t.Fatal("Run has not ended after 20 s")
		return result{}
	}
}

func (p *program) wantLine(want string) {
	p.t.Helper()
	got := make(chan string, 1)
	go func() {
		line, err := p.lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			line = err.Error()
		}
		got <- strings.TrimSuffix(line, "\n")
	}()
	select {
	case line := <-got:
		if line != want {
			p.t.Errorf("the program wrote %q, want %q", line, want)
		}
	case <-time.After(10 * time.Second):
		p.t.Fatalf("the program did not write %q within 10 s", want)
	}
}

func (p *program) wantAck(v key.Version, code client.OutcomeCode, using key.Version) clienttest.Ack {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 15*time.Second)
	defer cancel()
	ack := p.server.WaitAck(ctx, "prod/db", v)
	if ack.Code != code || ack.Using != using || strings.Contains(ack.Detail, "secret-") {
		p.t.Errorf("version %d: %+v, want %v, using %v", v, ack, code, using)
	}
	return ack
}

func (p *program) rotate(v int) {
	p.server.Set(clienttest.Login("prod/db", fmt.Sprintf("user-%d", v), fmt.Sprintf("secret-%d", v)))
}

func TestExitCodeAndEnvironment(t *testing.T) {
	p := script(t, `echo "$DB_USERNAME $DB_PASSWORD ${KEYTURN_TOKEN-none}"; exit 7`)
	p.start()
	p.wantLine("user-1 secret-1 none")
	if r := p.wait(); r.err != nil || r.code != 7 {
		t.Errorf("got %+v", r)
	}
	if acks := p.server.Acks(); len(acks) != 0 {
		t.Errorf("a program that failed at once was acknowledged: %+v", acks)
	}
}

func TestShortProgramIsAcknowledged(t *testing.T) {
	p := script(t, `exit 0`)
	p.start()
	if r := p.wait(); r.err != nil || r.code != 0 {
		t.Errorf("got %+v", r)
	}
	p.wantAck(1, client.Applied, 1)
}

func TestRestartWithTheNewVersion(t *testing.T) {
	p := script(t, `echo "$DB_USERNAME $DB_PASSWORD"; trap 'echo bye; exit 0' TERM; while :; do sleep 0.01; done`)
	p.start()
	p.wantLine("user-1 secret-1")
	p.wantAck(1, client.Applied, 1)
	p.rotate(2)
	p.wantLine("bye")
	p.wantLine("user-2 secret-2")
	p.wantAck(2, client.Applied, 2)
	p.stop()
	p.wantLine("bye")
	if r := p.wait(); r.err != nil || r.code != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestNewVersionThatDoesNotRun(t *testing.T) {
	p := script(t, `echo "$DB_USERNAME"; test "$DB_USERNAME" = user-2 && exit 3; exec sleep 600`)
	p.start()
	p.wantLine("user-1")
	p.wantAck(1, client.Applied, 1)
	p.rotate(2)
	p.wantLine("user-2")
	p.wantLine("user-1")
	if ack := p.wantAck(2, client.Failed, 1); !strings.Contains(ack.Detail, "exit code 3") {
		t.Errorf("detail: %q", ack.Detail)
	}
	p.rotate(3)
	p.wantLine("user-3")
	p.wantAck(3, client.Applied, 3)
}

func TestUnhealthyVersion(t *testing.T) {
	p := script(t, `echo "$DB_USERNAME" >"$OUT"; echo "$DB_USERNAME"; exec sleep 600`)
	out := filepath.Join(t.TempDir(), "user")
	p.opts.Environ = append(p.opts.Environ, "OUT="+out)
	p.opts.Health = &run.Health{Command: []string{"/bin/sh", "-c", "! grep user-2 " + out}, Timeout: time.Minute}
	p.start()
	p.wantLine("user-1")
	p.wantAck(1, client.Applied, 1)
	p.rotate(2)
	p.wantLine("user-2")
	p.wantLine("user-1")
	p.wantAck(2, client.Failed, 1)
}

func TestStubbornProgramIsKilled(t *testing.T) {
	p := script(t, `trap '' TERM; echo "$DB_USERNAME"; while :; do sleep 0.01; done`)
	p.opts.KillAfter = 100 * time.Millisecond
	p.start()
	p.wantLine("user-1")
	p.wantAck(1, client.Applied, 1)
	p.rotate(2)
	p.wantLine("user-2")
	p.wantAck(2, client.Applied, 2)
	p.stop()
	if r := p.wait(); r.err != nil || r.code != 128+int(syscall.SIGKILL) {
		t.Errorf("got %+v", r)
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	signals := make(chan os.Signal, 1)
	p := script(t, `trap 'echo hup' HUP; trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.01; done`)
	p.opts.Signals = signals
	p.start()
	p.wantLine("ready")
	signals <- syscall.SIGHUP
	p.wantLine("hup")
	p.wantAck(1, client.Applied, 1)
	signals <- syscall.SIGTERM
	p.wantLine("term")
	if r := p.wait(); r.err != nil || r.code != 9 {
		t.Errorf("got %+v", r)
	}
}

// TestMemoryFile: the content is there at every opening, cannot be changed, and
// lies on no disk.
func TestMemoryFile(t *testing.T) {
	p := script(t, `
		cat "$CONF" "$CONF"; echo
		(chmod 600 "$CONF"; printf x 1<>"$CONF") 2>/dev/null && echo writable || echo sealed
		echo "$CONF"; echo "${DB_USERNAME}"; exec sleep 600`)
	file, err := execute.ParseFile(`CONF={{ with key "prod/db" }}{{ .username }}:{{ .password }};{{ end }}`)
	if err != nil {
		t.Fatal(err)
	}
	p.opts.Files = []execute.File{file}
	p.start()
	p.wantLine("user-1:secret-1;user-1:secret-1;")
	p.wantLine("sealed")
	p.wantLine("/proc/self/fd/3")
	p.wantLine("stale") // a key that a file names is not in the environment
	p.wantAck(1, client.Applied, 1)
	p.rotate(2)
	p.wantLine("user-2:secret-2;user-2:secret-2;")
	p.wantAck(2, client.Applied, 2)
}

func TestSignalOnChange(t *testing.T) {
	p := script(t, `echo "$PW"; cat "$PW"; echo; trap 'cat "$PW"; echo' HUP; while :; do sleep 0.01; done`)
	file, err := execute.ParseFile("PW=prod/db:password")
	if err != nil {
		t.Fatal(err)
	}
	p.opts.Files = []execute.File{file}
	if p.opts.OnChange, p.opts.Signal, err = execute.ParseOnChange("signal=HUP"); err != nil {
		t.Fatal(err)
	}
	p.start()
	path, err := p.lines.ReadString('\n')
	if err != nil || !strings.HasPrefix(path, "/dev/shm/keyturn-exec-") {
		t.Fatal(path, err)
	}
	path = strings.TrimSuffix(path, "\n")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	p.wantLine("secret-1")
	p.wantAck(1, client.Applied, 1)
	for v := 2; v <= 4; v++ {
		p.rotate(v)
		p.wantLine(fmt.Sprintf("secret-%d", v))
		p.wantAck(key.Version(v), client.Applied, key.Version(v))
	}
	p.stop()
	p.wait()
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory in memory is left: %v", err)
	}
}

// TestNoneOnChange: without files the program keeps its version, and the server
// is not told otherwise.
func TestNoneOnChange(t *testing.T) {
	p := script(t, `echo "$DB_USERNAME"; read -r line; echo "$DB_USERNAME"`)
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p.opts.Stdin, p.opts.OnChange = in, execute.None
	p.start()
	p.wantLine("user-1")
	p.wantAck(1, client.Applied, 1)
	p.rotate(2)
	hold.Close()
	p.wantLine("user-1")
	p.wait()
	for _, ack := range p.server.Acks() {
		if ack.Version != 1 {
			t.Errorf("acknowledged %+v", ack)
		}
	}
}

// TestSameValuesDisturbNobody: a version with the same fields is no reason to restart.
func TestSameValuesDisturbNobody(t *testing.T) {
	p := script(t, `echo "$DB_USERNAME $$"; exec sleep 600`)
	p.start()
	if _, err := p.lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	p.wantAck(1, client.Applied, 1)
	p.server.Set(clienttest.Login("prod/db", "user-1", "secret-1"))
	p.wantAck(2, client.Applied, 2)
	p.opts.Stdout.Close()
	p.stop()
	p.wait()
	if rest, err := io.ReadAll(p.lines); err != nil || len(rest) != 0 {
		t.Errorf("the program was started again: %q, %v", rest, err)
	}
}

// TestFailedVersionIsNotTakenAlong: what failed is not tried again with the next
// change of another key.
func TestFailedVersionIsNotTakenAlong(t *testing.T) {
	p := script(t, `echo "$DB_USERNAME $MAIL_USERNAME"; test "$DB_USERNAME" = user-2 && exit 3; exec sleep 600`)
	p.server.Set(clienttest.Login("prod/mail", "mail-1", "secret-m"))
	p.opts.Keys = []key.Name{"prod/db", "prod/mail"}
	p.start()
	p.wantLine("user-1 mail-1")
	p.wantAck(1, client.Applied, 1)
	p.rotate(2)
	p.wantLine("user-2 mail-1")
	p.wantLine("user-1 mail-1")
	p.wantAck(2, client.Failed, 1)
	p.server.Set(clienttest.Login("prod/mail", "mail-2", "secret-m"))
	p.wantLine("user-1 mail-2")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if ack := p.server.WaitAck(ctx, "prod/mail", 2); ack.Code != client.Applied {
		t.Errorf("got %+v", ack)
	}
}

func TestTwoKeysThatArriveApart(t *testing.T) {
	p := script(t, `echo "$DB_PASSWORD $MAIL_PASSWORD"; exec sleep 600`)
	p.opts.Keys = []key.Name{"prod/db", "prod/mail"}
	p.start()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p.server.WaitStreams(ctx, 1)
	p.server.Set(clienttest.Login("prod/mail", "m", "secret-m"))
	p.wantLine("secret-1 secret-m")
	p.wantAck(1, client.Applied, 1)
	if ack := p.server.WaitAck(ctx, "prod/mail", 1); ack.Code != client.Applied {
		t.Errorf("got %+v", ack)
	}
}

func TestCredentialDoesNotArrive(t *testing.T) {
	p := script(t, `echo never`)
	p.opts.Keys, p.opts.Wait = []key.Name{"prod/unknown"}, 50*time.Millisecond
	p.start()
	if r := p.wait(); !errors.Is(r.err, execute.ErrNoCredential) || !strings.Contains(r.err.Error(), "prod/unknown") {
		t.Errorf("got %+v", r)
	}
}

func TestProgramThatCannotStart(t *testing.T) {
	p := script(t, ``)
	p.opts.Command = []string{"/no/such/program"}
	p.start()
	if r := p.wait(); !errors.Is(r.err, execute.ErrStart) || !errors.Is(r.err, os.ErrNotExist) {
		t.Errorf("got %+v", r)
	}
	p = script(t, ``)
	p.opts.Keys, p.opts.Env = nil, []execute.Env{{Name: "X", Key: "prod/db", Field: "nope"}}
	p.start()
	if r := p.wait(); !errors.Is(r.err, execute.ErrStart) || !strings.Contains(r.err.Error(), "password, username") {
		t.Errorf("got %+v", r)
	}
}

func TestFlags(t *testing.T) {
	if e, err := execute.ParseEnv("PGPASSWORD=prod/orders/db:password"); err != nil || e != (execute.Env{Name: "PGPASSWORD", Key: "prod/orders/db", Field: "password"}) {
		t.Errorf("got %+v, %v", e, err)
	}
	for _, bad := range []string{"", "A", "A=b", "A=b:", "=b:c", "1A=b:c", "A=B:c", "LD_PRELOAD=b:c", "PATH=b:c"} {
		if _, err := execute.ParseEnv(bad); !errors.Is(err, execute.ErrOptions) {
			t.Errorf("--env %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "A", "A=b", "A={{ nope }}", "1={{ (key \"a\").b }}"} {
		if _, err := execute.ParseFile(bad); !errors.Is(err, execute.ErrOptions) {
			t.Errorf("--file %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "reload", "signal", "signal=NOPE"} {
		if _, _, err := execute.ParseOnChange(bad); !errors.Is(err, execute.ErrOptions) {
			t.Errorf("--on-change %q: %v", bad, err)
		}
	}
	p := script(t, "")
	for name, change := range map[string]func(*execute.Options){
		"no delivery":  func(o *execute.Options) { o.Delivery = nil },
		"no command":   func(o *execute.Options) { o.Command = nil },
		"no change":    func(o *execute.Options) { o.OnChange = 0 },
		"no key":       func(o *execute.Options) { o.Keys = nil },
		"signal, env":  func(o *execute.Options) { o.OnChange, o.Signal = execute.Signal, syscall.SIGHUP },
		"same segment": func(o *execute.Options) { o.Keys = []key.Name{"a/db", "b/db"} },
		"variable twice": func(o *execute.Options) {
			o.Env = []execute.Env{{Name: "A", Key: "k", Field: "f"}, {Name: "A", Key: "k", Field: "g"}}
		},
		"bad template": func(o *execute.Options) { o.Files = []execute.File{{Name: "F", Template: "{{"}} },
	} {
		o := p.opts
		change(&o)
		if _, err := execute.Run(t.Context(), o); !errors.Is(err, execute.ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzFlags: no flag value is a crash, and what is accepted is a safe variable.
func FuzzFlags(f *testing.F) {
	for _, s := range []string{"A=b:c", "A={{ (key \"a\").b }}", "LD_A=b:c", "signal=HUP", "=", "restart"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := execute.ParseEnv(text); err == nil && (strings.ContainsAny(e.Name, "= \x00") || strings.HasPrefix(e.Name, "LD_") || !e.Key.Valid()) {
			t.Fatalf("accepted %+v", e)
		}
		if file, err := execute.ParseFile(text); err == nil && (strings.ContainsAny(file.Name, "= \x00/") || file.Template == "") {
			t.Fatalf("accepted %+v", file)
		}
		if _, _, err := execute.ParseOnChange(text); err != nil && !errors.Is(err, execute.ErrOptions) {
			t.Fatal(err)
		}
	})
}
