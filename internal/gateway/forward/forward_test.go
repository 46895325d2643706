package forward_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/gateway/forward"
)

const (
	bearer = `Bearer realm="keyturn"`
	dpop   = `DPoP realm="keyturn"`
)

// outcome is what becomes of a request, at a gate, with headers.
type outcome struct {
	gate      string
	header    []string
	status    int
	outcome   string
	challenge string
}

// outcomes are those of all proxies.
func outcomes() []outcome {
	auth := func(value string) []string { return []string{"Authorization", value} }
	key := func(value string) []string { return []string{"X-API-Key", value} }
	bad := bearer + `, error="invalid_token"`
	several := bearer + `, error="invalid_request"`
	return []outcome{
		{"both", auth("Bearer kt_good"), 200, "", ""},
		{"both", auth("bearer  kt_good"), 200, "", ""},
		{"both", key("kt_good"), 200, "", ""},
		{"both", auth("Bearer g.oo.d"), 200, "", ""},
		{"keys", key("kt_good"), 200, "", ""},
		{"tokens", auth("Bearer b.ar.e"), 200, "", ""},
		{"open", key("kt_bare"), 200, "", ""},

		{"both", nil, 401, "missing", bearer},
		{"both", auth("Basic dTpw"), 401, "missing", bearer},
		{"both", auth("Bearer kt_bad"), 401, "refused", bad},
		{"both", key("kt_bad"), 401, "refused", bad},
		{"both", auth("Bearer b.a.d"), 401, "refused", bad},
		{"keys", auth("Bearer g.oo.d"), 401, "refused", bad},
		{"keys", auth("DPoP g.oo.d"), 401, "refused", dpop + `, error="invalid_token"`},
		{"tokens", auth("Bearer kt_good"), 401, "refused", bad},
		{"tokens", key("kt_good"), 401, "refused", bad},
		{"both", auth("DPoP kt_good"), 401, "unproven", dpop + `, error="invalid_token"`},
		{"both", auth("DPoP b.oun.d"), 401, "unproven", dpop + `, error="invalid_token"`},

		{"both", append(key("kt_good"), auth("Bearer kt_good")...), 400, "malformed", several},
		{"both", append(key("kt_good"), auth("Basic dTpw")...), 400, "malformed", several},
		{"both", append(key("kt_good"), key("kt_good")...), 400, "malformed", several},
		{"both", append(auth("Bearer g.oo.d"), auth("Bearer g.oo.d")...), 400, "malformed", several},
		{"both", auth("Bearer kt_good,Bearer kt_bad"), 400, "malformed", several},
		{"both", auth("Bearer kt_good, kt_good"), 400, "malformed", several},
		{"both", key("kt_good, kt_good"), 400, "malformed", several},
		{"both", key(""), 400, "malformed", several},
		{"both", auth("Bearer "), 400, "malformed", several},
		{"both", auth("Bearer"), 400, "malformed", several},
		{"both", auth(""), 400, "malformed", several},
		{"both", auth("Bearer kt_göod"), 400, "malformed", several},
		{"both", auth("Bearer kt_good\t"), 400, "malformed", several},
		{"both", auth("Bearer " + strings.Repeat("x", 1<<14)), 431, "large", ""},

		{"both", key("kt_bare"), 403, "scope", bearer + `, error="insufficient_scope", scope="orders:read"`},
		{"both", auth("Bearer b.ar.e"), 403, "scope", bearer + `, error="insufficient_scope", scope="orders:read"`},
		{"both", key("kt_internal"), 403, "outside", bearer + `, error="insufficient_scope"`},
		{"both", auth("Bearer o.the.r"), 403, "outside", bearer + `, error="insufficient_scope"`},
		{"both", key("kt_often"), 429, "limited", ""},
		{"both", key("kt_unsure"), 503, "unsure", ""},
		{"both", key("kt_broken"), 503, "unsure", ""},
		{"both", auth("Bearer u.nsur.e"), 503, "unsure", ""},
		{"both", auth("Bearer b.roke.n"), 503, "unsure", ""},
		{"both", auth("Bearer n.onc.e"), 401, "nonce", bearer + `, error="use_dpop_nonce"`},
		{"void", key("kt_good"), 404, "no-gate", ""},
	}
}

