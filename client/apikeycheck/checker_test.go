package apikeycheck_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// pepper is what the test's server has keys hashed with.
const pepper = "0123456789abcdef0123456789abcdef"

// server sends snapshots, and takes reports.
type server struct {
	t    testing.TB
	http *httptest.Server
	// ahead is how far the checkers' clock is ahead.
	ahead atomic.Int64

	mu      sync.Mutex
	lines   []keytable.Line
	rev     uint64
	changed chan struct{}
	reports []report
}

type report struct {
	Rev     uint64
	Leaving bool
	Uses    []struct {
		Key                  key.Name
		Version              key.Version
		Count                uint32
		Address, Application string
		Refused              bool
	}
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{t: t, rev: 1, changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/apikeys/snapshot", s.snapshot)
	mux.HandleFunc("POST /v1/apikeys/report", s.report)
	s.http = httptest.NewUnstartedServer(mux)
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.http.StartTLS()
	t.Cleanup(s.stop)
	return s
}

// stop ends the server with what is connected to it.
func (s *server) stop() {
	s.http.CloseClientConnections()
	s.http.Close()
}

// change sends every stream everything anew, from other memory than before.
func (s *server) change(lines ...keytable.Line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, lines...)
	s.rev++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *server) snapshot(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer token" || r.URL.Query().Get("verifier") != "test" {
		http.Error(w, "who?", http.StatusUnauthorized)
		return
	}
	for {
		s.mu.Lock()
		lines, rev, changed := slices.Clone(s.lines), s.rev, s.changed
		s.mu.Unlock()
		all := append([]keytable.Line{{Pepper: []byte(pepper)}, {Reset: true}}, append(lines, keytable.Line{Rev: rev})...)
		for i := range all {
			line, err := all[i].Encode()
			if err != nil {
				s.t.Error(err)
			}
			if _, err := w.Write(line); err != nil {
				return
			}
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *server) report(w http.ResponseWriter, r *http.Request) {
	var one report
	if err := json.NewDecoder(r.Body).Decode(&one); err != nil {
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports = append(s.reports, one)
}

// told adds up what was reported of a version.
func (s *server) told(v key.Version, refused bool) (n uint32, addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.reports {
		for _, u := range s.reports[i].Uses {
			if u.Version == v && u.Refused == refused && u.Key == "partners/acme" {
				n += u.Count
				addresses = append(addresses, u.Address)
			}
		}
	}
	return n, addresses
}

// mint makes a version; it is let in if accepted.
func (s *server) mint(v key.Version, accepted bool) (string, keytable.Line) {
	s.t.Helper()
	text, err := keytable.Draw("kt_test", rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	hash, err := keytable.NewHasher([]byte(pepper)).Sum(text)
	if err != nil {
		s.t.Fatal(err)
	}
	e := keytable.Entry{Key: "partners/acme", Version: v, Other: hash, Accepted: accepted, Rules: keytable.Rules{Client: "ACME"}}
	return string(text), keytable.LineOf(&e, false)
}

func (s *server) config() apikeycheck.Config {
	roots := x509.NewCertPool()
	roots.AddCert(s.http.Certificate())
	return apikeycheck.Config{
		Address: s.http.URL, Token: client.StaticToken(secret.NewString("token")), RootCAs: roots, Name: "test", MaxAge: 10 * time.Minute, ReportEvery: 5 * time.Millisecond,
		Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) },
	}
}

func (s *server) open(config apikeycheck.Config) *apikeycheck.Checker {
	s.t.Helper()
	c, err := apikeycheck.Open(s.t.Context(), config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx) // the server may be gone
	})
	return c
}

// until waits for a condition.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come true", what)
		}
	}
}

