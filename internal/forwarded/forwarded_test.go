package forwarded_test

import (
	"errors"
	"net/http"
	"net/netip"
	"testing"

	"github.com/keyturn/keyturn/internal/forwarded"
)

func TestParse(t *testing.T) {
	header := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return h
	}
	for name, test := range map[string]struct {
		header http.Header
		client string
		bad    bool
	}{
		"neither":            {header: header("Authorization", "Bearer x")},
		"both":               {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "10.0.3.7"), client: "10.0.3.7"},
		"IPv4 in IPv6":       {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "::ffff:10.0.3.7"), client: "10.0.3.7"},
		"IPv6":               {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "2001:db8::1"), client: "2001:db8::1"},
		"an address alone":   {header: header("Keyturn-Client-Address", "10.0.3.7"), bad: true},
		"a token alone":      {header: header("Keyturn-Gateway", "t"), bad: true},
		"an empty token":     {header: header("Keyturn-Gateway", "", "Keyturn-Client-Address", "10.0.3.7"), bad: true},
		"two tokens":         {header: header("Keyturn-Gateway", "t", "Keyturn-Gateway", "u", "Keyturn-Client-Address", "10.0.3.7"), bad: true},
		"two addresses":      {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "10.0.3.7", "Keyturn-Client-Address", "10.0.3.8"), bad: true},
		"a list":             {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "10.0.3.7, 10.0.3.8"), bad: true},
		"a port":             {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "10.0.3.7:80"), bad: true},
		"a name":             {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "web-1"), bad: true},
		"a zone":             {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "fe80::1%eth0"), bad: true},
		"no address":         {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", "0.0.0.0"), bad: true},
		"an invalid address": {header: header("Keyturn-Gateway", "t", "Keyturn-Client-Address", netip.Addr{}.String()), bad: true},
	} {
		claim, ok, err := forwarded.Parse(test.header)
		switch {
		case test.bad != errors.Is(err, forwarded.ErrInvalid), ok != (test.client != ""):
			t.Errorf("%s: %v, %v", name, ok, err)
		case ok && claim.Client.String() != test.client:
			t.Errorf("%s: %v", name, claim.Client)
		}
	}
}

func TestSetReplacesWhatAClientWrote(t *testing.T) {
	h := http.Header{}
	h.Add(forwarded.Gateway, "guess")
	h.Add(forwarded.ClientAddress, "10.9.9.9")
	forwarded.Set(h, "token", netip.MustParseAddr("fe80::1%eth0"))
	claim, ok, err := forwarded.Parse(h)
	if err != nil || !ok || claim.Token.RevealString() != "token" || claim.Client.String() != "fe80::1" {
		t.Errorf("%v %v %v", claim, ok, err)
	}
}

// TestNoAddressIsVouchedFor: a gateway that does not know an address cannot have its
// request believed.
func TestNoAddressIsVouchedFor(t *testing.T) {
	h := http.Header{}
	forwarded.Set(h, "token", netip.Addr{})
	if _, ok, err := forwarded.Parse(h); ok || !errors.Is(err, forwarded.ErrInvalid) {
		t.Errorf("%v %v", ok, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("token", "10.0.3.7")
	f.Add("", "::1")
	f.Add("t", "fe80::1%eth0")
	f.Fuzz(func(t *testing.T, token, address string) {
		h := http.Header{forwarded.Gateway: {token}, forwarded.ClientAddress: {address}}
		claim, ok, err := forwarded.Parse(h)
		if ok != (err == nil) || ok != claim.Client.IsValid() {
			t.Fatalf("%v %v %v", claim, ok, err)
		}
		if !ok {
			return
		}
		if claim.Client.Zone() != "" || claim.Client.Is4In6() || claim.Token.RevealString() != token {
			t.Errorf("%q, %q: %v", token, address, claim)
		}
		again := http.Header{}
		forwarded.Set(again, token, claim.Client)
		if back, ok, err := forwarded.Parse(again); !ok || err != nil || back.Client != claim.Client {
			t.Errorf("%v becomes %v, %v", claim.Client, back.Client, err)
		}
	})
}
