package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/render"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
)

// LoadConfig reads and checks a configuration file. Relative template files are
// looked up beside it. The error wraps ErrConfig and joins one line for every
// problem, each with file, line, column and what to do.
func LoadConfig(path string) (Config, error) {
	content, err := readBounded(path, maxDocument)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return ParseConfig(path, content)
}

// ParseConfig is LoadConfig for content that was read from the file called path.
func ParseConfig(path string, content []byte) (Config, error) {
	r := &reader{file: path}
	doc := r.decode(content)
	if len(r.problems) > 0 {
		return Config{}, r.err()
	}
	cfg := r.config(doc)
	if len(r.problems) > 0 {
		return Config{}, r.err()
	}
	return cfg, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	return io.ReadAll(io.LimitReader(f, limit+1))
}

func (r *reader) config(doc document) Config {
	if doc.APIVersion != "" && doc.APIVersion != "keyturn/v1" {
		r.fail("apiVersion", fmt.Sprintf("%q is unknown", doc.APIVersion), "write keyturn/v1")
	}
	if doc.Kind != "" && doc.Kind != "Agent" {
		r.fail("kind", fmt.Sprintf("%q is no agent's configuration", doc.Kind), "write Agent")
	}
	cfg := Config{
		Server: doc.Server, CAFile: doc.CAFile, TokenFile: doc.TokenFile, JoinTokenFile: doc.JoinTokenFile,
		StateDir: doc.StateDir, PartyID: doc.Party.ID, Region: doc.Party.Region, Labels: doc.Party.Labels,
	}
	if cfg.StateDir == "" {
		cfg.StateDir = DefaultStateDir
	}
	if cfg.TokenFile == "" {
		cfg.TokenFile = filepath.Join(cfg.StateDir, "token")
	}
	for _, f := range []struct{ path, value string }{
		{"stateDir", cfg.StateDir}, {"tokenFile", cfg.TokenFile}, {"caFile", cfg.CAFile}, {"joinTokenFile", cfg.JoinTokenFile},
	} {
		if f.value != "" && !filepath.IsAbs(f.value) {
			r.fail(f.path, fmt.Sprintf("%q is relative", f.value), "write an absolute path: the agent's working directory is not fixed")
		}
	}
	if cfg.PartyID == "" {
		host, err := os.Hostname()
		if err != nil {
			r.fail("party.id", "it is empty and the host name cannot be had: "+err.Error(), "set party.id")
		}
		cfg.PartyID = host
	}
	r.connection(&cfg)
	if cfg.MetricsListen = doc.MetricsListen; cfg.MetricsListen != "" && !isAddress(cfg.MetricsListen) {
		r.fail("metricsListen", fmt.Sprintf("%q is no host and port", cfg.MetricsListen), "write for example 127.0.0.1:9171")
	}
	if doc.Metadata != nil {
		cfg.Metadata = r.metadata(doc.Metadata, cfg)
	}
	if len(doc.Targets) == 0 && doc.Metadata == nil {
		r.fail("targets", "there is none", "add a target with name, path and template, or metadata with listen and tokens")
	}
	names, paths := make(map[string]bool), make(map[string]string)
	for i, t := range doc.Targets {
		at := fmt.Sprintf("targets[%d]", i)
		if names[t.Name] {
			r.fail(at+".name", fmt.Sprintf("%q is used twice", t.Name), "give each target its own name")
		}
		names[t.Name] = true
		if other, taken := paths[filepath.Clean(t.Path)]; taken && t.Path != "" {
			r.fail(at+".path", fmt.Sprintf("target %q writes the same file", other), "give each target its own path")
		}
		paths[filepath.Clean(t.Path)] = t.Name
		cfg.Targets = append(cfg.Targets, r.target(at, t))
	}
	return cfg
}

// connection lets package client check what it will be given.
func (r *reader) connection(cfg *Config) {
	if cfg.Server == "" {
		r.fail("server", "it is missing", "write for example server: https://keyturn.example:8443")
		return
	}
	_, err := client.New(client.Config{
		Address: cfg.Server, Token: client.TokenFile(cfg.TokenFile),
		Party: client.Party{ID: cfg.PartyID, Kind: client.KindAgent, Region: cfg.Region, Labels: cfg.Labels},
	})
	if err == nil {
		return
	}
	path := "server"
	if strings.Contains(err.Error(), "Party.") {
		path = "party"
	}
	r.fail(path, strings.TrimPrefix(err.Error(), client.ErrConfig.Error()+": "), "")
}

var targetName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

