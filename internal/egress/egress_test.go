package egress_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/egress"
)

func TestOnlyPublicAddresses(t *testing.T) {
	guard := egress.Guard{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}}
	for _, good := range []string{"1.1.1.1", "93.184.215.14", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:1.1.1.1", "10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5"} {
		if err := guard.Check(netip.MustParseAddr(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.2.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0",
		"fd00:2::1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
		"2001::1", "2001:db8::1", "::7f00:1", "fec0::1", "100::1", "0.1.2.3",
	} {
		if err := guard.Check(netip.MustParseAddr(bad)); !errors.Is(err, egress.ErrForbidden) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := guard.Check(netip.Addr{}); !errors.Is(err, egress.ErrForbidden) {
		t.Errorf("no address: %v", err)
	}
}

// TestGuardOfConnections: the address of the connection counts, not the name; a
// redirect is not followed.
func TestGuardOfConnections(t *testing.T) {
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	port := server.URL[len("http://127.0.0.1"):]
	get := func(g egress.Guard, address string) (int, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := g.Client(5 * time.Second).Do(request)
		if err != nil {
			return 0, err
		}
		defer func() { _ = response.Body.Close() }() // it is empty
		return response.StatusCode, nil
	}
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		if _, err := get(egress.Guard{}, "http://"+host+port); !errors.Is(err, egress.ErrForbidden) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if calls != 0 {
		t.Errorf("the inner server was called %d times", calls)
	}
	status, err := get(egress.Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, "http://127.0.0.1"+port)
	if err != nil || status != http.StatusTemporaryRedirect || calls != 1 {
		t.Errorf("allowed: status %d after %d calls, %v", status, calls, err)
	}
}