// TestOutcomes: each credential is answered as the standards say, and never as a good one
// when it is not.
func TestOutcomes(t *testing.T) {
	for _, test := range outcomes() {
		w := newWorld(t)
		answer := w.ask(t, "/v1/forward/"+test.gate, test.header...)
		header := answer.Header()
		if answer.Code != test.status || header.Get(forward.HeaderOutcome) != test.outcome || header.Get("WWW-Authenticate") != test.challenge {
			t.Errorf("%s %.60q: %d %v", test.gate, test.header, answer.Code, header)
		}
		if header.Get("Cache-Control") != "no-store" || (test.status == 429 || test.status == 503) != (header.Get("Retry-After") == "2") || (test.outcome == "nonce") != (header.Get("DPoP-Nonce") == "the-nonce") {
			t.Errorf("%s %.60q: %v", test.gate, test.header, header)
		}
		for _, name := range forward.Headers() {
			if (header.Get(name) != "") != (test.status == 200) {
				t.Errorf("%s %.60q: %s is %q", test.gate, test.header, name, header.Get(name))
			}
		}
		// Where only two refusals can be passed on, it is one of them.
		want := map[int]int{400: 401, 429: 403, 431: 403, 503: 403}[test.status]
		if test.gate == "both" && want != 0 {
			if few := w.ask(t, "/v1/forward/nginx", test.header...); few.Code != want || few.Header().Get(forward.HeaderOutcome) != test.outcome {
				t.Errorf("nginx %.60q: %d %v", test.header, few.Code, few.Header())
			}
		}
	}
}

// TestWhoIsAdmitted: the origin learns whose credential it is, in headers that are all
// there and that no name of a client or subject can break out of.
func TestWhoIsAdmitted(t *testing.T) {
	w := newWorld(t)
	for credential, want := range map[string][]string{
		"kt_good": {"apikey", "partners/acme", "7", "Z%C3%BCrich 100%25", "orders:read orders:list", "-"},
		"g.oo.d":  {"token", "-", "-", "app", "orders:read", "user%0D%0A7"},
	} {
		header := w.ask(t, "/v1/forward/both", "Authorization", "Bearer "+credential).Header()
		var got []string
		for _, name := range forward.Headers() {
			got = append(got, header.Get(name))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q", credential, got)
		}
	}
}

// TestClientsChooseNoGate: whatever a client sends along, and whatever of it a proxy
// passes on or appends to the path, the gate needs what it needs.
func TestClientsChooseNoGate(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewServer(w.handler())
	t.Cleanup(server.Close)
	for _, path := range []string{
		"", "/", "?scope=&key=**&gate=open", "/?scopes=", "/../open", "/%2e%2e/open", "/..%2fopen", "//open", "/v1/forward/open", "/../../../open?gate=open", "/%00", "/;gate=open",
	} {
		for _, header := range [][2]string{
			{"X-Forwarded-Uri", "/v1/forward/open"},
			{"X-Original-URI", "/v1/forward/open"},
			{"X-Original-URL", "/v1/forward/open"},
			{"X-Rewrite-URL", "/v1/forward/open"},
			{"X-Forwarded-Prefix", "/v1/forward/open"},
			{"X-HTTP-Method-Override", "OPTIONS"},
			{"Keyturn-Gate", "open"},
			{"Keyturn-Require", "scope="},
			{"Keyturn-Scopes", "orders:read"},
			{"Keyturn-Key", "partners/acme"},
			{"Keyturn-Outcome", "ok"},
			{"Connection", "Keyturn-Scopes"},
		} {
			for _, method := range []string{http.MethodGet, http.MethodOptions, http.MethodHead, http.MethodPost, "BREW"} {
				r, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/v1/forward/both", http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				r.URL.Opaque = strings.TrimPrefix(server.URL, "http:") + "/v1/forward/both" + path
				r.Header.Set("X-API-Key", "kt_bare")
				r.Header.Set(header[0], header[1])
				answer, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = answer.Body.Close()
				if answer.StatusCode != http.StatusForbidden || answer.Header.Get(forward.HeaderOutcome) != "scope" {
					t.Errorf("%s %q %q: %d %v", method, path, header, answer.StatusCode, answer.Header)
				}
			}
		}
	}
}