func (r *reader) target(at string, d documentTarget) Target {
	t := Target{Name: d.Name, Path: d.Path, Order: d.Order, UID: -1, GID: -1}
	if !targetName.MatchString(d.Name) {
		r.fail(at+".name", fmt.Sprintf("%q is no name", d.Name), "use 1 to 63 letters, digits, '.', '_' and '-'")
	}
	switch {
	case d.Path == "":
		r.fail(at+".path", "it is missing", "write where the file goes, for example /etc/orders/db.conf")
	case !filepath.IsAbs(d.Path) || filepath.Clean(d.Path) != d.Path || d.Path == "/":
		r.fail(at+".path", fmt.Sprintf("%q is no absolute, clean path of a file", d.Path), "write for example /etc/orders/db.conf")
	}
	for i, k := range d.Keys {
		name, err := key.ParseName(k)
		if err != nil {
			r.fail(fmt.Sprintf("%s.keys[%d]", at, i), err.Error(), "")
			continue
		}
		t.Keys = append(t.Keys, name)
	}
	r.template(at, d, &t)
	t.Mode = r.mode(at, d)
	t.UID, t.GID = r.userOf(at, d.Owner), r.groupOf(at, d.Group)
	if d.Reload != nil {
		t.Reload = r.reload(at+".reload", *d.Reload)
	}
	if d.Health != nil {
		t.Health = r.health(at+".health", *d.Health)
	}
	return t
}

// template reads and parses the target's template.
func (r *reader) template(at string, d documentTarget, t *Target) {
	field := at + ".template"
	switch {
	case d.Template != "" && d.TemplateFile != "":
		r.fail(at+".templateFile", "template is given as well", "keep one of the two")
		return
	case d.Template == "" && d.TemplateFile == "":
		r.fail(field, "it is missing", `write for example template: '{{ (key "prod/orders/db").password }}', or name a templateFile`)
		return
	case d.TemplateFile != "":
		field = at + ".templateFile"
		path := d.TemplateFile
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(r.file), path)
		}
		text, err := readBounded(path, render.MaxSource)
		if err != nil {
			r.fail(field, err.Error(), "")
			return
		}
		t.Template = string(text)
	default:
		t.Template = d.Template
	}
	parsed, err := render.Parse(t.Template, t.Keys)
	if err != nil {
		r.templateProblem(field, d, err)
		return
	}
	if len(parsed.Keys()) == 0 {
		r.fail(field, "it names no key", `name one, for example {{ (key "prod/orders/db").password }}`)
	}
	for i, k := range t.Keys {
		if !slices.Contains(parsed.Keys(), k) {
			r.fail(fmt.Sprintf("%s.keys[%d]", at, i), fmt.Sprintf("the template never uses %q", k), "use it in the template or remove it here")
		}
	}
}

// templateProblem points at the line of the template: of its own file, or of the
// block it stands in.
func (r *reader) templateProblem(field string, d documentTarget, err error) {
	var e *render.Error
	if !errors.As(err, &e) || e.Line == 0 {
		r.fail(field, err.Error(), "")
		return
	}
	p := r.problemAt(r.token(field), e.Message, e.Hint)
	p.path = fmt.Sprintf("%s, line %d", field, e.Line)
	switch n := r.node(field).(type) {
	case *ast.LiteralNode: // a block: its text begins on the next line
		if n.Value != nil && n.Value.GetToken() != nil && n.Value.GetToken().Position != nil {
			p.line = n.Start.Position.Line + e.Line
			p.column = e.Column
		}
	default:
		if d.TemplateFile != "" {
			p.path = fmt.Sprintf("%s %s:%d:%d", field, d.TemplateFile, e.Line, e.Column)
		}
	}
	p.column = max(1, p.column)
	r.problems = append(r.problems, p)
}

func (r *reader) mode(at string, d documentTarget) fs.FileMode {
	if d.Mode == "" {
		return DefaultMode
	}
	at += ".mode"
	n, err := strconv.ParseUint(strings.TrimPrefix(string(d.Mode), "0o"), 8, 32)
	switch {
	case err != nil || d.Mode[0] != '0':
		r.fail(at, fmt.Sprintf("%q is no octal mode", d.Mode), `write for example "0640"`)
	case n > 0o777:
		r.fail(at, fmt.Sprintf("%q has more than permission bits", d.Mode), `write for example "0640"`)
	case n&0o400 == 0:
		r.fail(at, fmt.Sprintf("%q does not let the owner read", d.Mode), `write for example "0640"`)
	case n&0o003 != 0, n&0o004 != 0 && !d.WorldReadable:
		r.fail(at, fmt.Sprintf("%q opens a secret to everybody", d.Mode), `set group, and mode "0640"; for public material such as CA certificates set worldReadable: true, and mode "0644"`)
	}
	return fs.FileMode(n).Perm()
}

