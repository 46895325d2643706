package forgetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/test/pgtest"
)

// Gitea is a real Gitea that scripts/install-gitea built, with an SSH server of its
// own and one repository. TokenFile has an access token of its administrator.
type Gitea struct {
	API, SSH, User, HostKey, TokenFile string
	// Web and Secure are what stands before API and SSH.
	Web, Secure *pgtest.Proxy
	web, token  string
}

// Titles returns the titles of the repository's deploy keys.
func (g *Gitea) Titles(ctx context.Context) ([]string, error) {
	var keys []struct {
		Title string `json:"title"`
	}
	if err := call(ctx, http.MethodGet, "http://"+g.web+"/api/v1/repos/"+Repository+"/keys", g.token, nil, http.StatusOK, &keys); err != nil {
		return nil, err
	}
	var titles []string
	for _, k := range keys {
		titles = append(titles, k.Title)
	}
	return titles, nil
}

// NewGitea starts one. parts is the folder bin/parts of this repository.
func NewGitea(t testing.TB, parts string) *Gitea {
	t.Helper()
	home, err := filepath.Abs(filepath.Join(parts, "gitea"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(home, "gitea")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("no Gitea: run scripts/install-gitea: %v", err)
	}
	dir := t.TempDir()
	web, secure := freeAddress(t), freeAddress(t)
	_, webPort, _ := net.SplitHostPort(web)
	_, sshPort, _ := net.SplitHostPort(secure)
	write(t, filepath.Join(dir, "app.ini"), fmt.Sprintf(`APP_NAME = test
RUN_MODE = prod
WORK_PATH = %[1]s
[server]
STATIC_ROOT_PATH = %[2]s
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %[3]s
ROOT_URL = http://127.0.0.1:%[3]s/
START_SSH_SERVER = true
SSH_LISTEN_HOST = 127.0.0.1
SSH_LISTEN_PORT = %[4]s
BUILTIN_SSH_SERVER_USER = git
OFFLINE_MODE = true
LFS_START_SERVER = false
[database]
DB_TYPE = sqlite3
PATH = %[1]s/gitea.db
[repository]
ROOT = %[1]s/repositories
[security]
INSTALL_LOCK = true
SECRET_KEY = only-for-this-test
[session]
PROVIDER = memory
[log]
MODE = console
LEVEL = Warn
[indexer]
ISSUE_INDEXER_TYPE = db
[cron]
ENABLED = false
`, dir, home, webPort, sshPort))
	var log bytes.Buffer
	command := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, program, append(args, "--config", filepath.Join(dir, "app.ini"), "--work-path", dir)...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "USER=git", "GITEA_WORK_DIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if os.Geteuid() == 0 { // Gitea refuses to run as root
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		}
		return cmd
	}
	if os.Geteuid() == 0 {
		give(t, dir)
	}
	run := func(args ...string) string {
		out, err := command(t.Context(), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("gitea %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("migrate")
	run("admin", "user", "create", "--admin", "--username", "acme", "--password", "only-for-this-test", "--email", "acme@example.com", "--must-change-password=false")
	said := strings.TrimSpace(run("admin", "user", "generate-access-token", "--username", "acme", "--scopes", "write:repository,write:user", "--raw"))
	token := said[strings.LastIndexByte(said, '\n')+1:]
	server := command(context.WithoutCancel(t.Context()), "web")
	server.Stdout, server.Stderr, server.WaitDelay = &log, &log, time.Second
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
		if t.Failed() {
			t.Logf("gitea: %s", log.Bytes()[max(0, log.Len()-3000):])
		}
	})
	g := &Gitea{Web: pgtest.NewProxy(t, web), Secure: pgtest.NewProxy(t, secure), User: "git", web: web, token: token, TokenFile: filepath.Join(t.TempDir(), "token")}
	g.API, g.SSH = "http://"+g.Web.Addr()+"/api/v1", g.Secure.Addr()
	write(t, g.TokenFile, token+"\n")
	create := map[string]any{"name": "shop", "auto_init": true, "default_branch": "main"}
	within(t, "gitea makes a repository", func() error {
		return call(t.Context(), http.MethodPost, "http://"+web+"/api/v1/user/repos", token, create, http.StatusCreated, nil)
	})
	within(t, "gitea's SSH server answers", func() error {
		scan := exec.CommandContext(t.Context(), "ssh-keyscan", "-t", "rsa,ed25519,ecdsa", "-p", sshPort, "127.0.0.1")
		out, err := scan.Output()
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(out)) {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] != "#" {
				g.HostKey = fields[1] + " " + fields[2]
				return nil
			}
		}
		return errors.New("it shows no host key")
	})
	return g
}

// nobody is the user that Gitea runs as where the tests run as root.
const nobody = 65534

// give makes a folder that of nobody, and lets it in.
func give(t testing.TB, dir string) {
	t.Helper()
	for _, folder := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(folder, 0o755); err != nil { // the other user must get in
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, nobody, nobody)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	free, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = free.Close() }() // a server takes it
	return free.Addr().String()
}

func within(t testing.TB, what string, do func() error) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		err := do()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// call calls Gitea's API. into may be nil.
func call(ctx context.Context, method, url, token string, body any, want int, into any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(encoded))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "token "+token)
	response, err := (&http.Client{Timeout: 20 * time.Second}).Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode != want {
		return fmt.Errorf("status %d: %.500s", response.StatusCode, answer)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}