// TestPaths: a gate is named by one segment, letter by letter; nothing is cleaned and
// redirected, and what is not ours is passed on.
func TestPaths(t *testing.T) {
	server := httptest.NewServer(newWorld(t).handler())
	t.Cleanup(server.Close)
	for target, want := range map[string]int{
		"/v1/forward/open": 200, "/v1/forward/open/": 200, "/v1/forward/open/a/../b": 200, "/v1/forward/open?x": 200, "/v1/forward/open//": 200,
		"/v1/forward/open/%zz": 400, // of the HTTP server
		"/v1/forward/":         404, "/v1/forward//open": 404, "/v1/forward/../open": 404, "/v1/forward/%6fpen": 404, "/v1/forward/OPEN": 404, "/v1/forward/open%2f": 404,
		"/v1/forward/open*": 404, "/v1/forward/open;x": 404,
		"/v1/forward": 418, "/v1/%66orward/open": 418, "//v1/forward/open": 418, "/v1/apikeys/verify": 418, "/": 418,
	} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: x\r\nX-API-Key: kt_good\r\nConnection: close\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		_ = conn.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %d, want %d", target, answer.StatusCode, want)
		}
	}
}

// TestBodiesAreNotAwaited: a proxy that announces the client's body and sends none is
// answered at once.
func TestBodiesAreNotAwaited(t *testing.T) {
	server := httptest.NewServer(newWorld(t).handler())
	t.Cleanup(server.Close)
	for _, framing := range []string{"Content-Length: 1000000", "Content-Length: 7\r\nExpect: 100-continue", "Transfer-Encoding: chunked"} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(conn, "POST /v1/forward/open HTTP/1.1\r\nHost: x\r\nX-API-Key: kt_good\r\n"+framing+"\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", framing, err)
		}
		if answer.StatusCode != http.StatusOK || !answer.Close {
			t.Errorf("%s: %d, close %v", framing, answer.StatusCode, answer.Close)
		}
		_ = answer.Body.Close()
		_ = conn.Close()
	}
}

// TestBodiesOfHTTP2: with HTTP/2 no body is waited for either, and the connection, which
// other requests share, stays.
func TestBodiesOfHTTP2(t *testing.T) {
	server := httptest.NewUnstartedServer(newWorld(t).handler())
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	reused := 0
	for range 3 {
		body, never := io.Pipe()
		trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			if info.Reused {
				reused++
			}
		}}
		r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, server.URL+"/v1/forward/open", body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-API-Key", "kt_good")
		answer, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != http.StatusOK || answer.ProtoMajor != 2 {
			t.Errorf("%d by %s", answer.StatusCode, answer.Proto)
		}
		_ = answer.Body.Close()
		_ = never.Close()
	}
	if reused != 2 {
		t.Errorf("the connection was used again %d times", reused)
	}
}

// TestHugeHeaders: they are refused before anybody is asked.
func TestHugeHeaders(t *testing.T) {
	w := newWorld(t)
	answer := w.ask(t, "/v1/forward/open", "X-API-Key", "kt_good", "Cookie", strings.Repeat("x", 17<<10))
	if answer.Code != 431 || len(w.asked) != 0 {
		t.Errorf("%d, asked %v", answer.Code, w.asked)
	}
	var many []string
	for i := range 2000 {
		many = append(many, "X-"+strconv.Itoa(i), "12345678")
	}
	if answer := w.ask(t, "/v1/forward/open", append(many, "X-API-Key", "kt_good")...); answer.Code != 431 || len(w.asked) != 0 {
		t.Errorf("%d, asked %v", answer.Code, w.asked)
	}
}

// TestStrangers: who may not ask learns nothing, not even which gates there are.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	w.stranger = true
	for _, gate := range []string{"open", "void"} {
		answer := w.ask(t, "/v1/forward/"+gate, "X-API-Key", "kt_good")
		if answer.Code != http.StatusForbidden || answer.Header().Get(forward.HeaderOutcome) != "caller" || answer.Header().Get("WWW-Authenticate") != "" {
			t.Errorf("%s: %d %v", gate, answer.Code, answer.Header())
		}
	}
	if len(w.asked) != 0 || !strings.Contains(w.log.String(), "a stranger") {
		t.Errorf("asked %v, logged %s", w.asked, w.log.String())
	}
}

