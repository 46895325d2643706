package egress_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/egress"
)

// fakeProxy connects whatever it is asked for to one server, and notes what that was.
type fakeProxy struct {
	*httptest.Server
	to string

	mu    sync.Mutex
	asked []string
	// answer replaces the status of an answer; more is sent behind it.
	answer int
	more   string
	auth   []string
}

func newProxy(t *testing.T, secure bool, to string) *fakeProxy {
	t.Helper()
	p := &fakeProxy{to: to}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked, p.auth = append(p.asked, r.Method+" "+r.Host), append(p.auth, r.Header.Get("Proxy-Authorization"))
		answer, more := p.answer, p.more
		p.mu.Unlock()
		if answer != 0 {
			w.WriteHeader(answer)
			return
		}
		upstream, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", p.to)
		if err != nil {
			t.Error(err)
			return
		}
		conn, rest, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"+more)
		go func() { _, _ = io.Copy(upstream, rest); _ = upstream.Close() }()
		_, _ = io.Copy(conn, bufio.NewReader(upstream)) // until one of the two ends
		_ = conn.Close()
	})
	p.Server = httptest.NewUnstartedServer(handler)
	if secure {
		p.StartTLS()
	} else {
		p.Start()
	}
	t.Cleanup(p.Close)
	return p
}

func (p *fakeProxy) take() (asked []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked, p.asked = p.asked, nil
	return asked
}

// addresses are those of hosts, as a resolver of the test has them.
func addresses(hosts map[string][]string) func(context.Context, string) ([]netip.Addr, error) {
	return func(_ context.Context, host string) (list []netip.Addr, err error) {
		for _, text := range hosts[host] {
			list = append(list, netip.MustParseAddr(text))
		}
		if list == nil {
			err = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		return list, err
	}
}

// TestProxyIsAskedForWhatWasJudged: behind a proxy the guard holds. It is asked for the
// address that was judged here, so that a name that is another one there gains nothing,
// or for a name that the operator allows; for inner addresses it is not asked at all.
func TestProxyIsAskedForWhatWasJudged(t *testing.T) {
	var hosts []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hosts = append(hosts, r.Host) }))
	defer server.Close()
	for _, secure := range []bool{false, true} {
		proxy := newProxy(t, secure, server.Listener.Addr().String())
		at, err := url.Parse(proxy.URL)
		if err != nil {
			t.Fatal(err)
		}
		through := &egress.Proxy{URL: at, Names: []string{"hooks.partner.example", "*.acme.example"}, Authorization: func() (string, error) { return "Basic dXNlcjpwYXNz", nil }}
		if secure {
			through.Roots = proxy.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
		}
		guard := egress.Guard{Proxy: through, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Lookup: addresses(map[string][]string{
			"example.com": {"93.184.215.14"}, "two.example.com": {"10.0.0.1", "2606:4700::1111"}, "inner.example.com": {"10.0.0.1", "169.254.169.254"},
			"wrapped.example.com": {"::ffff:10.0.0.1"}, "hooks.partner.example": {"10.0.0.1"}, "allowed.example.com": {"127.0.0.1"},
		})}
		client := guard.Client(5 * time.Second)
		transport := client.Transport.(*http.Transport)
		transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		transport.TLSClientConfig.ServerName = "example.com" // that of the test's certificate
		transport.DisableKeepAlives = true
		get := func(where string) error {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, where, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.Do(request)
			if err == nil {
				_ = response.Body.Close() // it is empty
			}
			return err
		}
		port := server.URL[strings.LastIndexByte(server.URL, ':'):]
		for where, want := range map[string]string{
			"https://example.com/a": "CONNECT 93.184.215.14:443", "https://example.com:8443/": "CONNECT 93.184.215.14:8443",
			"https://two.example.com/": "CONNECT [2606:4700::1111]:443", "https://1.1.1.1/": "CONNECT 1.1.1.1:443",
			"https://hooks.partner.example/": "CONNECT hooks.partner.example:443", "https://a.b.ACME.example/": "CONNECT a.b.ACME.example:443",
			"https://allowed.example.com" + port: "", "https://127.0.0.1" + port: "",
		} {
			hosts = nil
			err := get(where)
			asked := proxy.take()
			if err != nil || want != "" && !slices.Equal(asked, []string{want}) || want == "" && len(asked) > 0 {
				t.Errorf("%s: the proxy was asked for %q, %v; want %q", where, asked, err, want)
			}
			if u, _ := url.Parse(where); len(hosts) != 1 || !strings.EqualFold(hosts[0], u.Host) {
				t.Errorf("%s: the server was called as %q", where, hosts)
			}
		}
		for _, where := range []string{
			"https://inner.example.com/", "https://wrapped.example.com/", "https://10.0.0.1/", "https://[::ffff:10.0.0.1]/", "https://169.254.169.254/", "https://[fe80::1]/", "https://0x7f.1/",
			"https://acme.example/", "https://xacme.example/", "https://hooks.partner.example.evil.example/", "https://unknown.example.com/",
		} {
			if err := get(where); err == nil || !errors.Is(err, egress.ErrForbidden) && !strings.Contains(err.Error(), "no such host") {
				t.Errorf("%s: %v", where, err)
			}
			if asked := proxy.take(); len(asked) > 0 {
				t.Errorf("%s: the proxy was asked for %q", where, asked)
			}
		}
		if slices.Contains(proxy.auth, "") {
			t.Error("the proxy was asked without authorization")
		}
		for what, spoil := range map[string]func(){
			"it refuses":    func() { proxy.answer = http.StatusProxyAuthRequired },
			"it says more":  func() { proxy.answer, proxy.more = 0, "x" },
			"it redirects":  func() { proxy.answer, proxy.more = http.StatusFound, "" },
			"it is not one": func() { at.Host = server.Listener.Addr().String() },
			"it is away":    func() { at.Host = "127.0.0.1:1" },
		} {
			before := *at
			proxy.mu.Lock()
			spoil()
			proxy.mu.Unlock()
			// A server that is no proxy may accept a connection; what is said in it fails.
			if err := get("https://example.com/"); err == nil || !errors.Is(err, egress.ErrProxy) && what != "it says more" && what != "it is not one" {
				t.Errorf("%s: %v", what, err)
			}
			*at = before
		}
	}
}

// TestProxyThatHangs: it does not keep a call for longer than the time it has.
func TestProxyThatHangs(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // the test ends
	guard := egress.Guard{Proxy: &egress.Proxy{URL: &url.URL{Scheme: "http", Host: l.Addr().String()}}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for what, ctx := range map[string]context.Context{"its time": t.Context(), "the caller's": ctx} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://1.1.1.1/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		response, err := guard.Client(200 * time.Millisecond).Do(request)
		if err == nil {
			_ = response.Body.Close() // there should be none
		}
		if err == nil || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %v after %v", what, err, time.Since(began))
		}
	}
}
