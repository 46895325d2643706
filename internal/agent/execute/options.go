package execute

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/internal/agent/render"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// checkVariable refuses what is no variable, and what makes the dynamic linker
// or a shell run code: a field's name must never decide that.
func checkVariable(name string) error {
	if !variableName.MatchString(name) {
		return fmt.Errorf("%w: %q is no name of an environment variable; use letters, digits and '_', and no digit first", ErrOptions, name)
	}
	if strings.HasPrefix(name, "LD_") || slices.Contains([]string{"PATH", "IFS", "ENV", "BASH_ENV", "HOME", "SHELL"}, name) {
		return fmt.Errorf("%w: the environment variable %s is not for credentials; choose another name with --env", ErrOptions, name)
	}
	return nil
}

// ParseEnv reads NAME=KEY:FIELD, for example DB_PASS=prod/orders/db:password.
func ParseEnv(text string) (Env, error) {
	name, source, ok := strings.Cut(text, "=")
	from, field, ok2 := strings.Cut(source, ":")
	if !ok || !ok2 || field == "" {
		return Env{}, fmt.Errorf("%w: --env %q; write NAME=KEY:FIELD, for example DB_PASS=prod/orders/db:password", ErrOptions, text)
	}
	if err := checkVariable(name); err != nil {
		return Env{}, err
	}
	k, err := key.ParseName(from)
	if err != nil {
		return Env{}, fmt.Errorf("%w: --env %s: %w", ErrOptions, name, err)
	}
	return Env{Name: name, Key: k, Field: field}, nil
}

// ParseFile reads NAME=KEY:FIELD (the file holds that field) or NAME=TEMPLATE
// (a text with "{{"). NAME is the variable that holds the file's path.
func ParseFile(text string) (File, error) {
	name, source, ok := strings.Cut(text, "=")
	if !ok {
		return File{}, fmt.Errorf("%w: --file %q; write NAME=KEY:FIELD or NAME=TEMPLATE, for example PGPASSFILE='*:*:*:*:{{ (key \"prod/orders/db\").password | pgpass }}'", ErrOptions, text)
	}
	if err := checkVariable(name); err != nil {
		return File{}, err
	}
	if !strings.Contains(source, "{{") {
		e, err := ParseEnv(text)
		if err != nil {
			return File{}, fmt.Errorf("--file: %w", err)
		}
		source = fmt.Sprintf("{{ index (key %q) %q }}", e.Key, e.Field)
	}
	if _, err := render.Parse(source, nil); err != nil {
		return File{}, fmt.Errorf("%w: --file %s: %w", ErrOptions, name, err)
	}
	return File{Name: name, Template: source}, nil
}

// ParseOnChange reads "restart", "none" or "signal=HUP".
func ParseOnChange(text string) (OnChange, syscall.Signal, error) {
	what, name, _ := strings.Cut(text, "=")
	switch what {
	case "restart":
		return Restart, 0, nil
	case "none":
		return None, 0, nil
	case "signal":
		number, err := run.ParseSignal(name)
		if err != nil {
			return 0, 0, fmt.Errorf("%w: --on-change: %w", ErrOptions, err)
		}
		return Signal, number, nil
	}
	return 0, 0, fmt.Errorf("%w: --on-change %q; write restart, signal=HUP or none", ErrOptions, text)
}

// plan is what Options come to.
type plan struct {
	Options
	templates []*render.Template
	// whole are the keys that are delivered as SEGMENT_FIELD.
	whole []key.Name
	keys  []key.Name
}

func newPlan(o Options) (*plan, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Delivery == nil:
		return nil, fmt.Errorf("%w: Delivery is missing", ErrOptions)
	case len(o.Command) == 0 || o.Command[0] == "":
		return nil, fmt.Errorf("%w: there is no command; write it after --", ErrOptions)
	case o.OnChange != Restart && o.OnChange != Signal && o.OnChange != None:
		return nil, fmt.Errorf("%w: OnChange is missing", ErrOptions)
	case o.OnChange == Signal && len(o.Files) == 0:
		return nil, fmt.Errorf("%w: --on-change signal needs --file: the environment of a running program cannot change", ErrOptions)
	case o.OnChange == Signal && o.Signal == 0:
		return nil, fmt.Errorf("%w: --on-change signal needs a signal; write for example signal=HUP", ErrOptions)
	case o.OnChange == Signal && (len(o.Env) > 0):
		return nil, fmt.Errorf("%w: --env goes stale with --on-change signal: the environment of a running program cannot change; use --file", ErrOptions)
	case o.KillAfter < 0 || o.Settle < 0 || o.Wait < 0:
		return nil, fmt.Errorf("%w: a duration is negative", ErrOptions)
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&o.KillAfter, DefaultKillAfter}, {&o.Settle, DefaultSettle}, {&o.Wait, DefaultWait}} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	p := &plan{Options: o}
	used := make(map[string]bool)
	take := func(name string) error {
		if used[name] {
			return fmt.Errorf("%w: the environment variable %s is set twice", ErrOptions, name)
		}
		used[name] = true
		return checkVariable(name)
	}
	for _, e := range o.Env {
		if err := take(e.Name); err != nil {
			return nil, err
		}
		p.keys = append(p.keys, e.Key)
	}
	for _, f := range o.Files {
		if err := take(f.Name); err != nil {
			return nil, err
		}
		t, err := render.Parse(f.Template, nil)
		if err != nil {
			return nil, fmt.Errorf("%w: --file %s: %w", ErrOptions, f.Name, err)
		}
		p.templates = append(p.templates, t)
		p.keys = append(p.keys, t.Keys()...)
	}
	for _, k := range o.Keys {
		if !k.Valid() {
			return nil, fmt.Errorf("%w: %q is no key name", ErrOptions, k)
		}
		if slices.Contains(p.keys, k) || slices.Contains(p.whole, k) {
			continue
		}
		if slices.ContainsFunc(p.whole, func(other key.Name) bool { return prefix(other) == prefix(k) }) {
			return nil, fmt.Errorf("%w: the fields of two keys would both be called %sFIELD; name them with --env", ErrOptions, prefix(k))
		}
		p.whole = append(p.whole, k)
	}
	if o.OnChange == Signal && len(p.whole) > 0 {
		return nil, fmt.Errorf("%w: %s would go into the environment, which goes stale with --on-change signal; use --file", ErrOptions, p.whole[0])
	}
	p.keys = append(p.keys, p.whole...)
	slices.Sort(p.keys)
	p.keys = slices.Compact(p.keys)
	if len(p.keys) == 0 {
		return nil, fmt.Errorf("%w: no key is named; write --key NAME", ErrOptions)
	}
	return p, nil
}

// prefix begins the variables of a key that is delivered whole.
func prefix(k key.Name) string {
	segment := k.String()[strings.LastIndexByte(k.String(), '/')+1:]
	return variable(segment) + "_"
}

// variable turns the name of a field or segment into that of a variable.
func variable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, s)
}