// TestLogIsShort: the same mistake of a proxy is logged once, other ones up to a bound, and
// nothing that was shown with them.
func TestLogIsShort(t *testing.T) {
	w := newWorld(t)
	for i := range 3000 {
		w.ask(t, "/v1/forward/void", "X-API-Key", "kt_good")
		w.ask(t, "/v1/forward/v"+strconv.Itoa(i), "X-API-Key", "kt_good")
		w.ask(t, "/v1/forward/both", "Authorization", "DPoP b.oun.d", "DPoP", "proof")
	}
	w.ask(t, "/v1/forward/"+strings.Repeat("v", 5000))
	log := w.log.String()
	if n := strings.Count(log, "gate=void"); n != 1 {
		t.Errorf("the same gate is logged %d times", n)
	}
	if n := strings.Count(log, "\n"); n > 500 || len(log) > 500*400 {
		t.Errorf("%d lines, %d bytes", n, len(log))
	}
	if !strings.Contains(log, "gate=both") || strings.Contains(log, "kt_good") || strings.Contains(log, "b.oun.d") || strings.Contains(log, "proof\n") {
		t.Errorf("%.1000s", log)
	}
}

// TestWhereTheClientIs: the address is that which the proxy of the gate tells, whatever the
// client has put before it.
func TestWhereTheClientIs(t *testing.T) {
	for _, test := range []struct {
		gate   string
		header []string
		want   string
	}{
		{"open", nil, "127.0.0.1"},
		{"open", []string{"X-Forwarded-For", "192.0.2.7"}, "192.0.2.7"},
		{"open", []string{"X-Forwarded-For", "198.51.100.1, 192.0.2.7"}, "192.0.2.7"},
		{"open", []string{"X-Forwarded-For", "198.51.100.1", "X-Forwarded-For", "192.0.2.7"}, "192.0.2.7"},
		{"open", []string{"X-Forwarded-For", "198.51.100.1, 192.0.2.7, 10.1.2.3,::ffff:10.0.0.1 , [2001:db8:1::5]:443"}, "192.0.2.7"},
		{"open", []string{"X-Forwarded-For", "198.51.100.1, [2001:DB8:2::1%eth0]:7"}, "2001:db8:2::1"},
		{"open", []string{"X-Forwarded-For", "192.0.2.7, unknown"}, "127.0.0.1"},
		{"open", []string{"X-Forwarded-For", "192.0.2.7,"}, "127.0.0.1"},
		{"open", []string{"X-Forwarded-For", ""}, "127.0.0.1"},
		{"open", []string{"X-Forwarded-For", strings.Repeat("192.0.2.7, ", 50) + strings.Repeat("10.0.0.1, ", 40) + "10.0.0.1"}, "127.0.0.1"},
		{"open", []string{"X-Forwarded-For", "10.0.0.9, 10.0.0.1"}, "10.0.0.9"},
		{"open", []string{"X-Real-IP", "198.51.100.1", "Forwarded", "for=198.51.100.1", "X-Client-IP", "198.51.100.1"}, "127.0.0.1"},
		{"real", []string{"X-Real-IP", "192.0.2.7", "X-Forwarded-For", "198.51.100.1"}, "192.0.2.7"},
		{"real", []string{"X-Real-IP", "192.0.2.7", "X-Real-IP", "198.51.100.1"}, "127.0.0.1"},
		{"real", []string{"X-Real-IP", "192.0.2.7, 198.51.100.1"}, "127.0.0.1"},
		{"none", []string{"X-Real-IP", "192.0.2.7", "X-Forwarded-For", "198.51.100.1"}, "127.0.0.1"},
	} {
		w := newWorld(t)
		if answer := w.ask(t, "/v1/forward/"+test.gate, append(test.header, "X-API-Key", "kt_good")...); answer.Code != 200 {
			t.Fatal(answer.Code)
		}
		if len(w.asked) != 1 || w.asked[0] != "kt_good from "+test.want {
			t.Errorf("%s %.100q: %q", test.gate, test.header, w.asked)
		}
	}
}

