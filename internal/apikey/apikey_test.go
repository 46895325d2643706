package apikey_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/keytable"
	provided "github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
	"github.com/keyturn/keyturn/secret"
)

// world is a store with nodes on it.
type world struct {
	t      testing.TB
	store  *gatedStore
	keeper keeper.Keeper
	// ahead is how far the nodes' clock is ahead of the machine's.
	ahead atomic.Int64
	log   lockedBuffer

	mu   sync.Mutex
	used []apikey.Used
}

func (w *world) tell(list []apikey.Used) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used = append(w.used, list...)
}

// told adds up what nodes told of uses.
func (w *world) told() map[string]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	sums := map[string]uint64{}
	for _, u := range w.used {
		sums[fmt.Sprintf("%s %v by %s at %s, refused %t", u.Key, u.Version, u.Caller.Application, u.Caller.Address, u.Refused)] += u.Count
	}
	return sums
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// gatedStore is a store that can be taken away from one node.
type gatedStore struct{ store.Store }

// cutOff is a node's way to the store.
type cutOff struct {
	store.Store
	down atomic.Bool
}

var errDown = errors.New("the store does not answer")

func (c *cutOff) View(ctx context.Context, fn func(store.Tx) error) error {
	if c.down.Load() {
		return errDown
	}
	return c.Store.View(ctx, fn)
}

func (c *cutOff) Update(ctx context.Context, fn func(store.Tx) error) error {
	if c.down.Load() {
		return errDown
	}
	return c.Store.Update(ctx, fn)
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "keyturn.db")})
	if err != nil {
		t.Fatal(err)
	}
	k, err := file.Open(file.Config{Path: filepath.Join(dir, "kek.json")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, store: &gatedStore{s}, keeper: k}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

// node starts one; it ends with the test.
func (w *world) node(name string) (*apikey.Service, *cutOff) {
	w.t.Helper()
	way := &cutOff{Store: w.store}
	s := apikey.New(apikey.Config{
		Store: way, Keeper: w.keeper, Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Now: w.now, Node: name, FlushEvery: 20 * time.Millisecond, Used: w.tell,
	})
	s.Start(w.t.Context())
	w.t.Cleanup(func() { s.Stop(context.Background()) })
	return s, way
}

// alone starts a node that writes seldom and has no others.
func (w *world) alone() *apikey.Service {
	w.t.Helper()
	s := apikey.New(apikey.Config{
		Store: w.store, Keeper: w.keeper, Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Now: w.now, Node: "alone", Alone: true, FlushEvery: time.Hour,
	})
	s.Start(w.t.Context())
	w.t.Cleanup(func() { s.Stop(context.Background()) })
	return s
}

// until waits for a condition.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); pause() {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s did not come true", what)
		}
	}
}

