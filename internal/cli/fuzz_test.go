package cli_test

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/cli"
)

// FuzzParseAddresses: a list has one form, and a request asks every server of it for
// the same thing.
func FuzzParseAddresses(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1:7447", "https://a, https://b/p ,http://localhost:1", "https://a/x%2Fy,https://b/%41", "https://h?", "0:", "https://u:hunter2@h h",
		"https://u:hunter2@h", "https://a,,https://b", ",", "", strings.Repeat("a,", 17) + "a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := cli.ParseAddresses(s, "test")
		if err != nil {
			if list != "" || strings.Contains(s, ":hunter2@") && strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("%q: %q %v", s, list, err)
			}
			return
		}
		if again, err := cli.ParseAddresses(list, "test"); err != nil || again != list {
			t.Fatalf("%q becomes %q, and that %q (%v)", s, list, again, err)
		}
		const path = "/keyturn.v1.ControlService/GetKey"
		_, went, err := cli.Addressed(list, path)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for address := range strings.SplitSeq(list, ",") {
			u, err := url.Parse(address + path)
			if err != nil || !strings.HasSuffix(u.Path, path) {
				t.Fatalf("%q: %v", address, err)
			}
			want = append(want, u.String())
		}
		slices.Sort(want)
		slices.Sort(went)
		if !slices.Equal(want, went) {
			t.Fatalf("requests go to %q instead of %q", went, want)
		}
	})
}

// FuzzReadToken: what is read can be a header, is bounded, and is in no error.
func FuzzReadToken(f *testing.F) {
	for _, s := range []string{"kt_0123456789abcdef_AAAA\n", "  x  ", "", "\n", "a b", "a\x00b", "ä", "\ufeffa", strings.Repeat("a", 1<<20)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, err := cli.ReadToken(strings.NewReader(s))
		if err != nil {
			if token != "" || len(s) > 40 && strings.Contains(err.Error(), s) {
				t.Fatalf("%q: %v", token, err)
			}
			return
		}
		if token == "" || token != strings.TrimSpace(s) || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Fatalf("%q becomes %q", s, token)
		}
		if again, err := cli.ReadToken(strings.NewReader(token)); err != nil || again != token {
			t.Fatalf("%q becomes %q (%v)", token, again, err)
		}
	})
}

// FuzzOwnFiles: damaged files of the command line's own are refused by their path,
// without the token; what they hold is kept when they are written again.
func FuzzOwnFiles(f *testing.F) {
	for _, s := range []string{
		`{"address":"https://a","token":"kt_1"}`, `{"address":"https://a","token":"kt_hunter2`, `{"token":["kt_hunter2"]}`, `{"token":kt_hunter2}`,
		`[{"log":"l","keys":["k"],"checkpoint":"c"},{"server":"s","log":"l","keys":null}]`, `[{"keys":"kt_hunter2"}]`, "null", "", "[]", "{}", "\x00",
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	own := filepath.Join(dir, "keyturn")
	if err := os.MkdirAll(own, 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, name := range []string{"login.json", "audit.json"} {
			if err := os.WriteFile(filepath.Join(own, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		refused := func(name string, err error) {
			if !strings.Contains(err.Error(), filepath.Join(own, name)) || bytes.Contains(content, []byte("kt_hunter2")) && strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("%q: %v", content, err)
			}
		}
		if address, token, err := cli.ReadLogin(dir); err != nil {
			refused("login.json", err)
			if address != "" || token != "" {
				t.Fatalf("%q and %q beside %v", address, token, err)
			}
		}
		n, err := cli.ReadTrust(dir)
		if err != nil {
			refused("audit.json", err)
			return
		}
		if again, err := cli.ReadTrust(dir); err != nil || again > n {
			t.Fatalf("%d logs become %d (%v)", n, again, err)
		}
	})
}

// FuzzParsePairs: labels are read as they are written.
func FuzzParsePairs(f *testing.F) {
	f.Add("cohort", "canary")
	f.Add("", "x")
	f.Add("a=b", "=")
	f.Add("a", "")
	f.Fuzz(func(t *testing.T, name, value string) {
		pairs, err := cli.ParsePairs("label", []string{name + "=" + value})
		first, rest, _ := strings.Cut(name+"="+value, "=")
		if (err == nil) != (first != "") || err == nil && (len(pairs) != 1 || pairs[first] != rest) {
			t.Fatalf("%q=%q becomes %q (%v)", name, value, pairs, err)
		}
	})
}
