package client_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/secret"
)

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConfig(t *testing.T) {
	token := client.StaticToken(secret.NewString("t"))
	empty := t.TempDir() + "/ca.pem"
	writeFile(t, empty, "no certificate")
	bad := map[string]struct {
		cfg  client.Config
		hint string
	}{
		"no address":    {client.Config{Token: token}, "https://keyturn.example"},
		"no token":      {client.Config{Address: "https://x"}, "TokenFile"},
		"in the clear":  {client.Config{Address: "http://keyturn.example", Token: token}, "use https://"},
		"scheme":        {client.Config{Address: "ftp://x", Token: token}, "use https://"},
		"no host":       {client.Config{Address: "https://", Token: token}, "names no host"},
		"user":          {client.Config{Address: "https://u:hunter2@x", Token: token}, "belong into Token"},
		"query":         {client.Config{Address: "https://x?a=b", Token: token}, "no query"},
		"second":        {client.Config{Address: "https://a,http://b", Token: token}, "use https://"},
		"empty second":  {client.Config{Address: "https://a,", Token: token}, "https://keyturn.example"},
		"too many":      {client.Config{Address: strings.Repeat("https://a,", 16) + "https://a", Token: token}, "at most 16"},
		"negative":      {client.Config{Address: "x", Token: token, PollInterval: -1}, "PollInterval"},
		"long poll":     {client.Config{Address: "x", Token: token, LongPollWait: time.Hour}, "between 0 and 1m0s"},
		"back-off":      {client.Config{Address: "x", Token: token, BackoffMin: time.Minute}, "BackoffMax"},
		"party":         {client.Config{Address: "x", Token: token, Party: client.Party{ID: "ä"}}, "letters, digits"},
		"long party":    {client.Config{Address: "x", Token: token, Party: client.Party{ID: strings.Repeat("a", 129)}}, "at most 128"},
		"kind":          {client.Config{Address: "x", Token: token, Party: client.Party{Kind: 9}}, "Kind 9"},
		"unnamed agent": {client.Config{Address: "x", Token: token, Party: client.Party{Kind: client.KindAgent}}, "survives a restart"},
		"no CA file":    {client.Config{Address: "x", Token: token, CACertFile: empty + "x"}, "no such file"},
		"bad CA file":   {client.Config{Address: "x", Token: token, CACertFile: empty}, "no PEM certificate"},
	}
	for name, test := range bad {
		_, err := client.New(test.cfg)
		if !errors.Is(err, client.ErrConfig) || !strings.Contains(err.Error(), test.hint) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want a hint of %q", name, err, test.hint)
		}
	}
	for _, address := range []string{"keyturn.example:8443", "https://keyturn.example/base/", "http://127.0.0.1:80", "http://localhost", "http://[::1]:80"} {
		c, err := client.New(client.Config{Address: address, Token: token})
		if err != nil {
			t.Errorf("%s: %v", address, err)
		} else if p := c.Party(); p.Kind != client.KindClient || strings.Count(p.ID, "/") != 2 || len(p.ID) > 128 {
			t.Errorf("default party: %+v", p)
		}
	}
}

func TestTokenSources(t *testing.T) {
	path := t.TempDir() + "/token"
	writeFile(t, path, " first\n")
	t.Setenv("KEYTURN_TEST_TOKEN", "from-env")
	file := client.TokenFile(path)
	for _, test := range []struct {
		source client.TokenSource
		want   string
	}{
		{client.StaticToken(secret.NewString("s")), "s"},
		{client.TokenEnv("KEYTURN_TEST_TOKEN"), "from-env"},
		{file, "first"},
	} {
		if got, err := test.source.Token(t.Context()); err != nil || got.RevealString() != test.want {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
	writeFile(t, path, "second")
	if got, err := file.Token(t.Context()); err != nil || got.RevealString() != "second" {
		t.Errorf("a changed file is not read again: %v", err)
	}
	for _, text := range []string{"", "  \n", "a b", "a\nb", "geheim-ä", strings.Repeat("x", 20<<10)} {
		writeFile(t, path, text)
		_, err := file.Token(t.Context())
		if !errors.Is(err, client.ErrToken) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%.10q: got %v", text, err)
		}
	}
	for _, source := range []client.TokenSource{client.TokenFile(path + "x"), client.TokenEnv("KEYTURN_TEST_NONE"), client.StaticToken(secret.Value{})} {
		if _, err := source.Token(t.Context()); !errors.Is(err, client.ErrToken) {
			t.Errorf("got %v, want ErrToken", err)
		}
	}
}