// mint draws a key and hashes it.
func (w *world) mint(s *apikey.Service, name key.Name, v key.Version, rules keytable.Rules) (string, keytable.Entry) {
	w.t.Helper()
	text, err := keytable.Draw("kt_test", rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	e := keytable.Entry{Key: name, Version: v, Rules: rules}
	if e.Hash, e.Other, err = s.Hashes(w.t.Context(), secret.NewString(string(text))); err != nil {
		w.t.Fatal(err)
	}
	return string(text), e
}

func (w *world) set(s *apikey.Service, fence uint64, e keytable.Entry, accepted bool) {
	w.t.Helper()
	e.Accepted = accepted
	if err := s.Set(w.t.Context(), fence, e); err != nil {
		w.t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Target {
		w := newWorld(t)
		s, _ := w.node("a")
		return providertest.Target{
			Driver: provided.New(provided.Config{Service: s, Now: w.now}),
			Config: provider.Config{"client": "ACME Ltd.", "prefix": "kt_live", "scopes": []any{"orders:read"}},
			Key:    "partners/acme",
			// Another node, which is there and follows no change.
			Silence: func(t *testing.T, _ string) func() {
				put := func(doc store.Doc) {
					if err := w.store.Update(context.Background(), func(tx store.Tx) error {
						_, err := tx.Docs.Put(context.Background(), doc)
						return err
					}); err != nil {
						t.Fatal(err)
					}
				}
				body, err := json.Marshal(map[string]any{"rev": 1, "at": time.Now().Add(time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				put(store.Doc{Kind: "apikey-node", Name: "deaf", Body: body})
				return sync.OnceFunc(func() {
					if err := w.store.Update(context.Background(), func(tx store.Tx) error {
						doc, err := tx.Docs.Get(context.Background(), "apikey-node", "deaf")
						if err != nil {
							return err
						}
						return tx.Docs.Delete(context.Background(), "apikey-node", "deaf", doc.Rev)
					}); err != nil {
						t.Error(err)
					}
				})
			},
			Output: func(*testing.T) []byte { return []byte(w.log.String()) },
		}
	})
}

// TestEveryNode: once Set has returned, every node lets a new key in, and none a
// refused one.
func TestEveryNode(t *testing.T) {
	w := newWorld(t)
	var nodes []*apikey.Service
	for i := range 3 {
		s, _ := w.node(fmt.Sprint("n", i))
		nodes = append(nodes, s)
	}
	for i := range 20 {
		setter := nodes[i%3]
		text, e := w.mint(setter, key.Name(fmt.Sprint("partners/p", i)), 1, keytable.Rules{Client: "P"})
		w.set(setter, uint64(2*i+1), e, true)
		for j, s := range nodes {
			if v, err := s.Verify(text, apikey.Caller{}); err != nil || v.Key != e.Key || v.Version != 1 {
				t.Fatalf("key %d accepted at node %d: node %d says %v", i, i%3, j, err)
			}
		}
		w.set(nodes[(i+1)%3], uint64(2*i+2), e, false)
		for j, s := range nodes {
			if v, err := s.Verify(text, apikey.Caller{}); !errors.Is(err, apikey.ErrRefused) || v.Key != "" {
				t.Fatalf("key %d refused at node %d: node %d says %v", i, (i+1)%3, j, err)
			}
		}
		if accepted, err := setter.Try(t.Context(), e, secret.NewString(text)); accepted || err != nil {
			t.Fatalf("tried: %v, %v", accepted, err)
		}
	}
}

// TestNodeThatIsCutOff: a node that cannot read the store goes on letting in what
// it knows, does not call a new key bad, keeps a refusal waiting, and by itself
// serves nothing any more in the end.
func TestNodeThatIsCutOff(t *testing.T) {
	w := newWorld(t)
	near, _ := w.node("near")
	far, way := w.node("far")
	text, e := w.mint(near, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(near, 1, e, true)
	way.down.Store(true)
	if _, err := far.Verify(text, apikey.Caller{}); err != nil {
		t.Fatalf("a node without its store refuses what it knows: %v", err)
	}
	w.ahead.Add(int64(time.Minute))
	w.until("a new key is accepted without the node", func() bool {
		newer, other := w.mint(near, "partners/newer", 1, keytable.Rules{Client: "Newer"})
		w.set(near, 2, other, true)
		_, err := near.Verify(newer, apikey.Caller{})
		if _, farErr := far.Verify(newer, apikey.Caller{}); !errors.Is(farErr, apikey.ErrUnsure) {
			t.Errorf("a node that is behind says of a new key: %v", farErr)
		}
		return err == nil
	})
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	e.Accepted = false
	if err := near.Set(short, 3, e); err == nil || !strings.Contains(err.Error(), "far") {
		t.Errorf("a refusal that a node has not heard of: %v", err)
	}
	if _, err := near.Try(short, e, secret.NewString(text)); err == nil {
		t.Error("it counts as refused everywhere")
	}
	w.ahead.Add(int64(10 * time.Minute))
	if _, err := far.Verify(text, apikey.Caller{}); !errors.Is(err, apikey.ErrUnsure) {
		t.Errorf("a node that knows nothing for ten minutes says %v", err)
	}
	w.until("the refusal is complete", func() bool { return near.Set(t.Context(), 4, e) == nil })
	way.down.Store(false)
	w.until("the node is back", func() bool {
		_, err := far.Verify(text, apikey.Caller{})
		return errors.Is(err, apikey.ErrRefused)
	})
}

// TestNodeThatIsLongGone: a server that was last heard of before the longest time,
// such as one that a backup remembers, keeps no refusal waiting.
func TestNodeThatIsLongGone(t *testing.T) {
	w := newWorld(t)
	s, _ := w.node("a")
	text, e := w.mint(s, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(s, 1, e, true)
	remember := func(name string, ago time.Duration) {
		body, err := json.Marshal(map[string]any{"rev": 1, "at": w.now().Add(-ago)})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.store.Update(t.Context(), func(tx store.Tx) error {
			_, err := tx.Docs.Put(t.Context(), store.Doc{Kind: "apikey-node", Name: name, Body: body})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	remember("gone", time.Hour)
	w.set(s, 2, e, false)
	if _, err := s.Verify(text, apikey.Caller{}); !errors.Is(err, apikey.ErrRefused) {
		t.Errorf("after the refusal: %v", err)
	}
	w.set(s, 3, e, true)
	remember("killed", 20*time.Second)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	e.Accepted = false
	if err := s.Set(short, 4, e); err == nil || !strings.Contains(err.Error(), "killed") || strings.Contains(err.Error(), "gone") {
		t.Errorf("a refusal with a server that was killed just now: %v", err)
	}
}

// TestEqualHashesAreRefused: a version with the hash of another one is not accepted.
func TestEqualHashesAreRefused(t *testing.T) {
	w := newWorld(t)
	s, _ := w.node("a")
	text, e := w.mint(s, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(s, 1, e, true)
	e.Key, e.Accepted = "partners/other", true
	if err := s.Set(t.Context(), 2, e); !errors.Is(err, keytable.ErrTaken) {
		t.Errorf("the same hash for another key: %v", err)
	}
	if v, err := s.Verify(text, apikey.Caller{}); err != nil || v.Key != "partners/acme" {
		t.Errorf("afterwards: %+v, %v", v, err)
	}
}

// TestSmallerFence: a call that lost its lease and comes late changes nothing.
func TestSmallerFence(t *testing.T) {
	w := newWorld(t)
	s, _ := w.node("a")
	text, e := w.mint(s, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(s, 9, e, true)
	if err := s.Set(t.Context(), 8, e); !errors.Is(err, apikey.ErrFenced) || !provider.IsPermanent(err) {
		t.Errorf("a late refusal: %v", err)
	}
	if _, err := s.Verify(text, apikey.Caller{}); err != nil {
		t.Errorf("after the late call: %v", err)
	}
}

// TestUsesOfAllNodes: every use is counted once, by whom, and a node that does not
// tell makes the count no count.
func TestUsesOfAllNodes(t *testing.T) {
	w := newWorld(t)
	a, _ := w.node("a")
	b, way := w.node("b")
	text, e := w.mint(a, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(a, 1, e, true)
	uses := func() provider.Usage {
		t.Helper()
		u, err := a.Uses(t.Context(), e.Key, 1)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if u := uses(); u.Sessions != 0 || len(u.Holders) != 0 {
		t.Errorf("before any use: %+v", u)
	}
	for range 3 {
		for _, s := range []*apikey.Service{a, b} {
			if _, err := s.Verify(text, apikey.Caller{Address: "192.0.2.7", Application: "billing"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	u := uses()
	if u.Sessions != 6 || len(u.Holders) != 2 || u.Holders[0] != (provider.Holder{Endpoint: "keyturn", Address: "192.0.2.7", Application: "billing", Sessions: 3}) {
		t.Errorf("after six uses: %+v", u)
	}
	w.ahead.Add(int64(time.Minute))
	if u := uses(); u.Sessions != 0 {
		t.Errorf("a minute later: %+v", u)
	}
	if _, err := b.Verify(text, apikey.Caller{Application: "late"}); err != nil {
		t.Fatal(err)
	}
	way.down.Store(true)
	w.ahead.Add(int64(time.Second))
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if u, err := a.Uses(short, e.Key, 1); !errors.Is(err, provider.ErrNoData) || !strings.Contains(err.Error(), "b") {
		t.Errorf("a node does not tell: %+v, %v", u, err)
	}
	way.down.Store(false)
	if u := uses(); u.Sessions != 1 || u.Holders[0].Application != "late" {
		t.Errorf("once it tells again: %+v", u)
	}
}

// TestSilentVerifierIsNoData: a verifier outside the server that was given a snapshot
// keeps changes waiting until it confirms them, and makes use unknown until it tells
// of it; one that leaves does neither.
func TestSilentVerifierIsNoData(t *testing.T) {
	w := newWorld(t)
	s, _ := w.node("a")
	_, e := w.mint(s, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(s, 1, e, true)
	v := apikey.Verifier{ID: "one", MaxAge: time.Hour, Covers: func(key.Name) bool { return true }}
	ctx, cancel := context.WithCancel(t.Context())
	var streaming sync.WaitGroup
	defer streaming.Wait()
	defer cancel()
	lines := make(chan string, 100)
	streaming.Go(func() {
		_ = s.Snapshot(ctx, v, func(b []byte) error { // it ends with the test
			lines <- string(b)
			return nil
		})
	})
	for sent := ""; !strings.Contains(sent, `"key":"partners/acme"`) || !strings.Contains(sent, `"rev":`); {
		sent += <-lines
	}
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if u, err := s.Uses(short(), e.Key, 1); !errors.Is(err, provider.ErrNoData) || !strings.Contains(err.Error(), "verifier one") {
		t.Errorf("a verifier has not told: %+v, %v", u, err)
	}
	if err := s.Set(short(), 2, e); err == nil || !strings.Contains(err.Error(), "verifier one") {
		t.Errorf("a refusal that a verifier has not confirmed: %v", err)
	}
	report := func(r apikey.Report) {
		t.Helper()
		if err := s.Report(&v, &r); err != nil {
			t.Fatal(err)
		}
	}
	uses := []apikey.ReportUse{
		{Key: e.Key, Version: 1, Count: 3, Address: "192.0.2.7", Application: "one"}, {Key: "partners/unknown", Version: 9, Count: 5},
	}
	told := make(chan provider.Usage, 1)
	go func() {
		u, err := s.Uses(t.Context(), e.Key, 1)
		if err != nil {
			t.Error(err)
		}
		told <- u
	}()
	var u provider.Usage
	for waiting := true; waiting; { // it reports again and again, the uses once
		report(apikey.Report{Rev: 1 << 62, Uses: uses})
		uses = nil
		select {
		case u = <-told:
			waiting = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	if u.Sessions != 3 || len(u.Holders) != 1 || u.Holders[0].Address != "192.0.2.7" {
		t.Errorf("the uses that were reported: %+v", u)
	}
	w.set(s, 3, e, false)
	report(apikey.Report{Leaving: true})
	if _, err := s.Uses(t.Context(), e.Key, 1); err != nil {
		t.Errorf("after the verifier has left: %v", err)
	}
	w.set(s, 4, e, true)
}

// TestFailuresLookTheSame: whatever is wrong with a key of the right form, the
// answer is one and the same value, and nothing is told of whose it is.
func TestFailuresLookTheSame(t *testing.T) {
	w := newWorld(t)
	s, _ := w.node("a")
	refused, e := w.mint(s, "partners/refused", 1, keytable.Rules{Client: "R"})
	w.set(s, 1, e, false)
	expired, e := w.mint(s, "partners/expired", 1, keytable.Rules{Client: "E", Expires: time.Now().Add(-time.Hour)})
	w.set(s, 2, e, true)
	unknown, _ := w.mint(s, "partners/unknown", 1, keytable.Rules{})
	for what, text := range map[string]string{"refused": refused, "expired": expired, "unknown": unknown, "malformed": unknown[:40], "empty": ""} {
		v, err := s.Verify(text, apikey.Caller{})
		if err != apikey.ErrRefused || v.Key != "" || v.Client != "" || v.Version != 0 || v.Scopes != nil || !v.Expires.IsZero() || v.Left != 0 { //nolint:errorlint // the very same
			t.Errorf("%s: %+v, %v", what, v, err)
		}
	}
}

// TestNothingIsStoredInPlaintext: neither a key nor the pepper is in the database.
func TestNothingIsStoredInPlaintext(t *testing.T) {
	w := newWorld(t)
	s, _ := w.node("a")
	text, e := w.mint(s, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(s, 1, e, true)
	err := w.store.View(t.Context(), func(tx store.Tx) error {
		for _, kind := range []string{"apikey", "apikey-pepper", "apikey-node", "apikey-use"} {
			docs, err := tx.Index.List(t.Context(), kind, "", "", 100)
			if err != nil {
				return err
			}
			for _, doc := range docs {
				if bytes.Contains(doc.Body, []byte(text)) || bytes.Contains(doc.Body, []byte(text[8:38])) {
					t.Errorf("the key is in document %s %s", doc.Kind, doc.Name)
				}
			}
			if kind == "apikey-pepper" && (len(docs) != 1 || !bytes.HasPrefix(docs[0].Body, []byte("KTE"))) {
				t.Error("the pepper is not there, or not sealed")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pause lets the nodes go on: they work in real time, on a real store.
func pause() { <-time.After(time.Millisecond) }
