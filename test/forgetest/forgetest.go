// Package forgetest emulates a Git forge with one repository: a real OpenSSH server
// that serves a real repository by git, and, in the shape of Gitea's or of GitHub's
// API, as much of deploy keys as Keyturn uses. What the API lists stands in the SSH
// server's authorized_keys.
//
// The API is an emulator, written from the forges' documentation: it proves what
// Keyturn does, not what a forge does.
package forgetest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/test/pgtest"
)

// Repository is the one there is.
const Repository = "acme/shop"

// Key is a deploy key.
type Key struct {
	ID       int64      `json:"id"`
	Title    string     `json:"title"`
	Key      string     `json:"key"`
	ReadOnly bool       `json:"read_only"`
	LastUsed *time.Time `json:"last_used,omitempty"`
}

// Forge is the emulator.
type Forge struct {
	// API is the base of its API, SSH its address, User who logs in there, and HostKey
	// its host key as it stands in a config.
	API, SSH, User, HostKey string
	// TokenFile holds Token.
	TokenFile, Token string

	proxy      *pgtest.Proxy
	authorized string
	repository string

	mu     sync.Mutex
	keys   []Key
	next   int64
	faults []Fault
	silent chan struct{}
}

// Fault is what goes wrong with the next call of a method.
type Fault struct {
	Method string
	// Status is the answer; 0: the call takes effect and its answer is lost.
	Status int
	Header http.Header
}

// New starts one, and waits until it answers.
func New(t testing.TB) *Forge {
	t.Helper()
	dir := t.TempDir()
	f := &Forge{Token: rand.Text(), TokenFile: filepath.Join(dir, "token"), authorized: filepath.Join(dir, "authorized_keys"), repository: filepath.Join(dir, "shop.git"), next: 1}
	if me, err := user.Current(); err == nil {
		f.User = me.Username
	}
	write(t, f.TokenFile, f.Token+"\n")
	write(t, f.authorized, "")
	f.git(t, dir)
	f.sshd(t, dir)
	api := httptest.NewServer(f)
	f.API = api.URL
	t.Cleanup(func() {
		f.Speak()
		api.Close()
	})
	return f
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// git makes a repository with one commit.
func (f *Forge) git(t testing.TB, dir string) {
	t.Helper()
	work := filepath.Join(dir, "work")
	for _, args := range [][]string{
		{"init", "-q", "-b", "main", work},
		{"-C", work, "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-q", "--allow-empty", "-m", "first"},
		{"clone", "-q", "--bare", work, f.repository},
	} {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
}

// sshd starts OpenSSH's server.
func (f *Forge) sshd(t testing.TB, dir string) {
	t.Helper()
	program, err := exec.LookPath("sshd")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/sshd"); err != nil {
			t.Fatalf("no OpenSSH server: run scripts/install-parts: %v", err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd demands it, and that others may enter
			t.Fatal(err)
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	shown, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	f.HostKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(shown)))
	write(t, filepath.Join(dir, "host"), string(pem.EncodeToMemory(block)))
	free, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close() // sshd takes it
	_, port, _ := net.SplitHostPort(address)
	write(t, filepath.Join(dir, "sshd_config"), fmt.Sprintf(`ListenAddress 127.0.0.1
Port %s
HostKey %s
AuthorizedKeysFile %s
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
PidFile none
`, port, filepath.Join(dir, "host"), f.authorized))
	server := exec.CommandContext(t.Context(), program, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	log, err := os.Create(filepath.Join(dir, "sshd.log"))
	if err != nil {
		t.Fatal(err)
	}
	server.Stderr = log
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("sshd: %s", text[max(0, len(text)-2000):])
		}
	})
	f.proxy = pgtest.NewProxy(t, address)
	f.SSH = f.proxy.Addr()
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not answer: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// Fail makes a call fail.
func (f *Forge) Fail(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, fault)
}

// Silence makes API and SSH take connections and answer none, until Speak.
func (f *Forge) Silence() {
	f.proxy.Cut()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent == nil {
		f.silent = make(chan struct{})
	}
}