// TestServerIsDown: without a server, keys that are known are let in until MaxAge is
// over, and not longer; one that is not known is refused only while the server was
// heard of a moment ago.
func TestServerIsDown(t *testing.T) {
	s := newServer(t)
	good, line := s.mint(1, true)
	old, oldLine := s.mint(2, false)
	s.change(line, oldLine)
	unknown, _ := s.mint(3, true)
	c := s.open(s.config())
	check := func(when string, want map[string]error) {
		t.Helper()
		for text, want := range want {
			if r, err := c.Check(text, ""); !errors.Is(err, want) || (err == nil) != (r.Client == "ACME") {
				t.Errorf("%s: %+v, %v, want %v", when, r, err, want)
			}
		}
	}
	check("while it is there", map[string]error{good: nil, old: apikeycheck.ErrRefused, unknown: apikeycheck.ErrRefused, "x": apikeycheck.ErrRefused})
	until(t, "a report", func() bool { n, _ := s.told(1, false); return n == 1 })
	s.stop()
	for _, at := range []struct {
		after    time.Duration
		good     error
		unknown  error
		whatever string
	}{
		{5 * time.Second, nil, apikeycheck.ErrRefused, "a moment after"},
		{13 * time.Second, nil, apikeycheck.ErrUnsure, "a little after"},
		{9*time.Minute + 50*time.Second, nil, apikeycheck.ErrUnsure, "long after"},
		{10*time.Minute + 5*time.Second, apikeycheck.ErrUnsure, apikeycheck.ErrUnsure, "too long after"},
	} {
		s.ahead.Store(int64(at.after))
		check(at.whatever, map[string]error{good: at.good, old: at.unknown, unknown: at.unknown, "x": apikeycheck.ErrRefused})
	}
}

// TestOutageIsToldOnce: a server that is away fills no log, however often it is tried.
func TestOutageIsToldOnce(t *testing.T) {
	s := newServer(t)
	_, line := s.mint(1, true)
	s.change(line)
	var log bytes.Buffer
	config := s.config()
	config.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, err := apikeycheck.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	until(t, "it is tried again and again", func() bool { return c.Age() > 2*time.Second })
	_ = c.Close(t.Context()) // there is no server; nothing writes into the log any more
	const said = `"msg":"the stream of API keys ended`
	warned, all := strings.Count(log.String(), `"level":"WARN",`+said), strings.Count(log.String(), said)
	if warned == 0 || warned > 2 || all < 4 { // one for the stream that broke, one for those that could not be made
		t.Errorf("%d of %d tries are warnings:\n%s", warned, all, log.String())
	}
}

// TestSnapshotsSwapUnderLoad: while whole snapshots take each other's place and keys
// are checked all the time, a good key is never refused, a refused one never let in,
// and every use is reported once; at least once when connections break as well.
func TestSnapshotsSwapUnderLoad(t *testing.T) {
	t.Run("steady", func(t *testing.T) { swapUnderLoad(t, false) })
	t.Run("breaking", func(t *testing.T) { swapUnderLoad(t, true) })
}

func swapUnderLoad(t *testing.T, breaking bool) {
	t.Helper()
	s := newServer(t)
	good, line := s.mint(1, true)
	old, oldLine := s.mint(2, false)
	s.change(line, oldLine)
	c := s.open(s.config())
	var used, refused atomic.Uint32
	var running sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for range 3 {
		running.Go(func() {
			for ctx.Err() == nil {
				if r, err := c.Check(good, "192.0.2.7"); err != nil || r.Version != 1 {
					t.Errorf("the good key: %+v, %v", r, err)
					return
				}
				used.Add(1)
				if _, err := c.Check(old, "192.0.2.8"); !errors.Is(err, apikeycheck.ErrRefused) {
					t.Errorf("the refused key: %v", err)
					return
				}
				refused.Add(1)
			}
		})
	}
	for i := range 25 {
		_, more := s.mint(key.Version(i+10), true)
		s.change(more)
		until(t, "the change arrives", func() bool { return c.Len() >= i+3 })
		if breaking && i%12 == 10 {
			s.http.CloseClientConnections()
		}
	}
	stop()
	running.Wait()
	until(t, "every use is reported", func() bool {
		n, _ := s.told(1, false)
		m, _ := s.told(2, true)
		return n == used.Load() && m == refused.Load() || breaking && n >= used.Load() && m >= refused.Load()
	})
	if n, _ := s.told(2, false); n != 0 {
		t.Errorf("%d uses of the refused key", n)
	}
	if _, addresses := s.told(1, false); !slices.Contains(addresses, "192.0.2.7") {
		t.Errorf("reported from %v", addresses)
	}
}

