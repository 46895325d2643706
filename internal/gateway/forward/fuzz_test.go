package forward

import (
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
)

// lists makes headers of a text: a line each, NAME: VALUE.
func lists(text string) headers {
	all := map[string][]string{}
	for line := range strings.SplitSeq(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))
		all[name] = append(all[name], strings.TrimSpace(value))
	}
	return func(name string) []string { return all[textproto.CanonicalMIMEHeaderKey(name)] }
}

// FuzzShown: a credential that is read is one token of one header, whole; with a second
// one beside it none is.
func FuzzShown(f *testing.F) {
	f.Add("Authorization: Bearer kt_live_x")
	f.Add("X-API-Key: kt_live_x")
	f.Add("Authorization: DPoP a.b.c\nDPoP: d.e.f")
	f.Add("Authorization: Bearer a, Bearer b\nX-Api-Key: c")
	f.Fuzz(func(t *testing.T, text string) {
		values := lists(text)
		read, problem := readShown(values)
		given := append(values(headerAPIKey), values(headerAuthorization)...)
		if problem != 0 {
			if read.text != "" || problem != Missing && problem != Malformed {
				t.Fatalf("%q: %v with %q", text, problem, read.text)
			}
			return
		}
		if len(given) != 1 || !strings.HasSuffix(given[0], read.text) || read.text == "" || strings.ContainsAny(read.text, ", \t\r\n\x00") || len(read.proofs) > 1 {
			t.Fatalf("%q is read as %+v", given, read)
		}
		for _, second := range []string{"Authorization: Bearer x", "X-API-Key: x", "Authorization:"} {
			if _, problem := readShown(lists(text + "\n" + second)); problem != Malformed {
				t.Fatalf("%q and %q: %v", text, second, problem)
			}
		}
	})
}

// FuzzClientAddress: what is read is an address or the peer's; it is no trusted proxy's
// unless all are; and nothing that a client puts before what the proxy wrote changes it.
func FuzzClientAddress(f *testing.F) {
	f.Add("192.0.2.7", "198.51.100.1")
	f.Add("192.0.2.7, 10.0.0.1,[2001:db8::1]:443", "unknown")
	f.Add(",,", "10.0.0.1")
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	f.Fuzz(func(t *testing.T, wrote, sent string) {
		const peer = "10.9.9.9"
		got := clientAddress([]string{wrote}, trusted, peer)
		addr, err := netip.ParseAddr(got)
		if err != nil || addr.String() != got || addr.Zone() != "" || addr.Is4In6() {
			t.Fatalf("%q gives %q: %v", wrote, got, err)
		}
		joined := clientAddress([]string{sent + "," + wrote}, trusted, peer)
		if lines := clientAddress([]string{sent, wrote}, trusted, peer); lines != joined {
			t.Fatalf("%q and %q give %q in lines and %q joined", sent, wrote, lines, joined)
		}
		if !trusts(trusted, addr) && joined != got {
			t.Fatalf("%q gives %q, after %q it gives %q", wrote, got, sent, joined)
		}
	})
}

// FuzzTarget: a method and URL that are read are of these parts, none of which reaches into
// another.
func FuzzTarget(f *testing.F) {
	f.Add("GET", "https", "orders.example.com", "/a?b")
	f.Add("GET", "http", "a@b", "/x#y")
	f.Add("PUT", "https", "[::1]:443", "//a/../b%2f")
	f.Fuzz(func(t *testing.T, method, scheme, host, path string) {
		header := map[string][]string{"X-Forwarded-Method": {method}, "X-Forwarded-Proto": {scheme}, "X-Forwarded-Host": {host}, "X-Forwarded-Uri": {path}}
		read, ok := readTarget(urlForwarded, func(name string) []string { return header[name] })
		if !ok {
			if read != (target{}) {
				t.Fatalf("%+v is not read and is there", read)
			}
			return
		}
		u, err := url.Parse(read.url)
		without, _, _ := strings.Cut(path, "?")
		if err != nil || u.Host != host || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || !strings.HasSuffix(read.url, host+without) || read.method != method ||
			u.Scheme != "https" && u.Scheme != "http" {
			t.Fatalf("%q %q %q %q is read as %+v: %v", method, scheme, host, path, read, err)
		}
		for name := range header {
			twice := func(asked string) []string {
				if asked == name {
					return append(header[asked], header[asked]...)
				}
				return header[asked]
			}
			if _, ok := readTarget(urlForwarded, twice); ok {
				t.Fatalf("%s is read although it is there twice", name)
			}
		}
		original := map[string][]string{"X-Original-Method": {method}, "X-Original-Url": {read.url}}
		if same, ok := readTarget(urlOriginal, func(name string) []string { return original[name] }); !ok || same != read {
			t.Fatalf("%+v is read as %+v in the other way", read, same)
		}
	})
}

// FuzzHeaderValue: a value is printable ASCII without spaces at its ends, and the text can be told from it.
func FuzzHeaderValue(f *testing.F) {
	for _, text := range []string{"", "-", "ACME Ltd.", " ü\r\nSet-Cookie: x ", "100%", "%2D", "\xff\x00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		value := headerValue(text)
		if value == "" || strings.Trim(value, " ") != value || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q becomes %q", text, value)
		}
		back, err := url.PathUnescape(value)
		if value == "-" {
			back = ""
		}
		if err != nil || back != text {
			t.Fatalf("%q becomes %q, which is read as %q: %v", text, value, back, err)
		}
	})
}
