package tokencheck_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/internal/dpop"
	"github.com/keyturn/keyturn/secret"
)

// desk takes reports, beside a board.
type desk struct {
	*board

	mu      sync.Mutex
	reports []string
	status  int
	hangs   bool
}

func (d *desk) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, "/oauth/report") {
		return d.board.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	d.mu.Lock()
	status, hangs := d.status, d.hangs
	if err == nil && !hangs && status == http.StatusNoContent {
		d.reports = append(d.reports, r.Header.Get("Authorization")+" "+r.URL.String()+" "+string(body))
	}
	d.mu.Unlock()
	if hangs {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Body: http.NoBody, Request: r}, err
}

func (d *desk) set(status int, hangs bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status, d.hangs = status, hangs
}

// take returns the lines of the reports so far.
func (d *desk) take(t *testing.T) (lines []string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, report := range d.reports {
		const head = "Bearer of-the-verifier " + issuerURL + "/oauth/report "
		var body struct {
			Refused []struct {
				Client, Address string
				Count           int
				Replay          bool
			}
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(report, head)), &body); err != nil || !strings.HasPrefix(report, head) || len(report) > 40<<10 {
			t.Fatalf("%.300s: %v", report, err)
		}
		for _, one := range body.Refused {
			lines = append(lines, fmt.Sprintf("%s at %s: %d, %t", one.Client, one.Address, one.Count, one.Replay))
		}
	}
	d.reports = nil
	slices.Sort(lines)
	return lines
}

// TestRefusalsAreReported: the server hears whom this service refused, and that a proof
// was shown again, in sums; what cannot be sent is sent later; what is many is counted
// together; no request waits for it, and Close sends what is left.
func TestRefusalsAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ed, mine := edSigner(t, "ed"), newProofs(t)
		d := &desk{board: newBoard(ed), status: http.StatusNoContent}
		c := d.open(t, func(c *tokencheck.Config) {
			c.HTTPClient, c.Report = &http.Client{Transport: d}, client.StaticToken(secret.NewString("of-the-verifier"))
		})
		compact := ed.sign(t, with(time.Now(), "cnf", map[string]any{"jkt": mine.jkt}), nil)
		proof := mine.make(t, map[string]any{"ath": dpop.HashOf(compact)})
		check := func(shown *tokencheck.Shown, address string, want error) {
			t.Helper()
			shown.Address = address
			if _, err := c.Check(t.Context(), shown); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		bound := func() *tokencheck.Shown {
			return &tokencheck.Shown{Token: compact, DPoP: true, Proofs: []string{proof}, Method: "POST", URL: "https://orders.example.com/a"}
		}
		check(bound(), "192.0.2.7", nil)
		for range 3 {
			check(bound(), "198.51.100.9", tokencheck.ErrRefused)
		}
		check(bearer(compact), "198.51.100.9", tokencheck.ErrRefused) // as if it were bound to nothing
		check(bearer("x.y.z"), "not an address", tokencheck.ErrRefused)
		if lines := d.take(t); len(lines) > 0 {
			t.Errorf("at once: %q", lines)
		}
		pass := func() {
			time.Sleep(5*time.Second + time.Millisecond)
			synctest.Wait()
		}
		pass()
		first := []string{" at : 1, false", "deploy at 198.51.100.9: 1, false", "deploy at 198.51.100.9: 3, true"}
		if lines := d.take(t); !slices.Equal(lines, first) {
			t.Errorf("reported %q, want %q", lines, first)
		}
		pass()
		if lines := d.take(t); len(lines) > 0 {
			t.Errorf("reported twice: %q", lines)
		}

		d.set(http.StatusServiceUnavailable, false)
		check(bound(), "198.51.100.9", tokencheck.ErrRefused)
		pass()
		d.set(http.StatusNoContent, true) // it does not answer
		check(bound(), "198.51.100.9", tokencheck.ErrRefused)
		time.Sleep(20 * time.Second)
		d.set(http.StatusNoContent, false)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if lines := d.take(t); !slices.Equal(lines, []string{"deploy at 198.51.100.9: 2, true"}) {
			t.Errorf("after an outage: %q", lines)
		}

		for i := range 5000 {
			check(bearer("x.y.z"), fmt.Sprintf("192.0.%d.%d", i/250, i%250), tokencheck.ErrRefused)
		}
		pass()
		lines := d.take(t)
		sum := 0
		for _, line := range lines {
			var n int
			if _, err := fmt.Sscanf(line[strings.LastIndex(line, ": "):], ": %d,", &n); err != nil {
				t.Fatal(line, err)
			}
			sum += n
		}
		if sum != 5000 || len(lines) > 130 {
			t.Errorf("%d refusals in %d lines", sum, len(lines))
		}

		check(bound(), "198.51.100.9", tokencheck.ErrRefused) // the proof is too old by now
		c.Close()
		if lines := d.take(t); !slices.Equal(lines, []string{"deploy at 198.51.100.9: 1, false"}) {
			t.Errorf("at the end: %q", lines)
		}
	})
}

// TestNobodyIsToldWithoutAToken: without Report nothing is sent.
func TestNobodyIsToldWithoutAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{board: newBoard(edSigner(t, "ed")), status: http.StatusNoContent}
		c := d.open(t, func(c *tokencheck.Config) { c.HTTPClient = &http.Client{Transport: d} })
		if _, err := c.Check(t.Context(), bearer("x.y.z")); !errors.Is(err, tokencheck.ErrRefused) {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		c.Close()
		if lines := d.take(t); len(lines) > 0 {
			t.Errorf("reported %q", lines)
		}
	})
}