// Speak ends Silence. It may be called again.
func (f *Forge) Speak() {
	f.proxy.Restore()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent != nil {
		close(f.silent)
		f.silent = nil
	}
}

// Edit changes the deploy keys by hand.
func (f *Forge) Edit(t testing.TB, edit func([]Key) []Key) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = edit(f.keys)
	if err := f.authorize(); err != nil {
		t.Fatal(err)
	}
}

// Keys returns the deploy keys.
func (f *Forge) Keys() []Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.keys)
}

// authorize writes authorized_keys, as a forge does.
func (f *Forge) authorize() error {
	var b strings.Builder
	for _, k := range f.keys {
		fmt.Fprintf(&b, "restrict,command=\"git-upload-pack '%s'\" %s\n", f.repository, k.Key)
	}
	if err := os.WriteFile(f.authorized+".new", []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(f.authorized+".new", f.authorized)
}

// ServeHTTP implements http.Handler.
func (f *Forge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	silent := f.silent
	f.mu.Unlock()
	if silent != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-silent:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	lost := false
	if i := slices.IndexFunc(f.faults, func(x Fault) bool { return x.Method == r.Method }); i >= 0 {
		fault := f.faults[i]
		f.faults = slices.Delete(f.faults, i, i+1)
		if lost = fault.Status == 0; !lost {
			for name, values := range fault.Header {
				w.Header()[name] = values
			}
			reply(w, fault.Status, map[string]string{"message": "a fault"})
			return
		}
	}
	status, body := f.answer(r)
	if lost {
		panic(http.ErrAbortHandler)
	}
	reply(w, status, body)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			text = []byte(`"not to be encoded"`)
		}
		_, _ = w.Write(text) // the client may have gone
	}
}

func (f *Forge) answer(r *http.Request) (int, any) {
	message := func(status int, text string) (int, any) { return status, map[string]string{"message": text} }
	if auth := r.Header.Get("Authorization"); auth != "token "+f.Token && auth != "Bearer "+f.Token {
		return message(http.StatusUnauthorized, "Bad credentials")
	}
	rest, ours := strings.CutPrefix(r.URL.Path, "/repos/"+Repository)
	if !ours {
		return message(http.StatusNotFound, "Not Found")
	}
	id, _ := strconv.ParseInt(strings.TrimPrefix(rest, "/keys/"), 10, 64)
	switch {
	case r.Method == http.MethodGet && rest == "":
		return http.StatusOK, map[string]any{"permissions": map[string]bool{"admin": true}}
	case r.Method == http.MethodGet && rest == "/keys":
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		size := 3 // less than was asked for, as a forge may
		from := min(len(f.keys), max(0, page-1)*size)
		return http.StatusOK, append([]Key{}, f.keys[from:min(len(f.keys), from+size)]...)
	case r.Method == http.MethodPost && rest == "/keys":
		var k Key
		if err := json.NewDecoder(r.Body).Decode(&k); err != nil {
			return message(http.StatusUnprocessableEntity, "no JSON")
		}
		if slices.ContainsFunc(f.keys, func(other Key) bool { return other.Key == k.Key }) {
			return message(http.StatusUnprocessableEntity, "key is already in use")
		}
		k.ID, k.LastUsed = f.next, nil
		f.next++
		f.keys = append(f.keys, k)
		if err := f.authorize(); err != nil {
			return message(http.StatusInternalServerError, err.Error())
		}
		return http.StatusCreated, k
	case r.Method == http.MethodDelete && id > 0:
		i := slices.IndexFunc(f.keys, func(k Key) bool { return k.ID == id })
		if i < 0 {
			return message(http.StatusNotFound, "Not Found")
		}
		f.keys = slices.Delete(f.keys, i, i+1)
		if err := f.authorize(); err != nil {
			return message(http.StatusInternalServerError, err.Error())
		}
		return http.StatusNoContent, nil
	}
	return message(http.StatusMethodNotAllowed, "not here")
}
