package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func newGate() *gate {
	return &gate{
		refused: newLimiters(1, 5), tokens: newLimiters(1, 5), maxBody: 1 << 20, call: 100 * time.Millisecond, stall: time.Second, now: time.Now,
		told:  newTally(slog.New(slog.DiscardHandler), time.Now),
		times: map[string]time.Duration{"/Watch": 0},
	}
}

// A body that does not arrive is given up, on a stream's path as well.
func TestSlowBodiesAreCutOff(t *testing.T) {
	for _, path := range []string{"/Get", "/Watch"} {
		ended := make(chan error, 1)
		srv := httptest.NewServer(newGate().wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
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
	srv := httptest.NewServer(gate.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	srv := httptest.NewServer(newGate().wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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

func TestAddresses(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:1":            "192.0.2.1",
		"[::ffff:192.0.2.1]:1":   "::ffff:192.0.2.1",
		"[2001:db8:1:2:3::4]:1":  "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::]:": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1":       "fe80::/64",
		"@":                      "@",
	} {
		if got := addressOf(&http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

func TestLimitersAreBounded(t *testing.T) {
	l := newLimiters(1, 1)
	for i := range maxLimited + 10 {
		l.of(fmt.Sprint(i))
	}
	if n := len(l.callers); n > maxLimited {
		t.Errorf("%d callers are kept", n)
	}
	if l.exhausted("never seen", time.Now()) || len(l.callers) > 11 {
		t.Errorf("asking keeps %d callers", len(l.callers))
	}
	if l.of("x").Limit() != rate.Limit(1) {
		t.Error("another limit")
	}
}

// Streams are not cut off as calls are: each has a time of its own.
func TestStreamsOutliveCalls(t *testing.T) {
	times := callTimes()
	for _, service := range []protoreflect.ServiceDescriptor{
		keyturnv1.File_keyturn_v1_control_proto.Services().ByName("ControlService"), keyturnv1.File_keyturn_v1_delivery_proto.Services().ByName("DeliveryService"),
	} {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			if _, ok := times["/"+string(method.Name())]; !ok && method.IsStreamingServer() {
				t.Errorf("%s is a stream, and would be cut off after %v", method.FullName(), callTimeout)
			}
		}
	}
}
