package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/conformance"
)

// PluginTest says what to try of the plugins of a configuration.
type PluginTest struct {
	// Plugin is the one to try; empty means every one that File names, or without
	// File all of the configuration.
	Plugin string
	// File holds key documents; their configs are what the plugins are tried with.
	// Without it a plugin must describe its endpoints itself.
	File string
	// Key is the name that the plugin is told. Default: keyturn/provider-test.
	Key string
	// Now is the clock; default: time.Now.
	Now func() time.Time
	// Done, if not nil, is told of each test when it is over.
	Done func(PluginResult)
}

// PluginResult is the outcome of one test of one plugin.
type PluginResult struct {
	Plugin string `json:"plugin"`
	Test   string `json:"test"`
	Proves string `json:"proves"`
	// Outcome is passed, failed or skipped.
	Outcome string `json:"outcome"`
	// Problems say what is wrong, or why it was skipped.
	Problems []string `json:"problems,omitempty"`
}

// ErrPluginTest says that nothing could be tried.
var ErrPluginTest = errors.New("no plugin can be tried")

// TestPlugins runs the trials of the protocol and the conformance suite against
// plugins. It works on the real system behind each: versions with numbers beyond
// any in use are accepted there for moments, and refused and, where the plugin can,
// destroyed at the end of each test.
func TestPlugins(ctx context.Context, config Config, test PluginTest) ([]PluginResult, error) {
	if test.Key == "" {
		test.Key = "keyturn/provider-test"
	}
	if test.Now == nil {
		test.Now = time.Now
	}
	name, err := key.ParseName(test.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: --key: %w", ErrPluginTest, err)
	}
	targets, err := config.pluginTargets(ctx, test)
	if err != nil {
		return nil, err
	}
	var results []PluginResult
	for _, target := range targets {
		target.key, target.now = name, test.Now
		target.done = func(r PluginResult) {
			results = append(results, r)
			if test.Done != nil {
				test.Done(r)
			}
		}
		target.run(ctx)
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
	}
	return results, nil
}

// pluginTarget is one plugin with the config of a key.
type pluginTarget struct {
	name, kind string
	transport  plugin.Transport
	config     provider.Config
	said       *output
	key        key.Name
	now        func() time.Time
	done       func(PluginResult)
}

// pluginTargets finds what to try.
func (c *Config) pluginTargets(ctx context.Context, test PluginTest) ([]pluginTarget, error) {
	if _, known := c.Plugins[test.Plugin]; test.Plugin != "" && !known {
		return nil, fmt.Errorf("%w: the configuration has no plugin %q; it has %v", ErrPluginTest, test.Plugin, slices.Sorted(maps.Keys(c.Plugins)))
	}
	configs := map[string]provider.Config{}
	if test.File != "" {
		var err error
		if configs, err = keyConfigs(test.File); err != nil {
			return nil, err
		}
	}
	var targets []pluginTarget
	for _, name := range slices.Sorted(maps.Keys(c.Plugins)) {
		_, named := configs[name]
		if test.Plugin != "" && name != test.Plugin || test.Plugin == "" && test.File != "" && !named {
			continue
		}
		t := pluginTarget{name: name, kind: kindExec, said: &output{}, config: configs[name]}
		if c.Plugins[name].Webhook != nil {
			t.kind = kindWebhook
		}
		t.transport = c.transports(t.kind, t.said.add)[name]
		if t.config == nil {
			described, err := describedConfig(ctx, name, t.transport)
			if err != nil {
				return nil, fmt.Errorf("%w: plugin %s: %w; give a key document with --file", ErrPluginTest, name, err)
			}
			t.config = described
		}
		targets = append(targets, t)
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("%w: neither the configuration nor the key documents name one; see docs/reference/plugins.md", ErrPluginTest)
	}
	return targets, nil
}

// keyConfigs are the configs of the keys in a file, by the plugin that they name.
func keyConfigs(path string) (map[string]provider.Config, error) {
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: --file: %w", ErrPluginTest, err)
	}
	resources, err := policy.Parse(path, source)
	if err != nil {
		return nil, err
	}
	configs := map[string]provider.Config{}
	for _, r := range resources {
		if k := r.Key; k != nil && (k.Spec.Provider == kindExec || k.Spec.Provider == kindWebhook) {
			name, _ := k.Spec.Config["plugin"].(string)
			configs[name] = provider.Config(k.Spec.Config)
		}
	}
	return configs, nil
}

