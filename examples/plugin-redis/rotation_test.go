package plugin

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// serviceName is the key that the plugin rotates when it is called as a service.
const serviceName = "prod/billing/redis"

// signingSecret signs the calls of the service.
const signingSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// startService runs the plugin as a service on loopback and returns its address.
func startService(t *testing.T, secretFile string) string {
	t.Helper()
	cmd := exec.Command("python3", program(t), "--serve", "0", "", "", secretFile)
	cmd.Env = []string{"REDIS_ADMIN_FILE=" + adminFile(t), "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	port, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the service does not start: %v", err)
	}
	return "http://127.0.0.1:" + strings.TrimSpace(port) + "/"
}

// configure writes the configuration of a server with both kinds of the plugin.
func configure(t *testing.T) server.Config {
	t.Helper()
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, []byte(signingSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config, err := server.ParseConfig("server.yaml", []byte(strings.NewReplacer(
		"127.0.0.1:7447", "127.0.0.1:0", "/var/lib/keyturn", filepath.Join(dir, "data"),
		"/usr/local/lib/keyturn/redis_acl.py", program(t), "/run/secrets/redis-admin", adminFile(t),
		"https://keys.example.com:8443/", startService(t, hook), "/run/secrets/redis-service-hook", hook,
	).Replace(string(example))))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// documents are the policy and the two keys on two servers.
func documents(t *testing.T, eu, us *redis) string {
	t.Helper()
	example, err := os.ReadFile("key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(
		"redis-eu:6379", eu.address, "redis-us:6379", us.address,
		"every: 30d, jitter: 2h", "every: 30d", "bake: 5m", "bake: 0s", "min: 10m, quiet: 5m, max: 7d", "min: 0s, quiet: 0s, max: 1m, every: 200ms", "quarantine: 24h", "quarantine: 0s",
	).Replace(string(example))
	first, _, _ := strings.Cut(text, "---\n")
	second := strings.NewReplacer(name, serviceName, "provider: exec", "provider: webhook", "plugin: redis", "plugin: redis-service", "orders-v", "billing-v").Replace(first)
	return text + "---\n" + second
}

// TestSuiteByTheService tries the plugin as "keyturn provider test" does, called as a
// service: every test passes, and nothing is left behind on the servers.
func TestSuiteByTheService(t *testing.T) {
	eu, us := startRedis(t), startRedis(t)
	file := filepath.Join(t.TempDir(), "key.yaml")
	if err := os.WriteFile(file, []byte(documents(t, eu, us)), 0o600); err != nil {
		t.Fatal(err)
	}
	results, err := server.TestPlugins(t.Context(), configure(t), server.PluginTest{Plugin: "redis-service", File: file})
	if err != nil {
		t.Fatal(err)
	}
	var skipped []string
	for _, r := range results {
		switch r.Outcome {
		case "failed":
			t.Errorf("%s: %v", r.Test, r.Problems)
		case "skipped":
			skipped = append(skipped, r.Test)
		}
	}
	// The command cannot use a version as an application would, nor silence a server.
	if want := []string{"NoRoom", "UseOfOneVersionOnly", "DeadlineIsKept"}; len(results) < 20 || !slices.Equal(skipped, want) {
		t.Errorf("%d tests, skipped %v, want %v", len(results), skipped, want)
	}
	for _, server := range []*redis{eu, us} {
		c, err := login(t.Context(), server.address, "default", adminPassword)
		if err != nil {
			t.Fatal(err)
		}
		// One user; the fence of the key; those of its versions for a day.
		lasting, lastingErr := c.do("EVAL", lastingKeys, "0")
		users, err := c.do("ACL", "USERS") // the first line of the answer: how many
		if err := errors.Join(err, lastingErr); err != nil || users != "*1" || lasting != "keyturn:fence-of-key:keyturn/provider-test" {
			t.Errorf("left behind: users %s, keys without an end %q, %v", users, lasting, err)
		}
		c.Close()
	}
}

// lastingKeys lists the keys of a Redis server that have no end.
const lastingKeys = `
	local lasting = {}
	for _, name in ipairs(redis.call('KEYS', '*')) do
		if redis.call('TTL', name) < 0 then table.insert(lasting, name) end
	end
	return table.concat(lasting, ' ')`

// load is applications that use Redis all the time.
type load struct {
	requests, failures atomic.Int64
	mu                 sync.Mutex
	first              []string
}

// application logs in with the present version, uses the session a few times, and
// logs in again; at once when the version changes.
func (l *load) application(ctx context.Context, handle *client.Handle, address, prefix string) {
	for ctx.Err() == nil {
		credential := handle.Current()
		err := func() error {
			c, err := login(ctx, address, credential.Username(), credential.Password().RevealString())
			if err != nil {
				return err
			}
			defer c.Close()
			for range 10 {
				l.requests.Add(1)
				if _, err := c.do("INCR", prefix+":n"); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(20 * time.Millisecond):
				}
				if handle.Current().Version != credential.Version {
					return nil
				}
			}
			return nil
		}()
		if err != nil && ctx.Err() == nil {
			l.failures.Add(1)
			l.mu.Lock()
			if len(l.first) < 10 {
				l.first = append(l.first, fmt.Sprintf("%s with %v: %v", address, credential.Version, err))
			}
			l.mu.Unlock()
		}
	}
}

// TestRotationUnderLoad rotates logins of two real Redis servers, through the
// plugin as a program and as a service, while applications use them: no request
// fails, and the old version is refused at the end.
func TestRotationUnderLoad(t *testing.T) {
	eu, us := startRedis(t), startRedis(t)
	config := configure(t)
	config.Log.Level = "debug"
	logFile, err := os.Create(filepath.Join(t.TempDir(), "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		logFile.Close()
		if text, err := os.ReadFile(logFile.Name()); t.Failed() && err == nil {
			t.Logf("the end of the server's log:\n%s", text[max(0, len(text)-4000):])
		}
	})
	srv, err := server.Start(t.Context(), config, server.Options{LogTo: logFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		if err := srv.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	token, err := os.ReadFile(srv.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(srv.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	bearer := strings.TrimSpace(string(token))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	control := keyturnv1connect.NewControlServiceClient(&http.Client{Transport: authorised{bearer, transport}}, srv.Address())
	applied, err := control.Apply(t.Context(), &keyturnv1.ApplyRequest{Documents: []*keyturnv1.Document{{Name: "key.yaml", Content: []byte(documents(t, eu, us))}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range applied.GetProblems() {
		t.Errorf("%v", problem)
	}
	rotate := func(names ...string) {
		t.Helper()
		var ids []string
		for _, of := range names {
			started, err := control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: of, Reason: "test"})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, started.GetRotationId())
		}
		for _, id := range ids {
			if phase, tale := finish(t, control, id); phase != "done" {
				t.Fatalf("the rotation ended as %s:\n%s", phase, tale)
			}
		}
	}
	rotate(name, serviceName)

	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	loads := &load{}
	var handles []*client.Handle
	for _, of := range []struct{ key, prefix string }{{name, "orders"}, {serviceName, "orders"}} {
		keys, err := client.Open(ctx, client.Config{
			Address: srv.Address(), Token: client.StaticToken(secret.NewString(bearer)), RootCAs: roots,
			Party: client.Party{ID: "app/" + of.key, Kind: client.KindClient, Region: "eu"},
		}, key.Name(of.key))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(keys.Close)
		handle := keys.Key(key.Name(of.key))
		handles = append(handles, handle)
		for _, address := range []string{eu.address, us.address} {
			running.Go(func() { loads.application(ctx, handle, address, of.prefix) })
		}
	}
	old := []client.Credential{handles[0].Current(), handles[1].Current()}
	rotate(name, serviceName)
	rotate(name)
	before := loads.requests.Load()
	for deadline := time.After(30 * time.Second); loads.requests.Load() < before+40; {
		select {
		case <-deadline:
			t.Fatal("the applications stand still")
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	running.Wait()
	t.Logf("%d requests, %d failures", loads.requests.Load(), loads.failures.Load())
	if loads.failures.Load() > 0 || before == 0 {
		t.Errorf("failures under load: %v", loads.first)
	}
	if v := handles[0].Current().Version; v != 3 {
		t.Errorf("the applications use %v, want v3", v)
	}
	seen := slices.Concat(old, []client.Credential{handles[0].Current(), handles[1].Current()})
	noLeaks(t, seen, config.DataDir, filepath.Dir(logFile.Name()), filepath.Dir(eu.log), filepath.Dir(us.log))
	for _, credential := range old {
		for _, address := range []string{eu.address, us.address} {
			if c, err := login(t.Context(), address, credential.Username(), credential.Password().RevealString()); !errors.Is(err, errRefused) {
				if err == nil {
					c.Close()
				}
				t.Errorf("%v of %s at %s: %v, want a refusal", credential.Version, credential.Key, address, err)
			}
		}
	}
}

// noLeaks looks for passwords in every file of folders: the store, the log, and what
// Redis wrote.
func noLeaks(t *testing.T, credentials []client.Credential, folders ...string) {
	t.Helper()
	files := 0
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			for _, credential := range credentials {
				password := credential.Password().Reveal()
				for _, form := range []string{string(password), hex.EncodeToString(password), base64.StdEncoding.EncodeToString(password)} {
					if strings.Contains(string(text), form) {
						t.Errorf("%s holds the password of %v of %s", path, credential.Version, credential.Key)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 6 {
		t.Errorf("only %d files were searched", files)
	}
}

// authorised adds a token to every call.
type authorised struct {
	token string
	next  http.RoundTripper
}

func (a authorised) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+a.token)
	return a.next.RoundTrip(r)
}

// finish waits for a rotation's end and returns its phase and what happened.
func finish(t *testing.T, control keyturnv1connect.ControlServiceClient, id string) (phase, tale string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stream, err := control.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if r := stream.Msg().GetRotation(); r.GetEnded() {
			phase = r.GetPhase()
			break
		}
	}
	response, err := control.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range response.GetTimeline() {
		tale += fmt.Sprintln(entry.GetEvent(), entry.GetMessage())
	}
	return phase, tale
}
