package real

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/agent/execute"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// forms are the ways in which a secret may be written.
func forms(word string) map[string][]byte {
	all := map[string][]byte{
		"plain": []byte(word), "hexadecimal": []byte(hex.EncodeToString([]byte(word))),
		"upper-case hexadecimal": []byte(strings.ToUpper(hex.EncodeToString([]byte(word)))),
		"URL-escaped":            []byte(url.QueryEscape(word)), "path-escaped": []byte(url.PathEscape(word)),
	}
	// In the middle of a longer text base64 has three forms; their first and last
	// letters depend on the neighbours and are left out.
	for shift := range 3 {
		padded := append(make([]byte, shift), word...)
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "URL base64": base64.RawURLEncoding} {
			text := encoding.EncodeToString(padded)
			text = text[(shift*8+5)/6 : len(text)-1]
			all[fmt.Sprintf("%s at %d", name, shift)] = []byte(text)
		}
	}
	return all
}

// leaks lists which of the secrets are in content, by name and form.
func leaks(secrets map[string]string, content []byte) (found []string) {
	for name, word := range secrets {
		for form, pattern := range forms(word) {
			if bytes.Contains(content, pattern) {
				found = append(found, name+", "+form)
			}
		}
	}
	return found
}

// TestLeaksAreFound: the scan finds what is planted, in every form.
func TestLeaksAreFound(t *testing.T) {
	t.Parallel()
	const word = "p4ssW0rd+of/the=test"
	secrets := map[string]string{"planted": word}
	for name, text := range map[string]string{
		"plain":   "GET /?x=" + word + " 200",
		"hex":     "bytes " + hex.EncodeToString([]byte(word)),
		"HEX":     "bytes " + strings.ToUpper(hex.EncodeToString([]byte("x"+word+"y"))),
		"escaped": "https://h/?p=" + url.QueryEscape(word) + "&q=1",
		"path":    "https://h/" + url.PathEscape(word),
		"base64":  base64.StdEncoding.EncodeToString([]byte(word)),
		"basic":   "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("orders_a:"+word)),
		"shifted": base64.StdEncoding.EncodeToString([]byte("u:" + word + "\n")),
		"URL":     base64.URLEncoding.EncodeToString([]byte("user:" + word + ".")),
	} {
		if len(leaks(secrets, []byte(text))) == 0 {
			t.Errorf("%s: not found in %q", name, text)
		}
		if found := leaks(map[string]string{"other": "another-secret-of-the-test"}, []byte(text)); len(found) > 0 {
			t.Errorf("%s: found what is not there: %v", name, found)
		}
	}
}

// places collects what must not contain a secret, by name.
type places map[string][]byte

func (p places) file(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p[path] = content
}

