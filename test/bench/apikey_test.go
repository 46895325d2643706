package bench

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/apikeycheck"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const apiKeyDocuments = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: partners}
spec:
  stages: [{name: all, bake: 0s}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
  endQuarantineEarly: true
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/orders/db}
spec:
  provider: apikey
  policy: partners
  config: {client: ACME Ltd., prefix: acme_live, scopes: ["orders:read"], keep: sealed}
`

const (
	// verifyRatio is the least part of the floor's rate over the API.
	verifyRatio = 0.7
	// localRate is in verifications per second of one processor.
	localRate    = 1e6
	tableKeys    = 1_000_000
	tableLimit   = 300 // MiB
	refusedLimit = 1000
	verifiers    = 1000
	refusals     = 5
	// verifyPart is how many verifications are measured at once, before it is the
	// other side's turn.
	verifyPart  = 4000
	verifyParts = 5
	verifyCalls = 16 // at the same time
)

// newKey mints the key's first version and returns it.
func (w *world) newKey(b *testing.B) string {
	b.Helper()
	w.rotate(b)
	return w.currentKey(b)
}

func (w *world) currentKey(b *testing.B) string {
	b.Helper()
	revealed, err := w.control.GetSecret(b.Context(), &keyturnv1.GetSecretRequest{Name: keyName})
	if err != nil {
		b.Fatal(err)
	}
	return string(revealed.GetSecrets()["key"])
}

func (w *world) verifierToken(b *testing.B) string {
	b.Helper()
	token, err := w.control.CreateToken(b.Context(), &keyturnv1.CreateTokenRequest{Name: "bench", Role: "verifier", Keys: []string{"**"}})
	if err != nil {
		b.Fatal(err)
	}
	return token.GetToken()
}

// BenchmarkVerifyOverAPI compares the rate of verifications over the API with that
// of a handler over the same TLS and HTTP that decodes the request, hashes the key
// and encodes the answer, in turns; per second of processor time, client included
// on both sides.
func BenchmarkVerifyOverAPI(b *testing.B) {
	w := newWorld(b, nil, apiKeyDocuments)
	text, token := w.newKey(b), w.verifierToken(b)
	floor := floorServer(b)
	roots := w.roots.Clone()
	roots.AddCert(floor.Certificate())
	for b.Loop() {
		var ours, least time.Duration
		for range verifyParts {
			ours += call(b, w.address+"/v1/apikeys/verify", token, text, &tls.Config{RootCAs: roots})
			least += call(b, floor.URL, token, text, &tls.Config{RootCAs: roots})
		}
		const n = verifyPart * verifyParts
		scoreboard.add(b, result{
			Name: "apikey-verify-api", Unit: "per-cpu-s", Ours: n / ours.Seconds(), Floor: n / least.Seconds(),
			limit: verifyRatio * n / least.Seconds(), more: true,
		})
	}
}

// floorServer decodes, hashes and encodes, and no more.
func floorServer(b *testing.B) *httptest.Server {
	b.Helper()
	floor := httptest.NewUnstartedServer(http.HandlerFunc(floorVerify))
	floor.EnableHTTP2 = true
	floor.StartTLS()
	b.Cleanup(floor.Close)
	return floor
}

// floorVerify decodes, hashes and encodes.
func floorVerify(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Key, Address, Application string
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &request)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	mac := hmac.New(sha256.New, []byte("a pepper of thirty-two characters"))
	_, _ = mac.Write([]byte(request.Key)) // a hash never fails
	sum := mac.Sum(nil)
	answer, err := json.Marshal(map[string]any{
		"valid": sum[0] < 255, "key": keyName, "version": 1, "client": "ACME Ltd.", "scopes": []string{"orders:read"},
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // the caller is gone if this fails
}

// call makes verifyPart calls and returns the processor time that they took.
func call(b *testing.B, url, token, text string, config *tls.Config) time.Duration {
	b.Helper()
	transport := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: bearer{token, transport}}
	body, err := json.Marshal(map[string]string{"key": text, "address": "192.0.2.7", "application": "billing"})
	if err != nil {
		b.Fatal(err)
	}
	one := func() error {
		request, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }() // it was read
		answer, err := io.ReadAll(response.Body)
		if err == nil && !bytes.Contains(answer, []byte(`"valid":true`)) {
			err = fmt.Errorf("status %d: %s", response.StatusCode, answer)
		}
		return err
	}
	return calls(b, one)
}

// calls makes verifyPart calls and returns the processor time that they took.
func calls(b *testing.B, one func() error) time.Duration {
	b.Helper()
	if err := one(); err != nil { // the connection
		b.Fatal(err)
	}
	runtime.GC()
	before := cpu(b)
	var running sync.WaitGroup
	for range verifyCalls {
		running.Go(func() {
			for range verifyPart / verifyCalls {
				if err := one(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
	return cpu(b) - before
}

// BenchmarkVerifyLocally is the rate at which one processor verifies by a snapshot,
// of a service's own, compared with bare HMAC-SHA-256 of as many characters.
func BenchmarkVerifyLocally(b *testing.B) {
	w := newWorld(b, nil, apiKeyDocuments)
	text := w.newKey(b)
	checker, err := apikeycheck.Open(b.Context(), apikeycheck.Config{Address: w.address, Token: client.StaticToken(secret.NewString(w.verifierToken(b))), RootCAs: w.roots})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := checker.Close(b.Context()); err != nil {
			b.Error(err)
		}
	}()
	check := func() {
		if _, err := checker.Check(text, ""); err != nil {
			b.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(1000, check); n != 0 {
		b.Errorf("%v allocations for each verification", n)
	}
	mac := hmac.New(sha256.New, []byte("pepper"))
	out := make([]byte, 0, sha256.Size)
	in := []byte(text)
	const n = 500_000
	for b.Loop() {
		ours := busy(b, n, check)
		least := busy(b, n, func() {
			mac.Reset()
			_, _ = mac.Write(in) // a hash never fails
			out = mac.Sum(out[:0])
		})
		scoreboard.add(b, result{
			Name: "apikey-verify-local", Unit: "per-cpu-s", Ours: n / ours.Seconds(), Floor: n / least.Seconds(), limit: localRate, more: true,
		})
	}
}

// busy is the processor time of n calls.
func busy(b *testing.B, n int, do func()) time.Duration {
	b.Helper()
	runtime.GC()
	before := cpu(b)
	for range n {
		do()
	}
	return cpu(b) - before
}

// BenchmarkAPIKeyTable is what a million versions of a million clients take in
// memory, compared with their hashes alone.
func BenchmarkAPIKeyTable(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		table := keytable.New()
		for i := range tableKeys {
			e := keytable.Entry{
				Key: key.Name(fmt.Sprintf("partners/client-%d", i)), Version: 1, Accepted: true,
				Rules: keytable.Rules{Client: fmt.Sprintf("Client Number %d", i), Scopes: []string{"orders:read", "orders:write"}, PerSecond: 10, Burst: 20},
			}
			_, _ = rand.Read(e.Hash[:])  // never fails
			_, _ = rand.Read(e.Other[:]) // never fails
			if err := table.Put(&e); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		const mib = 1 << 20
		scoreboard.add(b, result{
			Name: "apikey-table-1M", Unit: "MiB", Ours: float64(after.HeapInuse-before.HeapInuse) / mib, Floor: 2 * sha256.Size * tableKeys / float64(mib), limit: tableLimit,
		})
		if table.Len() != tableKeys {
			b.Fatal("versions are missing")
		}
	}
}

// BenchmarkRefusal measures how long it takes until each of a thousand verifiers
// outside the server refuses a key, from the command that revokes it in an
// emergency on. The floor is the fastest of them: the rest is what it takes to tell
// the others.
func BenchmarkRefusal(b *testing.B) {
	w := newWorld(b, nil, apiKeyDocuments)
	token := client.StaticToken(secret.NewString(w.verifierToken(b)))
	text := w.newKey(b)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	var checkers []*apikeycheck.Checker
	for i := range verifiers {
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		checker, err := apikeycheck.Open(ctx, apikeycheck.Config{
			Address: w.address, Token: token, Name: fmt.Sprint("verifier-", i), ReportEvery: 10 * time.Second, HTTPClient: &http.Client{Transport: transport},
		})
		cancel()
		if err != nil {
			b.Fatal(err)
		}
		checkers = append(checkers, checker)
	}
	for b.Loop() {
		var all []time.Duration
		for range refusals {
			all = append(all, w.refuseAt(b, checkers, text)...)
			text = w.currentKey(b)
		}
		scoreboard.add(b, result{
			Name: "apikey-refused-p99", Unit: "ms", Ours: milliseconds(quantile(all, 0.99)), Floor: milliseconds(quantile(all, 0.01)), limit: refusedLimit,
		})
	}
	var closing sync.WaitGroup
	for _, checker := range checkers {
		closing.Go(func() {
			if err := checker.Close(context.WithoutCancel(b.Context())); err != nil {
				b.Error(err)
			}
		})
	}
	closing.Wait()
}

// refuseAt revokes the key and returns after which time each verifier refused it.
func (w *world) refuseAt(b *testing.B, checkers []*apikeycheck.Checker, text string) []time.Duration {
	b.Helper()
	took := make([]time.Duration, len(checkers))
	began := time.Now()
	emergency, err := w.control.Rotate(b.Context(), &keyturnv1.RotateRequest{Name: keyName, Reason: "leaked", Emergency: true, Strategy: "contain-first"})
	if err != nil {
		b.Fatal(err)
	}
	left := len(checkers)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := began.Add(time.Minute); left > 0; <-tick.C {
		if time.Now().After(deadline) {
			b.Fatalf("%d verifiers still let the key in", left)
		}
		for i, checker := range checkers {
			if took[i] != 0 {
				continue
			}
			if _, err := checker.Check(text, ""); err != nil {
				took[i] = time.Since(began)
				left--
			}
		}
	}
	stream, err := w.control.WatchRotation(b.Context(), &keyturnv1.WatchRotationRequest{Id: emergency.GetRotationId()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = stream.Close() }() // enough was seen
	for stream.Receive() && !stream.Msg().GetRotation().GetEnded() {
	}
	return took
}
