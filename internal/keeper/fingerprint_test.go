package keeper_test

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/secret"
)

func TestFingerprintForms(t *testing.T) {
	prints := keeper.NewFingerprinter([]byte("0123456789abcdef0123456789abcdef"))
	for _, text := range []string{"Zk3vQ9xT7bLm2NcR8sWd", "a+b/c=d%e&f?g:h@i#jk", "-----BEGIN KEY-----\nAAAABBBBCCCC\nDDDD\n-----END KEY-----\n"} {
		want, ok := prints.Of(secret.NewString(text))
		if !ok {
			t.Fatalf("%q has no fingerprint", text)
		}
		for form, found := range map[string]string{
			"itself": text, "in quotes": "\"" + text + "\"", "base64": base64.StdEncoding.EncodeToString([]byte(text)),
			"base64url": base64.RawURLEncoding.EncodeToString([]byte(text)), "hexadecimal": hex.EncodeToString([]byte(text)),
			"URL": url.PathEscape(text), "JSON": strings.ReplaceAll(text, "\n", `\n`), "indented": strings.ReplaceAll(text, "\n", "\r\n    "),
		} {
			if !slices.Contains(prints.Forms(secret.NewString(found)), want) {
				t.Errorf("%s of %q is not recognised", form, text)
			}
		}
		other := keeper.NewFingerprinter([]byte("another pepper, as long as it is"))
		if slices.Contains(other.Forms(secret.NewString(text)), want) {
			t.Error("the pepper does not matter")
		}
	}
	for _, text := range []string{"", "short", "shortly and 15 ", strings.Repeat("x", keeper.MaxFingerprinted+1)} {
		if _, ok := prints.Of(secret.NewString(text)); ok && text != "shortly and 15 " {
			t.Errorf("a secret of %d bytes has a fingerprint", len(text))
		}
	}
}

// FuzzForms: any text that was found has a bounded number of forms, one of them
// itself if it is long enough.
func FuzzForms(f *testing.F) {
	f.Add("Zk3vQ9xT7bLm2NcR8sWd")
	f.Add("%41%42%zz")
	f.Add(`"a\nb"`)
	prints := keeper.NewFingerprinter(make([]byte, 32))
	f.Fuzz(func(t *testing.T, text string) {
		forms := prints.Forms(secret.NewString(text))
		if len(forms) > 6 {
			t.Fatalf("%d forms", len(forms))
		}
		if own, ok := prints.Of(secret.NewString(strings.Trim(strings.TrimSpace(text), "\"'`"))); ok && len(text) <= keeper.MaxFingerprinted && !slices.Contains(forms, own) {
			t.Fatal("a text is none of its own forms")
		}
	})
}
