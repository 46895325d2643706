package render_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/agent/render"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// FuzzTemplate checks that parsing and executing any template ends soon, stays
// within its bounds, reads only the keys it declared, and quotes no secret in
// an error.
func FuzzTemplate(f *testing.F) {
	for _, seed := range []string{
		`{{ with key "a" }}{{ .user }}:{{ .pass | shell }}{{ end }}`,
		`{{ range 99999999 }}{{ end }}`, `{{ (key "a").nope }}`, `{{ range $k, $v := key "a" }}{{ $k }}={{ $v | ini }}{{ end }}`,
		`{{ define "x" }}{{ template "x" . }}{{ end }}{{ template "x" (key "b") }}`, `{{ printf "%s%q" (key "a").pass 1 }}`,
		`{{ $x := "aa" }}{{ range 64 }}{{ $x = print $x $x | base64 }}{{ end }}`, `{{ if and (key "a") (not (key "b")) }}{{ end }}`,
		`{{ slice (key "a").pass 1 3 }}{{ len (key "a") }}`, `{{ range (key "a").pass }}{{ end }}`, `{{/* c */}}{{- "x" -}}`, "{{", `{{ . }}{{ $ }}`,
	} {
		f.Add(seed)
	}
	const password, outside = "Zq8#vTr0!mW", "Outside-4-Ever"
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, password) || strings.Contains(text, outside) {
			return // the template spells a secret itself
		}
		begin := time.Now()
		tmpl, err := render.Parse(text, nil)
		if err != nil {
			if !errors.Is(err, render.ErrTemplate) {
				t.Fatalf("Parse: %v wraps no ErrTemplate", err)
			}
			return
		}
		out, err := tmpl.Execute(map[key.Name]render.Material{
			"a":       {Version: 1, Attributes: map[string]string{"user": "u"}, Secrets: map[string]secret.Value{"pass": secret.NewString(password)}},
			"outside": {Version: 1, Secrets: map[string]secret.Value{"pass": secret.NewString(outside)}},
		})
		if took := time.Since(begin); took > 10*time.Second {
			t.Fatalf("took %v", took)
		}
		if out.Len() > render.MaxOutput {
			t.Fatalf("%d bytes", out.Len())
		}
		if err != nil && (!errors.Is(err, render.ErrExecute) || strings.Contains(err.Error(), password)) {
			t.Fatalf("Execute: %v", err)
		}
		if names := tmpl.Keys(); strings.Contains(out.RevealString(), outside) && !strings.Contains(strings.Join(texts(names), " "), "outside") {
			t.Fatalf("a key was read that is not among %v", names)
		}
	})
}

func texts(names []key.Name) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		out = append(out, n.String())
	}
	return out
}
