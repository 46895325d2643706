package server

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/internal/provider/plugin/process"
	"github.com/keyturn/keyturn/internal/provider/plugin/webhook"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// PluginConfig says what a plugin is: a program or a service. Keys name it as
// plugin in their config.
type PluginConfig struct {
	Exec    *ExecPluginConfig    `yaml:"exec"`
	Webhook *WebhookPluginConfig `yaml:"webhook"`
}

// ExecPluginConfig says which program to run for each call.
type ExecPluginConfig struct {
	// Path of the program, absolute. Required.
	Path string   `yaml:"path"`
	Args []string `yaml:"args"`
	// Env is its whole environment.
	Env map[string]string `yaml:"env"`
	// User to run as, a name or UID:GID. Default: the server's own.
	User string `yaml:"user"`
	// Dir is where it runs. Default: /.
	Dir string `yaml:"dir"`
	// Concurrency is how many of it may run at the same time; 0 means 16.
	Concurrency int `yaml:"concurrency"`
}

// WebhookPluginConfig says which service to call.
type WebhookPluginConfig struct {
	// URL is https, or http on a loopback address. Required.
	URL string `yaml:"url"`
	// CA, Cert and Key are PEM files: who may have issued the service's certificate,
	// and a client certificate.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// SecretFile or SecretKey, a key of Keyturn, holds the signing secret. Required.
	SecretFile string `yaml:"secretFile"`
	SecretKey  string `yaml:"secretKey"`
	// Concurrency is how many calls may be under way at the same time; 0 means 64.
	Concurrency int `yaml:"concurrency"`
}

// Bounds of plugins.
const (
	maxPlugins     = 200
	maxConcurrency = 1000
)

// checkPlugins checks what can be checked without looking at files.
func (c *Config) checkPlugins() []problem {
	var problems []problem
	if len(c.Plugins) > maxPlugins {
		problems = append(problems, problem{Field: "plugins", Message: fmt.Sprintf("there are %d, at most %d are allowed", len(c.Plugins), maxPlugins)})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Plugins)) {
		field := "plugins." + name
		wrong := func(in, format string, args ...any) {
			problems = append(problems, problem{Field: field + in, Message: fmt.Sprintf(format, args...)})
		}
		if _, err := key.ParseName(name); err != nil || strings.Contains(name, "/") {
			wrong("", "the name has other characters than letters, digits, '-', '_' and '.'; write for example redis")
		}
		p := c.Plugins[name]
		if (p.Exec == nil) == (p.Webhook == nil) {
			wrong("", "it is either a program or a service; write exec: {path: …} or webhook: {url: …}")
			continue
		}
		if p.Exec != nil {
			p.Exec.check(wrong)
		} else {
			p.Webhook.check(wrong)
		}
	}
	return problems
}

func (p *ExecPluginConfig) check(wrong func(in, format string, args ...any)) {
	if !filepath.IsAbs(p.Path) {
		wrong(".exec.path", "%q is no absolute path; write for example /usr/local/lib/keyturn/redis-acl", p.Path)
	}
	if p.Dir != "" && !filepath.IsAbs(p.Dir) {
		wrong(".exec.dir", "%q is no absolute path", p.Dir)
	}
	for name := range p.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			wrong(".exec.env", "%q is no name of a variable", name)
		}
	}
	if p.Concurrency < 0 || p.Concurrency > maxConcurrency {
		wrong(".exec.concurrency", "%d is not between 0 and %d", p.Concurrency, maxConcurrency)
	}
}

func (p *WebhookPluginConfig) check(wrong func(in, format string, args ...any)) {
	if _, err := webhook.CheckURL(p.URL); err != nil {
		wrong(".webhook.url", "%v", err)
	}
	if (p.Cert == "") != (p.Key == "") {
		wrong(".webhook", "cert and key belong together; give both, or neither")
	}
	if (p.SecretFile == "") == (p.SecretKey == "") {
		wrong(".webhook", "it needs either secretFile or secretKey: every request is signed; see docs/reference/plugins.md")
	}
	if p.SecretKey != "" {
		if _, err := key.ParseName(p.SecretKey); err != nil {
			wrong(".webhook.secretKey", "%v", err)
		}
	}
	if p.Concurrency < 0 || p.Concurrency > maxConcurrency {
		wrong(".webhook.concurrency", "%d is not between 0 and %d", p.Concurrency, maxConcurrency)
	}
}

// transports are the plugins of one kind; tell, if not nil, gets what programs
// write to standard error.
func (c *Config) transports(kind string, tell func([]byte)) map[string]plugin.Transport {
	out := map[string]plugin.Transport{}
	for name, p := range c.Plugins {
		switch {
		case kind == kindExec && p.Exec != nil:
			out[name] = process.New(process.Config{
				Path: p.Exec.Path, Args: p.Exec.Args, Env: p.Exec.Env, User: p.Exec.User, Dir: p.Exec.Dir, Concurrency: p.Exec.Concurrency, Tell: tell,
			})
		case kind == kindWebhook && p.Webhook != nil:
			out[name] = webhook.New(webhook.Config{
				URL: p.Webhook.URL, CA: p.Webhook.CA, Cert: p.Webhook.Cert, Key: p.Webhook.Key,
				SecretFile: p.Webhook.SecretFile, SecretKey: key.Name(p.Webhook.SecretKey), Concurrency: p.Webhook.Concurrency,
			})
		}
	}
	return out
}

// The providers that speak to plugins.
const (
	kindExec    = "exec"
	kindWebhook = "webhook"
)

// pluginDriver is the provider of one kind of plugins. Without a configuration it
// only checks documents.
func pluginDriver(kind string, c *Config) provider.Driver {
	if c == nil {
		return plugin.New(plugin.Config{Kind: kind})
	}
	return plugin.New(plugin.Config{Kind: kind, Plugins: c.transports(kind, nil)})
}
