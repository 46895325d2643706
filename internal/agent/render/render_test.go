package render_test

import (
	"encoding/json"
	"errors"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/keyturn/keyturn/internal/agent/render"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

func versions() map[key.Name]render.Material {
	return map[key.Name]render.Material{
		"prod/orders/db": {
			Version:    7,
			Attributes: map[string]string{"username": "orders_a"},
			Secrets:    map[string]secret.Value{"password": secret.NewString("s3cr:t'\"\\ ü/@")},
		},
		"prod/mail": {
			Version: 2,
			Secrets: map[string]secret.Value{"api-key": secret.NewString("mailkey")},
		},
	}
}

func renderText(t *testing.T, text string) (string, error) {
	t.Helper()
	tmpl, err := render.Parse(text, nil)
	if err != nil {
		t.Fatalf("Parse(%q): %v", text, err)
	}
	out, err := tmpl.Execute(versions())
	return out.RevealString(), err
}

func TestRender(t *testing.T) {
	for text, want := range map[string]string{
		`plain`: "plain",
		`{{ with key "prod/orders/db" }}{{ .username }}{{ end }}`:                               "orders_a",
		`{{ (key "prod/orders/db").password }}`:                                                 `s3cr:t'"\ ü/@`,
		`{{ $db := key "prod/orders/db" }}{{ $db.username }} {{ keyversion "prod/orders/db" }}`: "orders_a 7",
		`{{ index (key "prod/mail") "api-key" }}`:                                               "mailkey",
		`{{ range $k, $v := key "prod/orders/db" }}{{ $k }};{{ end }}`:                          "password;username;",
		`{{ (key "prod/orders/db").username | upper | printf "%s-%q" "x" }}`:                    `x-"ORDERS_A"`,
		`{{ print (key "prod/orders/db").username 1 true }}`:                                    "orders_a1true",
		`{{ range 3 }}x{{ end }}`:                                                               "xxx",
		`{{ define "u" }}{{ .username }}{{ end }}{{ template "u" (key "prod/orders/db") }}`:     "orders_a",
		`{{ printf "a\nb" | indent 2 }}`:                                                        "a\n  b",
		`{{ if eq (key "prod/orders/db").username "orders_a" }}A{{ else }}B{{ end }}`:           "A",
	} {
		if got, err := renderText(t, text); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestKeysAreFoundWhenParsing(t *testing.T) {
	tmpl, err := render.Parse(`{{ with key "b/x" }}{{ if .a }}{{ (key "a").p }}{{ end }}{{ end }}{{ define "t" }}{{ keyversion "c" }}{{ end }}{{ (key "a").q | json }}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := tmpl.Keys(); !slices.Equal(got, []key.Name{"a", "b/x", "c"}) {
		t.Errorf("keys: %v", got)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct {
		text         string
		line, column int
		says         string
	}{
		{"a\n{{ key .x }}", 2, 4, "literal"},
		{`{{ $n := "a" }}{{ key $n }}`, 1, 0, "literal"},
		{`{{ "prod/orders/db" | key }}`, 1, 0, "literal"},
		{`{{ key "Prod" }}`, 1, 0, "invalid key name"},
		{"\n\n{{ .password }}", 3, 4, "with key"},
		{`{{ with key "a" }}{{ $.password }}{{ end }}`, 1, 0, "names no key"},
		{`{{ env "HOME" }}`, 1, 0, "the functions are"},
		{`{{ call key "a" }}`, 1, 0, "not available"},
		{`{{ html "a" }}`, 1, 0, "not available"},
		{`{{ keyturnStep }}`, 1, 0, "not available"},
		{`{{ println "a" }}`, 1, 0, "not available"},
		{"x\n{{ if }}", 2, 0, "missing value"},
		{`{{ (key "other").password }}`, 1, 0, "not among the target's keys"},
		{strings.Repeat("x", render.MaxSource+1), 0, 0, "at most"},
	} {
		_, err := render.Parse(tc.text, []key.Name{"a", "prod/orders/db"})
		var e *render.Error
		if !errors.As(err, &e) || !errors.Is(err, render.ErrTemplate) {
			t.Errorf("%.40q: got %v", tc.text, err)
			continue
		}
		if e.Line != tc.line || tc.column != 0 && e.Column != tc.column || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%.40q: got %v (line %d, column %d), want line %d, column %d, %q", tc.text, err, e.Line, e.Column, tc.line, tc.column, tc.says)
		}
	}
}

// TestExecuteRefuses also proves that no error quotes a value: the password
// contains "s3cr", which no template here does.
func TestExecuteRefuses(t *testing.T) {
	// What is found between two expressions has no place of its own.
	unplaced := map[string]bool{"output exceeds": true, "loop steps": true, "whole key": true}
	for text, says := range map[string]string{
		`{{ (key "prod/orders/db").pasword }}`:                                                                `no field "pasword"`,
		`{{ index (key "prod/orders/db") "nope" }}`:                                                           "password, username",
		`{{ key "prod/orders/db" }}`:                                                                          "whole key",
		`{{ with key "prod/orders/db" }}{{ . }}{{ end }}`:                                                     "whole key",
		`{{ print (key "prod/orders/db") }}`:                                                                  "only texts",
		`{{ (key "unknown/key").password }}`:                                                                  "has not been delivered",
		`{{ keyversion "unknown/key" }}`:                                                                      "has not been delivered",
		`{{ range (key "prod/orders/db").password }}{{ end }}`:                                                "does not fit",
		`{{ range 1000000000 }}{{ end }}`:                                                                     "loop steps",
		`{{ range 1000 }}{{ range 1000 }}{{ end }}{{ end }}`:                                                  "loop steps",
		`{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`:                                       "loop steps",
		`{{ $x := "0123456789" }}{{ range 64 }}{{ $x = print $x $x }}{{ end }}`:                               "bytes are produced",
		`{{ $x := "0123456789" }}{{ range 64 }}{{ $x = printf "%s%s" $x $x }}{{ end }}`:                       "bytes are produced",
		`{{ $x := "0123456789" }}{{ range 16 }}{{ $x = print $x $x }}{{ end }}{{ range 9 }}{{ $x }}{{ end }}`: "output exceeds",
		`{{ printf "%99999999d" 1 }}`:                                                                         "without flags",
		`{{ printf "%s" }}`:                                                                                   "more verbs",
		`{{ printf "x" 1 }}`:                                                                                  "fewer verbs",
		`{{ indent 1000000 "a" }}`:                                                                            "0 to 64",
		`{{ pgpass "a\nb" }}`:                                                                                 "line break",
		`{{ ini "a\nb" }}`:                                                                                    "line break",
		`{{ shell "a\x00b" }}`:                                                                                "NUL",
		`{{ json "\xff" }}`:                                                                                   "UTF-8",
		`{{ slice (key "prod/orders/db").password 5 2 }}`:                                                     "does not fit",
		`{{ lt (key "prod/orders/db").password 2 }}`:                                                          "does not fit",
	} {
		_, err := renderText(t, text)
		var e *render.Error
		if !errors.As(err, &e) || !errors.Is(err, render.ErrExecute) || e.Line != 1 && !unplaced[says] || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", text, err, says)
			continue
		}
		if strings.Contains(err.Error(), "s3cr") {
			t.Errorf("%s: the error quotes a secret: %v", text, err)
		}
	}
}

func TestAnExecutionReadsTheVersionsOnce(t *testing.T) {
	// User name and password arrive together (sapcc/helm-charts#8835): both come
	// from the one Material, however often the template asks.
	tmpl, err := render.Parse(`{{ range 50 }}{{ with key "a" }}{{ .user }}{{ .pass }} {{ end }}{{ end }}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := func(n string) map[key.Name]render.Material {
		return map[key.Name]render.Material{"a": {
			Attributes: map[string]string{"user": n}, Secrets: map[string]secret.Value{"pass": secret.NewString(n)},
		}}
	}
	for _, n := range []string{"1", "2"} {
		out, err := tmpl.Execute(v(n))
		if err != nil || out.RevealString() != strings.Repeat(n+n+" ", 50) {
			t.Errorf("version %s: %q, %v", n, out.RevealString(), err)
		}
	}
}

// TestEscapesComeBack lets the real readers parse what the escapes wrote.
func TestEscapesComeBack(t *testing.T) {
	for _, value := range []string{"", "plain", `s3cr:t'"\ ü/@?#&%+<>`, "a\nb\tc", "$HOME `id` !x", "\u2028\x7f"} {
		in := map[key.Name]render.Material{"k": {Secrets: map[string]secret.Value{"p": secret.NewString(value)}}}
		get := func(escape string) string {
			tmpl, err := render.Parse(`{{ (key "k").p | `+escape+` }}`, nil)
			if err != nil {
				t.Fatal(err)
			}
			out, err := tmpl.Execute(in)
			if err != nil {
				t.Fatalf("%s of %q: %v", escape, value, err)
			}
			return out.RevealString()
		}
		var s string
		if err := json.Unmarshal([]byte(get("json")), &s); err != nil || s != value {
			t.Errorf("json: %q came back as %q, %v", value, s, err)
		}
		if err := yaml.Unmarshal([]byte("v: "+get("yaml")), &struct{ V *string }{&s}); err != nil || s != value {
			t.Errorf("yaml: %q came back as %q, %v", value, s, err)
		}
		if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", "printf %s "+get("shell")).Output(); err != nil || string(out) != value {
			t.Errorf("shell: %q came back as %q, %v", value, out, err)
		}
		if u, err := url.Parse("postgres://u:" + get("userinfo") + "@h/?q=" + get("urlquery")); err != nil {
			t.Errorf("userinfo: %v", err)
		} else if p, _ := u.User.Password(); p != value || u.Query().Get("q") != value {
			t.Errorf("URL: %q came back as %q and %q", value, p, u.Query().Get("q"))
		}
	}
}

func TestPgpassAndINI(t *testing.T) {
	got, err := renderText(t, `{{ with key "prod/orders/db" }}*:*:*:{{ .username | pgpass }}:{{ .password | pgpass }} {{ .password | ini }}{{ end }}`)
	if want := `*:*:*:orders_a:s3cr\:t'"\\ ü/@ "s3cr:t'\"\\ ü/@"`; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}
