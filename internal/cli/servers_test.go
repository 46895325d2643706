package cli

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// TestCallGoesToAnotherServer: a call that reaches no server goes to the next one
// at once; a call that may have arrived is not sent twice.
func TestCallGoesToAnotherServer(t *testing.T) {
	var answered, dropped atomic.Int32
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != "question" || r.URL.Path != "/base/service/Call" {
			t.Errorf("%s %q %v", r.URL.Path, body, err)
		}
		answered.Add(1)
	}))
	defer good.Close()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		dropped.Add(1)
		panic(http.ErrAbortHandler)
	}))
	defer bad.Close()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	call := func(s *servers) error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.first.String()+"/service/Call", bytes.NewReader([]byte("question")))
		if err != nil {
			t.Fatal(err)
		}
		response, err := s.RoundTrip(request)
		if err == nil {
			err = response.Body.Close()
		}
		return err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	servers := func(list ...string) *servers {
		addresses, err := parseAddresses(strings.Join(list, ", "), "test")
		if err != nil {
			t.Fatal(err)
		}
		s, err := newServers(addresses, transport)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for range 10 {
		if err := call(servers(closed, good.URL+"/base")); err != nil {
			t.Error(err)
		}
	}
	if n := answered.Load(); n != 10 {
		t.Errorf("%d of 10 calls were answered", n)
	}
	answered.Store(0)
	for range 10 {
		s := servers(bad.URL, good.URL+"/base")
		first := call(s) // fails when it goes to the bad one
		if err := call(s); err != nil {
			t.Errorf("the second call, after %v: %v", first, err)
		}
	}
	if total := answered.Load() + dropped.Load(); total != 20 {
		t.Errorf("20 calls were sent %d times", total)
	}
	if err := call(servers(closed)); err == nil {
		t.Error("nobody was there")
	}
	for _, wrong := range []string{"https://a,,https://b", "https://a,http://b", strings.Repeat("https://a,", 16) + "https://a"} {
		if _, err := parseAddresses(wrong, "test"); err == nil {
			t.Errorf("%s was taken", wrong)
		}
	}
}
