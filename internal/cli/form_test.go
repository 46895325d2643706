package cli_test

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/internal/cli"
)

// TestMessageJSON: what is printed is what protojson reads, so that nothing is
// lost or named otherwise.
func TestMessageJSON(t *testing.T) {
	plan, err := (&fake{}).Plan(t.Context(), &keyturnv1.PlanRequest{Name: "prod/bad/canary"})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []proto.Message{
		oldRotation(), fakeKeys()[0], plan, &keyturnv1.Rotation{},
		&keyturnv1.GetSecretResponse{Version: 1 << 53, Attributes: map[string]string{"a": "<&>\u2028\"", "": "x"}, Secrets: map[string][]byte{"k": {0, 255}}},
		&keyturnv1.Holder{Sessions: -5},
		&keyturnv1.RotateRequest{Compromised: []uint64{1, 2}, Emergency: true},
	} {
		text := cli.MessageJSON(m)
		read := m.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal(text, read); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if !proto.Equal(read, m) {
			t.Errorf("%s\nis read as %v\nbut was      %v", text, read, m)
		}
		if !bytes.Equal(text, cli.MessageJSON(m)) {
			t.Errorf("%s is printed otherwise the second time", text)
		}
	}
	kind := string(cli.MessageJSON(&keyturnv1.Party{Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT}))
	if !strings.Contains(kind, `"kind":"agent"`) {
		t.Error(kind)
	}
	if got := string(cli.MessageJSON(&keyturnv1.Party{Kind: 77})); !strings.Contains(got, `"kind":"77"`) {
		t.Error(got)
	}
}

func FuzzMessageJSON(f *testing.F) {
	f.Add("a", "b\x00\xff", []byte{1}, uint64(1))
	f.Fuzz(func(t *testing.T, a, b string, c []byte, n uint64) {
		m := &keyturnv1.GetSecretResponse{Version: n, Attributes: map[string]string{a: b}, Secrets: map[string][]byte{b: c}}
		text := cli.MessageJSON(m)
		var v map[string]any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"127.0.0.1:7447", "https://a.b/c/", "http://localhost:1", "http://[::1]:2", "ftp://x", "https://u:p@h", "https://h?q", "::", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		address, err := cli.ParseAddress(s, "test")
		if err != nil {
			return
		}
		u, err := url.Parse(address)
		if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q becomes %q", s, address)
		}
		if u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost" && u.Hostname() != "::1" && !strings.HasPrefix(u.Hostname(), "127.") && !strings.HasPrefix(u.Hostname(), "::ffff:127.")) {
			t.Fatalf("%q would be called without TLS", address)
		}
		if again, err := cli.ParseAddress(address, "test"); err != nil || again != address {
			t.Fatalf("%q becomes %q, and that %q (%v)", s, address, again, err)
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[31mb\u202ec\r\n\t\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := cli.Clean(s)
		if strings.ContainsFunc(got, func(r rune) bool { return r != '\uFFFD' && !unicode.IsPrint(r) }) {
			t.Errorf("%q becomes %q", s, got)
		}
		if cli.Clean(got) != got {
			t.Errorf("%q is not clean", got)
		}
	})
}

// FuzzBundleReader: how a bundle is cut into pieces changes nothing.
func FuzzBundleReader(f *testing.F) {
	f.Add([]byte("{\"origin\":\"o\",\"keys\":[]}\n{\"checkpoint\":\"one\"}\n{\"checkpoint\":\"two\"}\n{\"end\":{}}\n"), uint8(3), uint8(7))
	f.Add([]byte("{\"checkpoint\":\"unfinished\"}"), uint8(1), uint8(1))
	f.Fuzz(func(t *testing.T, content []byte, in, out uint8) {
		whole := bytes.NewReader(content)
		origin, checkpoint := cli.ReadBundle(whole.Read, 1<<16)
		cut := bytes.NewReader(content)
		o, c := cli.ReadBundle(func(p []byte) (int, error) { return cut.Read(p[:min(len(p), int(in)+1)]) }, int(out)+1)
		if o != origin || c != checkpoint {
			t.Errorf("%q, %q in pieces, %q, %q as a whole", o, c, origin, checkpoint)
		}
	})
}

// TestQuoteShell: a shell reads what was quoted.
func TestQuoteShell(t *testing.T) {
	for _, s := range []string{"", "plain", "it's", "a b", "$HOME `id` \\ \"", "-n", "*", "a\nb", "ä"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+cli.QuoteShell(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q is read as %q (%v)", s, out, err)
		}
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1500 * time.Microsecond: "2ms", 2500 * time.Millisecond: "2.5s", 61 * time.Second: "1m1s", time.Hour: "1h",
		25 * time.Hour: "1d1h", 48*time.Hour + time.Minute: "2d",
	} {
		if got := cli.Short(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