// account turns a user or group into its number; empty is -1.
func (r *reader) account(at, value string, lookup func() (string, error)) int {
	if value == "" {
		return -1
	}
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return int(n)
	}
	text, err := lookup()
	if err != nil {
		r.fail(at, err.Error(), "create the account, or write its number")
		return -1
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		r.fail(at, fmt.Sprintf("%q has the number %q, which is none", value, text), "")
		return -1
	}
	return n
}

func (r *reader) reload(at string, d documentReload) Reload {
	out := Reload{Timeout: DefaultReloadTimeout}
	if d.Timeout != "" {
		out.Timeout = r.duration(at+".timeout", d.Timeout, time.Millisecond, time.Hour)
	}
	switch {
	case d.Signal != nil && d.Command != nil:
		r.fail(at, "signal and command are both given", "keep one of the two")
	case d.Signal == nil && d.Command == nil:
		r.fail(at, "neither signal nor command is given", "give one, or leave reload out when the application notices by itself")
	case d.Signal != nil:
		out.Signal = r.signal(at+".signal", *d.Signal)
	default:
		out.Command = r.command(at+".command", d.Command)
	}
	return out
}

func (r *reader) signal(at string, d documentSignal) *run.Signal {
	number, err := run.ParseSignal(d.Name)
	if err != nil {
		r.fail(at+".name", err.Error(), "")
	}
	if (d.PIDFile == "") == (d.Process == "") {
		r.fail(at, "exactly one of pidFile and process is needed", "write for example pidFile: /run/nginx.pid")
	}
	if d.PIDFile != "" && !filepath.IsAbs(d.PIDFile) {
		r.fail(at+".pidFile", fmt.Sprintf("%q is relative", d.PIDFile), "write an absolute path")
	}
	return &run.Signal{Number: number, PIDFile: d.PIDFile, Process: d.Process}
}

func (r *reader) command(at string, args []string) []string {
	if len(args) == 0 || !filepath.IsAbs(args[0]) {
		r.fail(at, "it must begin with the absolute path of a program", "write for example [/bin/systemctl, reload, orders]; no shell is involved")
	}
	return args
}

func (r *reader) health(at string, d documentHealth) *Health {
	h := &Health{
		Health:      run.Health{HTTP: d.HTTP, TCP: d.TCP, Timeout: DefaultHealthTimeout, Interval: DefaultHealthInterval, Retries: DefaultHealthRetries},
		SampleEvery: DefaultSampleEvery, SampleFor: DefaultSampleFor, SampleThen: DefaultSampleThen,
	}
	given := 0
	if d.Command != nil {
		given++
		h.Command = r.command(at+".command", d.Command)
	}
	if d.HTTP != "" {
		given++
		if u, err := url.Parse(d.HTTP); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
			r.fail(at+".http", "it is no http or https URL without a user", "write for example http://127.0.0.1:8080/healthz")
		}
	}
	if d.TCP != "" {
		given++
		if _, _, err := net.SplitHostPort(d.TCP); err != nil {
			r.fail(at+".tcp", err.Error(), "write for example 127.0.0.1:5432")
		}
	}
	if given != 1 {
		r.fail(at, fmt.Sprintf("%d of command, http and tcp are given", given), "give exactly one")
	}
	if d.Retries != nil {
		h.Retries = *d.Retries
		if h.Retries < 0 || h.Retries > 1000 {
			r.fail(at+".retries", fmt.Sprintf("%d lies outside 0 to 1000", h.Retries), "")
		}
	}
	r.optional(at+".timeout", d.Timeout, &h.Timeout)
	r.optional(at+".interval", d.Interval, &h.Interval)
	if d.Sample != nil {
		r.optional(at+".sample.every", d.Sample.Every, &h.SampleEvery)
		r.optional(at+".sample.for", d.Sample.For, &h.SampleFor)
		r.optional(at+".sample.then", d.Sample.Then, &h.SampleThen)
	}
	return h
}

func (r *reader) optional(at, text string, to *time.Duration) {
	if text != "" {
		*to = r.duration(at, text, time.Millisecond, 24*time.Hour)
	}
}

func (r *reader) duration(at, text string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		r.fail(at, fmt.Sprintf("%q is no duration", text), "write for example 500ms, 10s or 2m")
		return least
	}
	if d < least || d > most {
		r.fail(at, fmt.Sprintf("%v lies outside %v to %v", d, least, most), "")
	}
	return d
}
