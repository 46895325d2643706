package client

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// FuzzAddresses: what is accepted has one form, sends no token in the clear, and
// makes the same request whichever of the servers it goes to.
func FuzzAddresses(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1:7447", "https://a.b/c/", "https://a, https://b/p ,http://localhost:1", "http://[::1]:2", "https://a/x%2Fy,https://b/%41", "https://a,https://b/x%2Fy",
		"ftp://x", "https://u:hunter2@h", "https://u:hunter2@h h", "https://u:hunter2@", "https://u:hunter2@h?q", "https://h?q", "https://h?", "https://h/#", "http://a", "0:", "::", "", ",", "https://a,,https://b", strings.Repeat("a,", 17) + "a",
	} {
		f.Add(s)
	}
	const procedure = "/keyturn.v1.DeliveryService/Poll"
	f.Fuzz(func(t *testing.T, s string) {
		checked, err := checkAddresses(s)
		if err != nil {
			if checked != "" || !errors.Is(err, ErrConfig) {
				t.Fatalf("%q: %q %v", s, checked, err)
			}
			if strings.Contains(s, ":hunter2@") && strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("the error repeats a password: %v", err)
			}
			return
		}
		if again, err := checkAddresses(checked); err != nil || again != checked {
			t.Fatalf("%q becomes %q, and that %q (%v)", s, checked, again, err)
		}
		list, err := newServers(checked)
		if err != nil || list.number() < 1 || list.number() > maxServers {
			t.Fatalf("%q: %v", checked, err)
		}
		for range list.number() {
			to := list.current()
			if to.Scheme != "https" && (to.Scheme != "http" || !isLoopback(to.Hostname())) || to.Hostname() == "" || to.User != nil {
				t.Fatalf("%q leads to %q", s, to)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, list.first.String()+procedure, nil)
			if err != nil {
				t.Fatal(err)
			}
			list.address(req, to)
			want, err := url.Parse(to.String() + procedure)
			if err != nil || req.URL.Scheme != want.Scheme || strings.TrimSuffix(req.URL.Host, ":") != strings.TrimSuffix(want.Host, ":") ||
				req.URL.EscapedPath() != want.EscapedPath() || req.URL.RawQuery != "" || strings.TrimSuffix(req.Host, ":") != strings.TrimSuffix(to.Host, ":") || !strings.HasSuffix(req.URL.Path, procedure) {
				t.Fatalf("%q: a request for %q goes to %q of host %q (%v)", s, want, req.URL, req.Host, err)
			}
			list.leave(to)
		}
	})
}

// FuzzRetryAfter: a server can make a client wait, but not for ever nor backwards.
func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for _, s := range []string{"", "0", "3", "-1", "1e9", "99999999999999999999", "2147483647", now.Add(time.Second).Format(http.TimeFormat), "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "soon"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := parseRetryAfter(s, now); got < 0 || got > maxRetryAfter {
			t.Fatalf("%q: %v", s, got)
		}
	})
}
