package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

const (
	// refusedService is the limit for an API key, of which the server's nodes are the
	// verifiers. Signing keys may take twice as long as readers keep their sets and
	// clocks differ.
	refusedService = 1000
	setLife        = time.Second
	clockSkew      = 2 * time.Second // that of the server's signer
	readerCount    = 3
)

const serviceDocuments = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: services}
spec:
  stages: [{name: all, bake: 0s, ackTimeout: 5s, onEmpty: skip}]
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 0s
  endQuarantineEarly: true
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/orders/db, labels: {team: stolen}}
spec:
  provider: %s
  policy: services
  config: %s
`

// BenchmarkEmergencyAPIKey contains an API key: from the call that declares it until the
// last verifier is proven to refuse it. The floor is when the verify call first
// refuses it, asked all the time.
func BenchmarkEmergencyAPIKey(b *testing.B) {
	w := newWorld(b, nil, fmt.Sprintf(serviceDocuments, "apikey", `{client: ACME Ltd., prefix: acme_live, keep: sealed}`))
	token, text := w.verifierToken(b), w.newKey(b)
	var ours, floor []time.Duration
	for range emergencies {
		body, err := json.Marshal(map[string]string{"key": text})
		if err != nil {
			b.Fatal(err)
		}
		lets := func(ctx context.Context) (bool, error) {
			answer, _, err := w.ask(ctx, http.MethodPost, "/v1/apikeys/verify", token, body)
			return bytes.Contains(answer, []byte(`"valid":true`)), err
		}
		took, outside := w.containWatched(b, lets)
		ours, floor = append(ours, took), append(floor, outside)
		text = w.currentKey(b)
	}
	scoreboard.add(b, result{Name: "emergency_apikey", Unit: "ms", Ours: milliseconds(median(ours)), Floor: milliseconds(median(floor)), limit: refusedService})
}

// BenchmarkEmergencySigningKey contains a key that signs tokens and has three registered
// readers, who keep the set for as long as they may: from the call until the last of
// these is proven to refuse it, of which the floor is when the last one's set is without
// the key; and until nobody else can hold a set with it either, of which the floor is
// how long anybody may hold one, by a clock that differs as far as is allowed for.
func BenchmarkEmergencySigningKey(b *testing.B) {
	w := newWorld(b, nil, strings.Split(serviceDocuments, "\n---\n")[0])
	verifiers := "{name: reader-0}, {name: reader-1}, {name: reader-2}"
	w.apply(b, fmt.Sprintf(serviceDocuments, "jwks", fmt.Sprintf("{issuer: %s/orders, algorithm: EdDSA, tokenLife: 2s, cacheLife: %v, audience: orders, verifiers: [%s]}", w.address, setLife, verifiers)))
	ctx, cancel := context.WithCancel(b.Context())
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	readers := make([]setReader, readerCount)
	for i := range readers {
		reading.Go(func() { readers[i].run(ctx, b, w, fmt.Sprintf("/orders/.well-known/jwks/reader-%d.json", i)) })
	}
	w.rotateKey(b, keyName, time.Minute)
	var all, ours, floor []time.Duration
	for range emergencies {
		secret, err := w.control.GetSecret(b.Context(), &keyturnv1.GetSecretRequest{Name: keyName})
		if err != nil {
			b.Fatal(err)
		}
		kid := secret.GetAttributes()["kid"]
		began := time.Now()
		took, outside := w.containWatched(b, func(context.Context) (bool, error) {
			for i := range readers {
				if readers[i].knows(kid) {
					return true, nil
				}
			}
			return false, nil
		})
		all, ours, floor = append(all, took), append(ours, w.readersRefused(b).Sub(began)), append(floor, outside)
	}
	scoreboard.add(b, result{Name: "emergency_jwks_readers", Unit: "ms", Ours: milliseconds(median(ours)), Floor: milliseconds(median(floor)), limit: 2 * milliseconds(setLife+clockSkew)})
	scoreboard.add(b, result{Name: "emergency_jwks", Unit: "ms", Ours: milliseconds(median(all)), Floor: milliseconds(setLife + clockSkew), limit: 2 * milliseconds(setLife+clockSkew)})
}

// readersRefused is when the last registered reader was proven to refuse what the last
// emergency contained.
func (w *world) readersRefused(b *testing.B) (last time.Time) {
	b.Helper()
	list, err := w.control.ListRotations(b.Context(), &keyturnv1.ListRotationsRequest{Key: keyName, PageSize: 1})
	if err != nil || len(list.GetRotations()) == 0 {
		b.Fatal(list, err)
	}
	r, err := w.control.GetRotation(b.Context(), &keyturnv1.GetRotationRequest{Id: list.GetRotations()[0].GetId()})
	if err != nil {
		b.Fatal(err)
	}
	refused := 0
	for _, e := range r.GetTimeline() {
		if e.GetEvent() == "verifier.acceptance" && strings.Contains(e.GetMessage(), "reader-") && strings.Contains(e.GetMessage(), "→ refused") {
			refused++
			last = e.GetAt().AsTime()
		}
	}
	if refused != readerCount {
		b.Fatalf("%d readers refused, want %d", refused, readerCount)
	}
	return last
}

// containWatched is contain for one key, and returns besides after which time nobody
// let it in any more, by looking from outside.
func (w *world) containWatched(b *testing.B, lets func(context.Context) (bool, error)) (proven, outside time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if in, err := lets(ctx); err != nil || !in {
		b.Fatalf("before the emergency it is let in: %v, %v", in, err)
	}
	var looking sync.WaitGroup
	began := time.Now()
	looking.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			in, err := lets(ctx)
			if err != nil {
				b.Error(err)
				return
			}
			if !in {
				outside = time.Since(began)
				return
			}
			<-tick.C
		}
		b.Error("it is let in for ever")
	})
	proven = w.containOf(b, 1)
	looking.Wait()
	return proven, outside
}

// ask calls the server, and returns the body of the answer and for how long it may be
// kept.
func (w *world) ask(ctx context.Context, method, path, token string, body []byte) ([]byte, time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, method, w.address+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := w.plain.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode >= http.StatusInternalServerError {
		err = fmt.Errorf("%s: %s", response.Status, answer)
	}
	var seconds int
	for part := range strings.SplitSeq(response.Header.Get("Cache-Control"), ",") {
		if _, scanned := fmt.Sscanf(strings.TrimSpace(part), "max-age=%d", &seconds); scanned == nil {
			break
		}
	}
	return answer, time.Duration(seconds) * time.Second, err
}

// setReader keeps a key set as long as it may.
type setReader struct {
	mu  sync.Mutex
	set []byte
}

func (r *setReader) run(ctx context.Context, b *testing.B, w *world, path string) {
	for ctx.Err() == nil {
		set, life, err := w.ask(ctx, http.MethodGet, path, "", nil)
		if err != nil && !errors.Is(err, context.Canceled) {
			b.Error(err)
			return
		}
		r.mu.Lock()
		r.set = set
		r.mu.Unlock()
		timer := time.NewTimer(max(life, 10*time.Millisecond))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (r *setReader) knows(kid string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Contains(r.set, []byte(kid))
}