// TestIdentifyIsNoUse: who asks whose a key is learns what Check tells, and nobody is
// told of a use or a try.
func TestIdentifyIsNoUse(t *testing.T) {
	s := newServer(t)
	good, line := s.mint(1, true)
	old, oldLine := s.mint(2, false)
	s.change(line, oldLine)
	c := s.open(s.config())
	for range 3 {
		if r, err := c.Identify(good); err != nil || r.Version != 1 || r.Client != "ACME" {
			t.Errorf("the good key: %+v, %v", r, err)
		}
		if r, err := c.Identify(old); !errors.Is(err, apikeycheck.ErrRefused) || r.Key != "" {
			t.Errorf("the refused key: %+v, %v", r, err)
		}
	}
	if _, err := c.Check(good, "192.0.2.7"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	used, addresses := s.told(1, false)
	if tried, _ := s.told(2, true); used != 1 || tried != 0 || !slices.Equal(addresses, []string{"192.0.2.7"}) {
		t.Errorf("%d uses from %v and %d tries were told; one use was made", used, addresses, tried)
	}
	s.ahead.Store(int64(time.Hour))
	if _, err := c.Identify(good); !errors.Is(err, apikeycheck.ErrUnsure) {
		t.Errorf("long after: %v", err)
	}
}

// TestCheckTakesNoMemory: checking a key does not allocate, whatever is wrong with it.
func TestCheckTakesNoMemory(t *testing.T) {
	s := newServer(t)
	good, line := s.mint(1, true)
	old, oldLine := s.mint(2, false)
	s.change(line, oldLine)
	unknown, _ := s.mint(3, true)
	config := s.config()
	config.ReportEvery = time.Hour
	c := s.open(config)
	for what, text := range map[string]string{"good": good, "refused": old, "unknown": unknown, "malformed": good[:20]} {
		if n := testing.AllocsPerRun(2000, func() { _, _ = c.Check(text, "192.0.2.7") }); n > 0 && !underRaceDetector {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

// TestClosedChecker: it tells the server that it leaves, with the last uses, and lets in
// nothing any more.
func TestClosedChecker(t *testing.T) {
	s := newServer(t)
	good, line := s.mint(1, true)
	s.change(line)
	config := s.config()
	config.ReportEvery = time.Hour
	c, err := apikeycheck.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Check(good, ""); err != nil {
		t.Error(err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Check(good, ""); !errors.Is(err, apikeycheck.ErrUnsure) {
		t.Errorf("after it was closed: %v", err)
	}
	if last := s.reports[len(s.reports)-1]; !last.Leaving || len(last.Uses) != 1 || last.Uses[0].Count != 1 || last.Uses[0].Application != "test" {
		t.Errorf("the last report: %+v", last)
	}
}

// TestBadConfig: what cannot work is said before anything is tried.
func TestBadConfig(t *testing.T) {
	token := client.StaticToken(secret.NewString("token"))
	for what, config := range map[string]apikeycheck.Config{
		"no token":  {Address: "https://keyturn.example"},
		"plain":     {Address: "http://keyturn.example", Token: token},
		"no server": {Token: token},
		"no name":   {Address: "https://keyturn.example", Token: token, Cache: &disk{}},
		"too short": {Address: "https://keyturn.example", Token: token, MaxAge: time.Second},
		"too long":  {Address: "https://keyturn.example", Token: token, MaxAge: 48 * time.Hour},
	} {
		if _, err := apikeycheck.Open(t.Context(), config); !errors.Is(err, apikeycheck.ErrConfig) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := newServer(t)
	config := s.config()
	config.Token = client.StaticToken(secret.NewString("wrong"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := apikeycheck.Open(ctx, config); err == nil || !strings.Contains(err.Error(), "no snapshot") {
		t.Errorf("a wrong token: %v", err)
	}
}
