package ingress

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func newGate() *Gate {
	g := NewGate(GateConfig{
		Tokens: Rate{PerSecond: 1, Burst: 5}, MaxBody: 1 << 20, Now: time.Now,
		Tally: NewTally(slog.New(slog.DiscardHandler), time.Now),
		Times: map[string]time.Duration{"/Watch": 0},
	})
	g.call, g.stall = 100*time.Millisecond, time.Second
	return g
}

// A body that does not arrive is given up, on a stream's path as well.
func TestSlowBodiesAreCutOff(t *testing.T) {
	for _, path := range []string{"/Get", "/Watch"} {
		ended := make(chan error, 1)
		srv := httptest.NewServer(newGate().Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			ended <- err
		})))
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: half a body was taken for a whole one", path)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: the server still waits for the body", path)
		}
		_ = conn.Close()
		srv.Close()
	}
}

// The deadline of a request's body must not cut off the stream that answers it.
func TestStreamsOutliveTheirRequests(t *testing.T) {
	gate := newGate()
	srv := httptest.NewServer(gate.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			t.Error(err)
		}
		timer := time.NewTimer(3 * gate.call)
		defer timer.Stop()
		select {
		case <-timer.C:
			_, _ = io.WriteString(w, "still there") // the client says what it got
		case <-r.Context().Done():
			t.Errorf("the stream was cut off: %v", context.Cause(r.Context()))
		}
	})))
	defer srv.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/Watch", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := srv.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if text, err := io.ReadAll(answer.Body); err != nil || string(text) != "still there" {
		t.Errorf("%q %v", text, err)
	}
}

func TestCallsAreBounded(t *testing.T) {
	srv := httptest.NewServer(newGate().Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		w.WriteHeader(http.StatusGatewayTimeout)
	})))
	defer srv.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/Get", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := srv.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("status %d", answer.StatusCode)
	}
}

// TestGateGoesByTheClient: who stands behind somebody else is told from him, and a
// gate with another rate of tokens counts bad ones together with the first.
func TestGateGoesByTheClient(t *testing.T) {
	now := time.Unix(0, 0)
	var log strings.Builder
	gate := NewGate(GateConfig{
		Tokens: Rate{PerSecond: 1, Burst: 1}, MaxBody: 1, Now: func() time.Time { return now },
		Client: func(r *http.Request) string { return r.Header.Get("From") },
		Tally:  NewTally(slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now }),
	})
	from := func(client string) *http.Request {
		return &http.Request{RemoteAddr: "192.0.2.1:1", Header: http.Header{"From": {client}}}
	}
	often := gate.WithTokens(Rate{PerSecond: 1, Burst: 2})
	for range refusedBurst / 2 {
		gate.Refused(from("2001:db8::1"))
		often.RefusedAs(from("2001:db8::2"), "bad signatures")
	}
	for client, blocked := range map[string]bool{"2001:db8::3": true, "2001:db8:0:1::": false, "192.0.2.1": false} {
		if gate.Blocked(from(client)) != blocked || often.Blocked(from(client)) != blocked {
			t.Errorf("%s: blocked is not %t", client, blocked)
		}
	}
	if text := log.String(); strings.Count(text, "lastFrom=2001:db8::/64") != 2 || !strings.Contains(text, "bad signatures") {
		t.Errorf("the log says:\n%s", text)
	}
	now = now.Add(time.Second)
	if gate.Blocked(from("2001:db8::1")) {
		t.Error("it is blocked for ever")
	}
	for _, call := range []struct {
		gate  *Gate
		token string
		want  bool
	}{{gate, "a", true}, {gate, "a", false}, {gate, "b", true}, {often, "a", true}, {often, "a", true}, {often, "a", false}} {
		if call.gate.Admit(call.token) != call.want {
			t.Errorf("%+v: tokens have not the rates of their gates", call)
		}
	}
}
