package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/secret"
)

// flaky is a server for a whole fleet: it counts when streams are asked for.
type flaky struct {
	transport // the methods that a Watch without assignments does not call

	mu    sync.Mutex
	up    chan struct{} // closed when the server goes down; nil while it is down
	tries []time.Time
	// stops: streams end with the request to come back within that time.
	stops time.Duration
}

func (f *flaky) watch(ctx context.Context, _ *keyturnv1.WatchRequest) (stream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries = append(f.tries, time.Now())
	if f.up == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("connection refused"))
	}
	return &flakyStream{ctx: ctx, up: f.up, server: f}, nil
}

func (f *flaky) poll(context.Context, *keyturnv1.PollRequest) (*keyturnv1.PollResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("connection refused"))
	}
	return &keyturnv1.PollResponse{}, nil
}

func (f *flaky) renew() {}

func (f *flaky) patience(time.Duration) {}

func (f *flaky) nodes() *servers { return oneServer() }

func (f *flaky) ready(context.Context, *url.URL) error { return errors.New("there is one server only") }

func (f *flaky) set(up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up != nil {
		close(f.up)
		f.up = nil
	}
	if up {
		f.up = make(chan struct{})
	}
}

type flakyStream struct {
	ctx context.Context
	up  chan struct{}
	n   int

	server *flaky
}

func (s *flakyStream) next() (*keyturnv1.WatchResponse, error) {
	if s.n++; s.n == 1 {
		return &keyturnv1.WatchResponse{}, nil
	}
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case <-timer.C:
		return &keyturnv1.WatchResponse{}, nil
	case <-s.up:
		s.server.mu.Lock()
		defer s.server.mu.Unlock()
		if s.server.stops > 0 {
			return &keyturnv1.WatchResponse{ComeBack: durationpb.New(s.server.stops)}, nil
		}
		return nil, io.ErrUnexpectedEOF
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *flakyStream) close() {}

// A thousand parties lose their server at one moment: they must neither come
// back in step nor stay away.
func TestFleetDoesNotReconnectInStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const parties = 1000
		server := &flaky{up: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		cfg, err := Config{Address: "https://x", Token: StaticToken(secret.NewString("t"))}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		for range parties {
			c := newClient(cfg, server)
			group.Go(func() { _ = c.Watch(ctx, []Known{{Key: "a"}}, nil) })
		}
		time.Sleep(5 * time.Minute)
		server.mu.Lock()
		if len(server.tries) != parties {
			t.Errorf("%d streams for %d parties while all was well", len(server.tries), parties)
		}
		server.tries = nil
		server.mu.Unlock()

		server.set(false)
		time.Sleep(5 * time.Minute)
		server.set(true)
		back := time.Now()
		time.Sleep(cfg.BackoffMax + time.Second)
		server.mu.Lock()
		perBucket := make(map[int64]int)
		late := 0
		for _, at := range server.tries {
			if at.Before(back) {
				perBucket[at.UnixMilli()/100]++
			} else {
				late++
			}
		}
		server.mu.Unlock()
		if late < parties {
			t.Errorf("%d of %d parties came back within the longest back-off", late, parties)
		}
		// Full jitter: the first retries spread over a second, which makes some 150 in
		// 100 ms, and the later ones over 30 s, which makes some 7.
		settled := back.Add(-time.Minute).UnixMilli() / 100
		for bucket, n := range perBucket {
			if n > 250 || bucket > settled && n > 40 {
				t.Errorf("%d tries in the same 100 ms, %d before the server came back", n, back.UnixMilli()/100-bucket)
			}
		}
		cancel()
		group.Wait()
	})
}

// A server that restarts in good order tells its parties when to come back: they
// return spread over that time, few of them try in vain, and nobody is told of an
// error. One that does not return is told of.
func TestAnnouncedRestartIsNoError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const parties, within, gone = 1000, 5 * time.Second, 2 * time.Second
		server := &flaky{up: make(chan struct{}), stops: within}
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		var mu sync.Mutex
		connected, troubled := 0, 0
		for range parties {
			on := 0
			cfg, err := Config{Address: "https://x", Token: StaticToken(secret.NewString("t")), OnStatus: func(s Status) {
				mu.Lock()
				defer mu.Unlock()
				connected -= on
				if on = 0; s.Mode == ModeStream {
					on = 1
				}
				connected += on
				if s.Err != nil {
					troubled++
				}
			}}.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			c := newClient(cfg, server)
			group.Go(func() { _ = c.Watch(ctx, []Known{{Key: "a"}}, nil) })
		}
		time.Sleep(time.Minute)
		server.mu.Lock()
		server.tries = nil
		server.mu.Unlock()
		server.set(false)
		stopped := time.Now()
		time.Sleep(gone)
		server.set(true)
		time.Sleep(within)
		server.mu.Lock()
		inVain, most := 0, 0
		perBucket := map[time.Duration]int{}
		for _, at := range server.tries {
			if after := at.Sub(stopped); after < gone {
				inVain++
			} else if perBucket[after.Truncate(100*time.Millisecond)]++; true {
				most = max(most, perBucket[after.Truncate(100*time.Millisecond)])
			}
		}
		server.mu.Unlock()
		mu.Lock()
		if connected != parties || troubled > 0 || inVain > parties/2 || most > parties/10 {
			t.Errorf("%d of %d are back, %d were told of errors; %d tries in vain, and up to %d in the same 100 ms", connected, parties, troubled, inVain, most)
		}
		mu.Unlock()

		server.set(false)
		time.Sleep(within + restartLate + time.Minute)
		mu.Lock()
		if connected != 0 || troubled < parties {
			t.Errorf("the server stays away: %d are connected, %d errors were told", connected, troubled)
		}
		mu.Unlock()
		cancel()
		group.Wait()
	})
}

