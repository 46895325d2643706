package ingress

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

func TestAddresses(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:1":            "192.0.2.1",
		"[::ffff:192.0.2.1]:1":   "::ffff:192.0.2.1",
		"[2001:db8:1:2:3::4]:1":  "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::]:": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1":       "fe80::/64",
		"@":                      "@",
	} {
		if got := subscriber(nil, &http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

func TestLimitersAreBounded(t *testing.T) {
	l := newLimiters(Rate{PerSecond: 1, Burst: 1})
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

func TestAddressesHaveARate(t *testing.T) {
	now := time.Unix(0, 0)
	log := &strings.Builder{}
	limit := NewAddressRate(AddressRateConfig{
		Rate: Rate{PerSecond: 1, Burst: 2}, What: "questions", Now: func() time.Time { return now },
		Tally: NewTally(slog.New(slog.NewTextHandler(log, nil)), func() time.Time { return now }),
	})
	one, other := &http.Request{RemoteAddr: "192.0.2.1:1"}, &http.Request{RemoteAddr: "192.0.2.2:1"}
	for i, want := range []bool{true, true, false} {
		if limit.Admit(one) != want {
			t.Errorf("request %d: admitted is not %t", i+1, want)
		}
	}
	if !limit.Admit(other) {
		t.Error("addresses have one rate together")
	}
	if !strings.Contains(log.String(), "what=questions times=1 lastFrom=192.0.2.1") {
		t.Errorf("the log says:\n%s", log)
	}
	if now = now.Add(time.Second); !limit.Admit(one) || limit.Admit(one) {
		t.Error("it is not one per second")
	}
}
