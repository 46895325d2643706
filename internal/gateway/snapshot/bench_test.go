package snapshot_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/internal/gateway/snapshot"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const benchPepper = "0123456789abcdef0123456789abcdef"

// centre sends a table to one verifier, without a network.
type centre struct {
	versions int
	known    keytable.Hash

	mu        sync.Mutex
	rev       uint64
	away      bool
	changed   chan struct{}
	confirmed chan uint64
}

func (c *centre) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	away := c.away
	c.mu.Unlock()
	if away {
		return nil, io.ErrUnexpectedEOF
	}
	answer := &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}
	if r.URL.Path == "/v1/apikeys/snapshot" {
		reader, writer := io.Pipe()
		context.AfterFunc(r.Context(), func() { _ = reader.CloseWithError(r.Context().Err()) })
		go func() { _ = writer.CloseWithError(c.stream(r.Context(), writer)) }()
		answer.Body = reader
		return answer, nil
	}
	var report struct{ Rev uint64 }
	if err := json.NewDecoder(r.Body).Decode(&report); err != nil {
		return nil, err
	}
	select {
	case c.confirmed <- report.Rev:
	case <-r.Context().Done():
	}
	return answer, nil
}

func (c *centre) entry(i int, accepted bool) keytable.Line {
	e := keytable.Entry{
		Key: key.Name(fmt.Sprintf("partners/client-%07d", i)), Version: 1, Accepted: accepted,
		Rules: keytable.Rules{Client: fmt.Sprintf("Client %d Ltd.", i), Scopes: []string{"orders:read", "orders:write"}, PerSecond: 100, Burst: 200},
	}
	if e.Other = c.known; i > 0 {
		binary.LittleEndian.PutUint64(e.Other[:], uint64(i)*0x9e3779b97f4a7c15)
		binary.LittleEndian.PutUint64(e.Other[8:], uint64(i))
	}
	return keytable.LineOf(&e, false)
}

func (c *centre) stream(ctx context.Context, w io.Writer) error {
	send := func(l keytable.Line) error {
		text, err := l.Encode()
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	}
	for _, l := range []keytable.Line{{Pepper: []byte(benchPepper)}, {Reset: true}} {
		if err := send(l); err != nil {
			return err
		}
	}
	for i := range c.versions {
		if err := send(c.entry(i, true)); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for has := uint64(1); ; {
		c.mu.Lock()
		rev, away, changed := c.rev, c.away, c.changed
		c.mu.Unlock()
		if away {
			return io.ErrUnexpectedEOF
		}
		if rev != has {
			if err := send(c.entry(int(rev), rev%2 == 0)); err != nil {
				return err
			}
		}
		has = rev
		if err := send(keytable.Line{Rev: rev}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *centre) set(away bool, rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away, c.rev = away, rev
	close(c.changed)
	c.changed = make(chan struct{})
}

// until waits until a revision is confirmed.
func (c *centre) until(b *testing.B, rev uint64) {
	b.Helper()
	for {
		select {
		case confirmed := <-c.confirmed:
			if confirmed == rev {
				return
			}
		case <-b.Context().Done():
			b.Fatal("it is never confirmed")
		}
	}
}

// BenchmarkRestart measures a cache of many versions in SQLite: the time until the first
// table is kept, one change is confirmed, and after a restart without a centre the first
// key is let in; memory; bytes on disk.
func BenchmarkRestart(b *testing.B) {
	for _, versions := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprint(versions), func(b *testing.B) {
			for b.Loop() {
				restart(b, versions)
			}
		})
	}
}

func restart(b *testing.B, versions int) {
	b.Helper()
	text, err := keytable.Draw("kt_bench", rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	hash, err := keytable.NewHasher([]byte(benchPepper)).Sum(text)
	if err != nil {
		b.Fatal(err)
	}
	c := &centre{versions: versions, known: hash, rev: 1, changed: make(chan struct{}), confirmed: make(chan uint64)}
	path, keys := filepath.Join(b.TempDir(), "gateway.db"), newKeeper(b)
	open := func() (*apikeycheck.Checker, func()) {
		s := openSQLite(b, path)
		checker, err := apikeycheck.Open(b.Context(), apikeycheck.Config{
			Address: "https://centre.example", Token: client.StaticToken(secret.NewString("token")), Name: "bench", HTTPClient: &http.Client{Transport: c},
			Cache: snapshot.New(snapshot.Config{Store: s, Keeper: keys}), ReportEvery: time.Hour,
		})
		if err != nil {
			b.Fatal(err)
		}
		return checker, func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = checker.Close(ctx) // the centre may be away
			if err := s.Stop(); err != nil {
				b.Fatal(err)
			}
		}
	}
	empty := heap()
	began := time.Now()
	_, stop := open()
	b.ReportMetric(time.Since(began).Seconds(), "s-from-the-centre")
	began = time.Now()
	c.until(b, 1)
	b.ReportMetric(time.Since(began).Seconds(), "s-first-save")
	b.ReportMetric(float64(heap()-empty)/(1<<20), "MiB-heap")

	const changes = 20
	began = time.Now()
	for rev := uint64(2); rev < 2+changes; rev++ {
		c.set(false, rev)
		c.until(b, rev)
	}
	b.ReportMetric(float64(time.Since(began).Milliseconds())/changes, "ms-a-change")
	c.set(true, 1+changes)
	stop()
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size())/(1<<20), "MiB-on-disk")

	before := heap()
	used := cpu(b)
	began = time.Now()
	checker, stopAgain := open()
	if _, err := checker.Check(string(text), ""); err != nil {
		b.Error(err)
	}
	b.ReportMetric(time.Since(began).Seconds(), "s-restart")
	b.ReportMetric((cpu(b) - used).Seconds(), "cpu-s-restart")
	b.ReportMetric(float64(heap()-before)/(1<<20), "MiB-heap-after-restart")
	if checker.Len() != versions {
		b.Errorf("%d versions", checker.Len())
	}
	stopAgain()
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
