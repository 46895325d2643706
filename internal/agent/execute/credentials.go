package execute

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/render"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// credentials are one consistent set of versions.
type credentials map[key.Name]client.Assignment

// environ returns the variables of the program, without those of the files.
func (p *plan) environ(c credentials) ([]string, error) {
	set := make(map[string]string)
	for _, e := range p.Env {
		v, ok := field(c[e.Key], e.Field)
		if !ok {
			return nil, fmt.Errorf("key %s has no field %q; it has %s", e.Key, e.Field, strings.Join(fields(c[e.Key]), ", "))
		}
		set[e.Name] = v
	}
	for _, k := range p.whole {
		for _, f := range fields(c[k]) {
			name := prefix(k) + variable(f)
			if err := checkVariable(name); err != nil {
				return nil, fmt.Errorf("field %q of key %s: %w", f, k, err)
			}
			if _, taken := set[name]; taken {
				return nil, fmt.Errorf("field %q of key %s: the environment variable %s is taken; name it with --env", f, k, name)
			}
			set[name], _ = field(c[k], f)
		}
	}
	env := slices.DeleteFunc(slices.Clone(p.Environ), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		_, replaced := set[name]
		return replaced || name == "KEYTURN_TOKEN" || name == "KEYTURN_JOIN_TOKEN"
	})
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if strings.ContainsRune(set[name], 0) {
			return nil, fmt.Errorf("the value of %s has a NUL byte, which no environment variable can hold; use --file", name)
		}
		env = append(env, name+"="+set[name])
	}
	return env, nil
}

// contents renders the files, in the order of Options.Files.
func (p *plan) contents(c credentials) ([]secret.Value, error) {
	in := make(map[key.Name]render.Material, len(c))
	for k, a := range c {
		in[k] = render.Material{Version: a.Version, Attributes: a.Attributes, Secrets: a.Secrets}
	}
	out := make([]secret.Value, len(p.templates))
	for i, t := range p.templates {
		v, err := t.Execute(in)
		if err != nil {
			return nil, fmt.Errorf("file %s: %w", p.Files[i].Name, err)
		}
		out[i] = v
	}
	return out, nil
}

// alike reports whether the program would see no difference.
func (p *plan) alike(a, b credentials) bool {
	for _, k := range p.keys {
		x, y := a[k], b[k]
		if !maps.Equal(x.Attributes, y.Attributes) || !maps.EqualFunc(x.Secrets, y.Secrets, func(v, w secret.Value) bool { return bytes.Equal(v.Reveal(), w.Reveal()) }) {
			return false
		}
	}
	return true
}

func field(a client.Assignment, name string) (string, bool) {
	if v, ok := a.Secrets[name]; ok {
		return v.RevealString(), true
	}
	v, ok := a.Attributes[name]
	return v, ok
}

// fields lists the names of an assignment's fields, sorted.
func fields(a client.Assignment) []string {
	names := slices.Collect(maps.Keys(a.Attributes))
	names = slices.AppendSeq(names, maps.Keys(a.Secrets))
	slices.Sort(names)
	return slices.Compact(names)
}

func (c credentials) redactor() run.Redactor {
	var values []secret.Value
	for _, a := range c {
		values = slices.AppendSeq(values, maps.Values(a.Secrets))
	}
	return run.NewRedactor(values...)
}