// folder adds every file of a folder but those that except names.
func (p places) folder(t *testing.T, dir string, except ...string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		for _, name := range except {
			if entry.Name() == name {
				return nil
			}
		}
		p.file(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// processes adds the arguments of every process there is.
func (p places) processes(t *testing.T) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(paths) == 0 {
		t.Fatalf("the processes cannot be listed: %v", err)
	}
	for _, path := range paths {
		if arguments, err := os.ReadFile(path); err == nil { // else it has ended
			p[path] = append(p[path], arguments...)
		}
	}
}

// TestNoSecretLeaks makes a whole run, with everything that writes somewhere, and
// then looks for every password that was ever minted and for every token.
func TestNoSecretLeaks(t *testing.T) {
	t.Parallel()
	w := newSystems(t)
	w.config.APIKeys.Webhooks.Allow = []string{"127.0.0.0/8"}
	w.run(t, quickPolicy)
	found := places{}
	w.first(t)
	issued := w.issueTokens(t)
	maps.Copy(issued, w.bindTokens(t, issued["the service's token"], found))
	region := w.gateway(t, "gateway-1", "", "delivery", "apikeys")
	issued["the gateway's token"], issued["the proxies' token"] = region.token, region.proxyToken
	maps.Copy(issued, w.apiKeyRun(t, region, found))
	l := w.fleet(t, 2)
	behind := *w
	behind.addresses, behind.roots = region.address, region.roots(t)
	behind.application(t, l, "behind-the-gateway", "rest", "us")
	a := w.agentApp(t, "agent-0", "rest", "eu", "")
	w.settled(t, "agent-0", 1)
	sick := w.open(t, "sick-canary", "canary", "us")
	stopSick := sick.OnApply(func(_ context.Context, next client.Credential) error {
		if next.Version == 2 {
			// An application that is careless with its errors.
			return fmt.Errorf("login with %s failed", next.Password().RevealString())
		}
		return nil
	})
	defer stopSick()
	endExec := w.exec(t, "exec-1")

	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "a failing canary"}), "rolled-back")
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "a good one"}), "done")
	found.processes(t)
	// A primary that cannot be reached makes effects, and the log, speak of errors.
	proxy := pgtest.NewProxy(t, w.primary.Addr())
	w.apply(t, strings.Replace(w.keyDocument(proxy.Addr()), "sslmode=disable", "sslmode=disable&connect_timeout=1", 1))
	g, reached, release := at(point{op: "accept", endpoint: "primary", version: 4})
	w.tap.stand(g)
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the primary is cut off"})
	await(t, "the primary is asked", reached)
	proxy.Cut()
	release()
	w.held(t, id, "effect-trouble")
	proxy.Restore()
	w.finish(t, id, "done")
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "an emergency", Emergency: true}), "done")
	// A read by hand, and one that is refused.
	if _, err := w.control.GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: keyName}); err != nil {
		t.Fatal(err)
	}
	stranger := http.Client{Transport: bearer{w.token + "x", w.client.Transport.(bearer).next}}
	if response, err := stranger.Get(w.address() + "/metrics"); err != nil || response.Body.Close() != nil || response.StatusCode == http.StatusOK {
		t.Errorf("a wrong token: %v, %v", response, err)
	}
	found.processes(t)
	w.fromServer(t, found)
	endExec()
	a.stop(t)

	tokens := w.tokens(t, a)
	found["the server's log"] = []byte(w.logs.String())
	found["the agent's log"] = []byte(a.logs.String())
	found["the gateway's metrics"], found["the gateway's log"] = []byte(region.scrape(t)), []byte(region.logs.String())
	// The tokens' own files, the keeper's key and the operator's password are where
	// they belong; everything else in the folders is looked at, with the database,
	// its WAL and -shm as they are while the server runs.
	found.folder(t, w.dir, "root.token", "rotator.password", "kek.json", "ca.key", "audit.key", "gateway-1.token", "gateway-1.proxies")
	found.folder(t, a.dir, "db.json", "token")
	for _, path := range []string{"/page", "/v1/traces"} {
		found["sent to "+path] = []byte(strings.Join(w.heard.all(path), "\n"))
	}
	found.file(t, w.primary.LogFile())
	found.file(t, w.standby.LogFile())

	secrets := tokens
	maps.Copy(secrets, issued)
	for i, password := range w.tap.passwords() {
		secrets[fmt.Sprintf("password %d", i+1)] = password
	}
	if len(w.tap.passwords()) < 5 {
		t.Errorf("only %d passwords were minted", len(w.tap.passwords()))
	}
	sum := 0
	for place, content := range found {
		sum += len(content)
		for _, leak := range leaks(secrets, content) {
			t.Errorf("%s contains %s", place, leak)
		}
	}
	t.Logf("%d secrets were looked for in %d places of %d bytes", len(secrets), len(found), sum)
	for _, part := range []string{"keyturn.db", "keyturn.db-wal", "/cmdline", "metrics", "bundle", "the backup", "decrypted backup", "/v1/traces", "evidence summary.md", "webhooks of partners", "apikey show", "the log of the SDK", "what a resource was sent", "cache.db", "cache.db-wal", "the gateway's metrics", "the gateway's log"} {
		looked := false
		for place, content := range found {
			looked = looked || strings.HasSuffix(place, part) && len(content) > 0
		}
		if !looked {
			t.Errorf("%s was not looked at", part)
		}
	}
	// The same places, with one secret planted: the scan must be able to fail.
	db := found[filepath.Join(w.config.DataDir, "keyturn.db")]
	if planted := append(bytes.Clone(db), secrets["password 1"]...); len(leaks(secrets, planted)) == 0 {
		t.Error("a planted password was not found")
	}
	l.check(t)
}