// A server that is late is left for another one; when all are, they are busy, and
// each is given longer from round to round.
func TestPatienceGrows(t *testing.T) {
	for _, c := range []struct {
		servers, failures int
		want              time.Duration
	}{
		{1, 0, handshakeLate},
		{1, 50, handshakeLate},
		{3, 0, elsewhere},
		{3, 2, elsewhere},
		{3, 3, 2 * elsewhere},
		{3, 6, 4 * elsewhere},
		{3, 1 << 30, handshakeLate},
	} {
		if got := patienceFor(c.servers, c.failures); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{200 * time.Millisecond, 30 * time.Second}
	for attempt := range 1000 {
		for _, r := range []float64{0, rand.Float64(), 0.999999} {
			if d := b.wait(attempt, 2, r); d < 50*time.Millisecond || d > 30*time.Second {
				t.Fatalf("attempt %d, r=%v: %v", attempt, r, d)
			}
		}
	}
	if d := b.wait(3, 2, 0.5); d != 425*time.Millisecond {
		t.Errorf("attempt 3: %v, want the middle between 50 ms and 800 ms", d)
	}
	if d := b.wait(60, 2, 0.5); d != 15025*time.Millisecond {
		t.Errorf("attempt 60: %v, want the middle between 50 ms and 30 s", d)
	}
}

func TestRetryAfterForms(t *testing.T) {
	now := time.Date(2026, 11, 23, 1, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "x": 0, "999999": maxRetryAfter, "99999999999999999999": 0,
		"Mon, 23 Nov 2026 01:00:30 GMT": 30 * time.Second, "Mon, 23 Nov 2026 00:00:30 GMT": 0,
	} {
		if got := parseRetryAfter(text, now); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

// FuzzAssignment: whatever a server sends is either refused or makes sense, and
// no secret stays in the message.
func FuzzAssignment(f *testing.F) {
	f.Add("prod/orders/db", uint64(1), uint64(1), "", []byte("pw"), int64(0))
	f.Add("A", uint64(0), uint64(1<<63), "zz", []byte{}, int64(-1<<62))
	f.Add("a", uint64(1), uint64(2), "00112233445566778899aabbccddeeff", []byte{0}, int64(1<<40))
	f.Fuzz(func(t *testing.T, name string, version, epoch uint64, rotation string, plain []byte, seconds int64) {
		want := string(plain)
		wire := &keyturnv1.Assignment{Key: name, Version: version, Epoch: epoch, RotationId: rotation, Secrets: map[string][]byte{"password": plain}}
		a, err := assignmentFromWire(wire)
		if err != nil {
			return
		}
		if !a.Key.Valid() || a.Version == 0 || a.Epoch == 0 || a.Secrets["password"].RevealString() != want {
			t.Errorf("accepted %+v", a)
		}
		for _, b := range wire.GetSecrets()["password"] {
			if b != 0 {
				t.Fatal("the message still holds the secret")
			}
		}
	})
}

// FuzzDetail: what goes out is valid, short, and holds no secret.
func FuzzDetail(f *testing.F) {
	f.Add("login with hunter2 failed", "hunter2")
	f.Add("\xff\xfe", "abc")
	f.Fuzz(func(t *testing.T, detail, plain string) {
		secrets := map[string]secret.Value{"password": secret.NewString(plain)}
		out := truncate(scrub(detail, secrets))
		if n := len([]rune(out)); n > maxDetail || !utf8.ValidString(out) {
			t.Errorf("%d characters: %q", n, out)
		}
	})
}

func TestDetailsHoldNoSecretInAnyForm(t *testing.T) {
	secrets := map[string]secret.Value{"old": secret.NewString("p@ss"), "new": secret.NewString(`p@ss"/word`)}
	for _, detail := range []string{`p@ss"/word`, `dial "postgres://a:p%40ss%22%2Fword@db"`, `"p@ss\"/word"`, `p@ss`} {
		if out := scrub(detail, secrets); strings.Contains(out, "ss") || !strings.Contains(out, secret.Redacted) {
			t.Errorf("%q became %q", detail, out)
		}
	}
}

// mute answers once on each stream and then no more, as a dead connection does.
type mute struct {
	flaky
	renewed int
}

func (m *mute) watch(ctx context.Context, _ *keyturnv1.WatchRequest) (stream, error) {
	return &muteStream{ctx: ctx}, nil
}

func (m *mute) renew() { m.renewed++ } // by the link's goroutine only

func (m *mute) nodes() *servers { return oneServer() }

func (m *mute) ready(context.Context, *url.URL) error { return errors.New("there is one server only") }

func oneServer() *servers {
	only := &url.URL{Scheme: "https", Host: "localhost"}
	return &servers{first: only, list: []*url.URL{only}}
}

type muteStream struct {
	ctx context.Context
	n   int
}

func (s *muteStream) next() (*keyturnv1.WatchResponse, error) {
	if s.n++; s.n == 1 {
		return &keyturnv1.WatchResponse{}, nil
	}
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}

func (s *muteStream) close() {}

// After silence the next stream must not use the same dead connection.
func TestSilentConnectionIsNotUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := Config{Address: "https://x", Token: StaticToken(secret.NewString("t"))}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		server := &mute{flaky: flaky{up: make(chan struct{})}}
		ctx, cancel := context.WithTimeout(t.Context(), heartbeatDefault+5*time.Second)
		defer cancel()
		_ = newClient(cfg, server).Watch(ctx, []Known{{Key: "a"}}, nil)
		if server.renewed != 1 {
			t.Errorf("renewed %d times after one silence", server.renewed)
		}
	})
}