// TestWhatAProofIsFor: the method and URL are what the proxy says in the way of the gate,
// each once; else the token is refused, before it is verified.
func TestWhatAProofIsFor(t *testing.T) {
	forwarded := func(method, proto, host, uri string) []string {
		return []string{"X-Forwarded-Method", method, "X-Forwarded-Proto", proto, "X-Forwarded-Host", host, "X-Forwarded-Uri", uri}
	}
	original := func(method, url string) []string { return []string{"X-Original-Method", method, "X-Original-URL", url} }
	good := forwarded("PUT", "https", "orders.example.com:8443", "/a%2Fb/c?x=1#y")
	for _, test := range []struct {
		gate   string
		header []string
		want   string
	}{
		{"tokens", good, "PUT https://orders.example.com:8443/a%2Fb/c"},
		{"tokens", forwarded("GET", "wss", "[2001:db8::1]", "/"), "GET https://[2001:db8::1]/"},
		{"tokens", forwarded("GET", "http", "orders", "//evil.example/x"), "GET http://orders//evil.example/x"},
		{"nginx", original("GET", "https://orders.example.com/a?b"), "GET https://orders.example.com/a"},
		{"nginx", original("GET", "https://orders.example.com"), "GET https://orders.example.com/"},
		// The other way of telling it is the client's.
		{"tokens", original("GET", "https://orders.example.com/a"), ""},
		{"nginx", good, ""},
		{"both", append(good, original("GET", "https://orders.example.com/a")...), ""},
		{"tokens", append(good, "X-Forwarded-Host", "evil.example"), ""},
		{"tokens", append(good, "X-Forwarded-Uri", "/b"), ""},
		{"tokens", forwarded("", "https", "orders.example.com", "/"), ""},
		{"tokens", forwarded("get", "https", "orders.example.com", "/"), ""},
		{"tokens", forwarded("GET", "https, http", "orders.example.com", "/"), ""},
		{"tokens", forwarded("GET", "javascript", "orders.example.com", "/"), ""},
		{"tokens", forwarded("GET", "https", "user@orders.example.com", "/"), ""},
		{"tokens", forwarded("GET", "https", "orders.example.com/x?", "/"), ""},
		{"tokens", forwarded("GET", "https", "orders.example.com", "x"), ""},
		{"tokens", forwarded("GET", "https", "orders.example.com", "/a b"), ""},
		{"tokens", forwarded("GET", "https", "orders.example.com", "/ü"), ""},
		{"tokens", forwarded("GET", "https", "orders.example.com", "/%zz"), ""},
		{"tokens", forwarded("GET", "https", "orders.example.com", "/"+strings.Repeat("a", 9<<10)), ""},
		{"nginx", original("GET", "https://u:p@orders.example.com/a"), ""},
		{"nginx", original("GET", "/a"), ""},
	} {
		w := newWorld(t)
		answer := w.ask(t, "/v1/forward/"+test.gate, append(slices.Clone(test.header), "Authorization", "DPoP b.oun.d", "DPoP", "proof")...)
		got := ""
		for _, shown := range w.shown {
			got += shown.Method + " " + shown.URL
			if !shown.DPoP || !slices.Equal(shown.Proofs, []string{"proof"}) {
				t.Errorf("%+v", shown)
			}
		}
		if got != test.want || (answer.Code == 200) != (test.want != "") {
			t.Errorf("%s %.200q: %d, %q", test.gate, test.header, answer.Code, got)
		}
	}
	w := newWorld(t)
	if answer := w.ask(t, "/v1/forward/tokens", append(good, "Authorization", "DPoP b.oun.d", "DPoP", "proof", "DPoP", "proof")...); answer.Code != 400 || len(w.shown) != 0 {
		t.Errorf("two proofs: %d", answer.Code)
	}
	if w.ask(t, "/v1/forward/tokens", append(good, "Authorization", "Bearer g.oo.d")...); w.shown[0].URL != "" || w.shown[0].DPoP {
		t.Errorf("a token that is shown as bound to nothing comes with %+v", w.shown[0])
	}
}

// TestSeries: requests are counted by names of the configuration only.
func TestSeries(t *testing.T) {
	w := newWorld(t)
	for _, test := range outcomes() {
		w.ask(t, "/v1/forward/"+test.gate, test.header...)
	}
	before, n := w.series(t), 0
	for i := range 50 {
		w.ask(t, "/v1/forward/other"+strconv.Itoa(i), "X-API-Key", "kt_"+strconv.Itoa(i))
		w.ask(t, "/v1/forward/open", "X-API-Key", "kt_"+strconv.Itoa(i))
	}
	for _, value := range before {
		n += int(value)
	}
	if n != len(outcomes()) || before["both token ok"] != 1 || before["both apikey ok"] != 3 || before["both none large"] != 1 || before[" none no-gate"] != 1 || before["both apikey limited"] != 1 {
		t.Errorf("%d requests are counted: %v", n, before)
	}
	if after := w.series(t); len(after) != len(before) || after[" none no-gate"] != 51 || after["open apikey refused"] != 50 {
		t.Errorf("%d series became %d", len(before), len(after))
	}
}

func (w *world) series(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "keyturn_gateway_decisions_total" {
		t.Fatal(families, err)
	}
	series := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		l := m.GetLabel()
		series[l[0].GetValue()+" "+l[1].GetValue()+" "+l[2].GetValue()] = m.GetCounter().GetValue()
	}
	return series
}