// tokens are the tokens of the run, read from where they belong.
func (w *world) tokens(t *testing.T, a *agentApp) map[string]string {
	t.Helper()
	own, err := os.ReadFile(a.config.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"the root token": w.token, "the agent's token": strings.TrimSpace(string(own)), "the join token": a.joinToken}
}

// fromServer adds what the server tells: metrics, the audit bundle, every answer
// about rotations, parties and keys.
func (w *world) fromServer(t *testing.T, found places) {
	t.Helper()
	response, err := w.client.Get(w.address() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if found["metrics"], err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	bundle, err := w.control.ExportLog(t.Context(), &keyturnv1.ExportLogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for bundle.Receive() {
		found["audit bundle"] = append(found["audit bundle"], bundle.Msg().GetPiece()...)
	}
	if err := bundle.Err(); err != nil {
		t.Fatal(err)
	}
	w.backup(t, found)
	rotations, err := w.control.ListRotations(t.Context(), &keyturnv1.ListRotationsRequest{Key: keyName})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rotations.GetRotations() {
		found["rotation "+r.GetId()] = []byte(r.String() + w.timeline(t, r.GetId()))
	}
	w.evidence(t, rotations.GetRotations()[0].GetId(), found)
	parties, err := w.control.ListParties(t.Context(), &keyturnv1.ListPartiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	found["the parties"] = []byte(parties.String())
	found["the key"] = []byte(w.key(t).String())
}

// evidence adds every file of an evidence pack.
func (w *world) evidence(t *testing.T, id string, found places) {
	t.Helper()
	path := filepath.Join(w.dir, "evidence.zip")
	if code, stdout, stderr := w.keyturn(t, "", "evidence", "pack", id, "-o", path); code != 0 {
		t.Fatalf("the evidence: %s%s", stdout, stderr)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range unzip(t, content) {
		found["evidence "+name] = body
	}
}

// backup adds a backup, as it leaves the server and as its recipient reads it.
func (w *world) backup(t *testing.T, found places) {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := w.control.Backup(t.Context(), &keyturnv1.BackupRequest{Recipients: []string{identity.Recipient().String()}})
	if err != nil {
		t.Fatal(err)
	}
	var sealed []byte
	whole := false
	for stream.Receive() {
		sealed = append(sealed, stream.Msg().GetPiece()...)
		whole = stream.Msg().GetManifest() != nil
	}
	if stream.Err() != nil || !whole {
		t.Fatalf("the backup is not whole: %v", stream.Err())
	}
	plain, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if err != nil {
		t.Fatal(err)
	}
	if found["the decrypted backup"], err = io.ReadAll(plain); err != nil {
		t.Fatal(err)
	}
	found["the backup"] = sealed
}

// exec runs a program with the key in its environment, as keyturn exec does,
// until end is called.
func (w *world) exec(t *testing.T, id string) (end func()) {
	t.Helper()
	delivery, err := client.New(w.party(client.KindClient, id, "rest", "us"))
	if err != nil {
		t.Fatal(err)
	}
	input, output, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		_, err := execute.Run(ctx, execute.Options{
			Delivery: delivery, Keys: []key.Name{keyName}, Command: []string{"/bin/sh", "-c", `test -n "$DB_PASSWORD" && exec cat`},
			Environ: os.Environ(), Stdin: input, Stdout: os.Stderr, Stderr: os.Stderr, OnChange: execute.Restart, Dumpable: true,
			Logger: slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		done <- err
	}()
	w.settled(t, id, w.current(t))
	return func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		_ = input.Close()  // the program has ended
		_ = output.Close() // the program has ended
	}
}