// describedConfig is what a plugin says a key's config would be.
func describedConfig(ctx context.Context, name string, transport plugin.Transport) (provider.Config, error) {
	d, err := plugin.Describe(ctx, transport, nil)
	if err != nil {
		return nil, err
	}
	config := provider.Config{"plugin": name}
	var endpoints []any
	for _, e := range d.Endpoints {
		block := map[string]any{"name": e.Name}
		for field, value := range map[string]string{"region": e.Region, "host": e.Host} {
			if value != "" {
				block[field] = value
			}
		}
		endpoints = append(endpoints, block)
	}
	if len(endpoints) == 0 {
		return nil, errors.New("it describes no endpoints")
	}
	config["endpoints"] = endpoints
	if d.Capacity != nil {
		config["capacity"] = float64(*d.Capacity)
	}
	if d.Gap != nil {
		config["gap"] = *d.Gap
	}
	var methods []any
	for _, method := range [...]string{plugin.MethodUsage, plugin.MethodPreflight, plugin.MethodHeld, plugin.MethodFence, plugin.MethodDestroy} {
		if slices.Contains(d.Methods, method) {
			methods = append(methods, method)
		}
	}
	if len(methods) > 0 {
		config["methods"] = methods
	}
	return config, nil
}

// run tries everything.
func (t *pluginTarget) run(ctx context.Context) {
	driver := plugin.New(plugin.Config{Kind: t.kind, Plugins: map[string]plugin.Transport{t.name: t.transport}})
	if _, err := driver.Check(t.config); err != nil {
		t.tell("Config", "the key's config is right", []string{err.Error()}, "")
		return
	}
	// Numbers and fences that no real key has reached, and that grow from run to run.
	first := uint64(t.now().UnixMilli())
	for _, trial := range plugin.Trials() {
		var problems []string
		if err := trial.Run(ctx, t.transport, t.config, t.key, key.Version(first)); err != nil {
			problems = []string{err.Error()}
		}
		t.tell(trial.Name, trial.Proves, problems, "")
		first += numbersPerTest
		if trial.Name == plugin.Trials()[0].Name && problems != nil {
			return // nothing else would tell more
		}
	}
	for _, test := range conformance.Tests() {
		result := test.Run(ctx, conformance.Target{
			Driver: driver, Config: t.config, Key: t.key, First: first, Tidy: true, Output: t.said.text,
		})
		t.tell(test.Name, test.Proves, result.Failures, result.Skipped)
		first += numbersPerTest
		if ctx.Err() != nil {
			return
		}
	}
}

// numbersPerTest is more than one test uses up.
const numbersPerTest = 1000

func (t *pluginTarget) tell(test, proves string, problems []string, skipped string) {
	r := PluginResult{Plugin: t.name, Test: test, Proves: proves, Outcome: "passed", Problems: problems}
	switch {
	case len(problems) > 0:
		r.Outcome = "failed"
	case skipped != "":
		r.Outcome, r.Problems = "skipped", []string{skipped}
	}
	t.done(r)
}

// output keeps what a program wrote to standard error, up to maxOutput bytes.
type output struct {
	mu   sync.Mutex
	said []byte
}

const maxOutput = 16 << 20

func (o *output) add(text []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said = append(o.said, text[:min(len(text), maxOutput-len(o.said))]...)
}

func (o *output) text() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.said)
}

// PrintPluginResult writes a result as a line of a table, and its problems below.
func PrintPluginResult(w io.Writer, r PluginResult) error {
	if _, err := fmt.Fprintf(w, "%-8s %-12s %-30s %s\n", r.Outcome, r.Plugin, r.Test, r.Proves); err != nil {
		return err
	}
	for _, problem := range r.Problems {
		if _, err := fmt.Fprintf(w, "         %s\n", problem); err != nil {
			return err
		}
	}
	return nil
}
