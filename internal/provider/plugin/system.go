package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// system is one opened key. It holds no state of its own.
type system struct {
	settings  settings
	transport Transport
	env       provider.Env
	random    io.Reader
	now       func() time.Time
	// name is the kind and name of the plugin, for messages.
	name string
}

var (
	_ provider.System      = (*system)(nil)
	_ provider.Preflighter = (*system)(nil)
	_ provider.Destroyer   = (*system)(nil)
)

// Bounds of what is kept of a plugin's texts, in bytes.
const (
	maxMessage = 500
	maxCode    = 64
)

// defaultTimeout goes for calls without a deadline.
const defaultTimeout = time.Minute

// ask carries out one call. Secrets of the request and of the answer are blotted
// out in everything that is returned, but for the material itself.
func (s *system) ask(ctx context.Context, r request, secrets ...secret.Value) (result, *Scrubber, error) {
	scrub := NewScrubber(secrets...)
	answer, err := s.exchange(ctx, &r, scrub)
	if err != nil {
		return result{}, scrub, err
	}
	out, err := decode(answer, &r)
	clear(answer)
	if err != nil {
		return result{}, scrub, provider.Hint(fmt.Errorf("%s: %s: %w", s.name, r.Method, err), "keyturn provider test tries the plugin")
	}
	if out.failure != nil {
		return result{}, scrub, s.failed(r.Method, out.failure, scrub)
	}
	return out, scrub, nil
}

// exchange completes a request, sends it, and returns the answer as it came.
func (s *system) exchange(ctx context.Context, r *request, scrub *Scrubber) ([]byte, error) {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	deadline, _ := ctx.Deadline()
	r.Protocol, r.ID = Protocol, rand.Text()
	r.TimeoutSeconds = max(deadline.Sub(s.now()).Seconds(), 0)
	r.Settings, r.Endpoints = s.settings.own, s.settings.endpoints
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", s.name, r.Method, err)
	}
	body, err := r.encode()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	answer, err := s.transport.Call(ctx, s.env, Request{ID: r.ID, Method: r.Method, Body: body, Scrub: scrub})
	clear(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", s.name, r.Method, err)
	}
	return answer, nil
}

// failed turns a plugin's error into one of package provider.
func (s *system) failed(method string, f *failure, scrub *Scrubber) error {
	message, hint := scrub.Text(f.Message, maxMessage), scrub.Text(f.Hint, maxMessage)
	err := fmt.Errorf("%s: %s: %s", s.name, method, message)
	switch f.Code {
	case codeSilent:
		err = fmt.Errorf("%w: %w", provider.ErrSilent, err)
	case codeDenied:
		err = fmt.Errorf("%w: %w", provider.ErrDenied, err)
	case codeNoRoom:
		err = fmt.Errorf("%w: %w", provider.ErrNoRoom, err)
	case codeNoData:
		err = fmt.Errorf("%w: %w", provider.ErrNoData, err)
	}
	for _, name := range f.Endpoints {
		if s.settings.endpoint(name) == nil {
			err = provider.At(name, err)
		}
	}
	switch f.Code {
	case codePermanent:
		return provider.Permanent(err, hint)
	case codeUnsupported:
		return provider.Permanent(err, "the plugin does not know the method "+method+"; take it out of methods in the key's config, or update the plugin")
	case codeLater:
		return provider.Later(time.Duration(min(f.RetryAfterSeconds, maxLaterSeconds)*float64(time.Second)), provider.Hint(err, hint))
	}
	return provider.Hint(err, hint)
}

// maxLaterSeconds bounds for how long a plugin can ask to be left alone.
const maxLaterSeconds = 900

func about(c provider.Call) *call {
	return &call{Key: string(c.Key), Rotation: c.Rotation.String(), Fence: c.Fence}
}

func secretsOf(versions ...provider.Version) []secret.Value {
	var all []secret.Value
	for _, v := range versions {
		all = append(all, slices.Collect(maps.Values(v.Material.Secrets))...)
	}
	return all
}

// Mint implements provider.Issuer.
func (s *system) Mint(ctx context.Context, c provider.Call, request provider.MintRequest) (provider.Material, error) {
	if s.settings.mint != nil {
		return s.settings.mint.make(s.random, c.Key, request)
	}
	capacity := s.settings.topology.Capacity
	if capacity > 1 && len(request.Live) >= capacity {
		return provider.Material{}, fmt.Errorf("%w: %d versions hold all of %d places", provider.ErrNoRoom, len(request.Live), capacity)
	}
	out, _, err := s.ask(ctx, requestOf(c, request))
	if err != nil {
		return provider.Material{}, err
	}
	scrub := NewScrubber(slices.Collect(maps.Values(out.material.Secrets))...)
	for name, value := range out.material.Attributes {
		if scrub.Finds(value) {
			return provider.Material{}, provider.Permanent(broken("attribute %q shows a secret", name), "attributes are shown and logged; mend the plugin")
		}
	}
	return *out.material, nil
}

func requestOf(c provider.Call, mint provider.MintRequest) request {
	return request{Method: MethodMint, Call: about(c), Version: &version{Number: uint64(mint.Number)}, Live: bare(mint.Live)}
}

// bare is what a plugin is told of versions that a call is not about: no secrets.
func bare(versions []provider.Version) []version {
	var out []version
	for _, v := range versions {
		out = append(out, version{Number: uint64(v.Number), material: material{Attributes: v.Material.Attributes}})
	}
	return out
}

// Accept implements provider.Verifier.
func (s *system) Accept(ctx context.Context, c provider.Call, endpoint string, v provider.Version) error {
	return s.instruct(ctx, MethodAccept, c, endpoint, v)
}

// Refuse implements provider.Verifier.
func (s *system) Refuse(ctx context.Context, c provider.Call, endpoint string, v provider.Version) error {
	return s.instruct(ctx, MethodRefuse, c, endpoint, v)
}

func (s *system) instruct(ctx context.Context, method string, c provider.Call, endpoint string, v provider.Version) error {
	_, err := s.at(ctx, method, c, endpoint, v)
	return err
}

// at asks about one version at one endpoint.
func (s *system) at(ctx context.Context, method string, c provider.Call, endpoint string, v provider.Version) (result, error) {
	if err := s.settings.endpoint(endpoint); err != nil {
		return result{}, err
	}
	wire := toWire(v)
	out, _, err := s.ask(ctx, request{Method: method, Call: about(c), Endpoint: endpoint, Version: &wire}, secretsOf(v)...)
	return out, err
}

// Probe implements provider.Verifier.
func (s *system) Probe(ctx context.Context, c provider.Call, endpoint string, v provider.Version) (provider.Verdict, error) {
	out, err := s.at(ctx, MethodProbe, c, endpoint, v)
	return out.verdict, err
}

// Destroy implements provider.Destroyer. A plugin without the method holds nothing.
func (s *system) Destroy(ctx context.Context, c provider.Call, v provider.Version, live []provider.Version) error {
	if !slices.Contains(s.settings.methods, MethodDestroy) {
		return nil
	}
	wire := toWire(v)
	r := request{Method: MethodDestroy, Call: about(c), Version: &wire}
	r.Live = bare(live)
	_, _, err := s.ask(ctx, r, secretsOf(v)...)
	return err
}

// Preflight implements provider.Preflighter: it compares what the plugin says of
// itself with the key's config, and asks its own preflight.
func (s *system) Preflight(ctx context.Context, c provider.Call, live []provider.Version) ([]provider.Finding, error) {
	d, err := s.describe(ctx, c)
	if err != nil {
		return nil, err
	}
	findings, err := s.compare(d)
	if err != nil || !slices.Contains(s.settings.methods, MethodPreflight) {
		return findings, err
	}
	out, scrub, err := s.ask(ctx, request{Method: MethodPreflight, Call: about(c), Live: bare(live)}, secretsOf(live...)...)
	if err != nil {
		return nil, err
	}
	for _, f := range *out.findings {
		findings = append(findings, provider.Finding{Code: scrub.Text(f.Code, maxCode), Message: scrub.Text(f.Message, maxMessage), Hint: scrub.Text(f.Hint, maxMessage)})
	}
	return findings, nil
}

func (s *system) describe(ctx context.Context, c provider.Call) (*Description, error) {
	r := request{Method: MethodDescribe}
	if c.Key != "" {
		r.Call = about(c)
	}
	out, scrub, err := s.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	d := out.description
	d.Name, d.Version = scrub.Text(d.Name, maxCode), scrub.Text(d.Version, maxCode)
	return d, nil
}

// compare holds the key's config against what the plugin says of the system.
func (s *system) compare(d *Description) ([]provider.Finding, error) {
	var findings []provider.Finding
	used := append([]string{MethodAccept, MethodRefuse, MethodProbe}, s.settings.methods...)
	if s.settings.mint == nil {
		used = append(used, MethodMint)
	}
	for _, method := range used {
		if !slices.Contains(d.Methods, method) {
			return nil, provider.Permanent(fmt.Errorf("%s %s does not know the method %s, which the key needs", s.name, d.Version, method), "update the plugin, or change methods and mint in the key's config")
		}
	}
	for _, method := range [...]string{MethodUsage, MethodHeld, MethodFence, MethodDestroy} {
		if slices.Contains(d.Methods, method) && !slices.Contains(s.settings.methods, method) {
			findings = append(findings, provider.Finding{
				Code: "method-unused", Message: fmt.Sprintf("%s knows the method %s, and the key does not use it", s.name, method),
				Hint: "add it to methods in the key's config",
			})
		}
	}
	if d.Gap != nil && *d.Gap && !s.settings.topology.Gap {
		return nil, provider.Permanent(fmt.Errorf("%s says that accepting a version makes the system refuse the one before it, the key's config says otherwise", s.name), "write gap: true in the key's config, and allow the gap in its policy")
	}
	if d.Capacity != nil && *d.Capacity > 0 && (s.settings.topology.Capacity == 0 || s.settings.topology.Capacity > *d.Capacity) {
		return nil, provider.Permanent(fmt.Errorf("%s says that the system takes %d versions at the same time, the key's config says %d", s.name, *d.Capacity, s.settings.topology.Capacity), fmt.Sprintf("write capacity: %d in the key's config", *d.Capacity))
	}
	if d.Endpoints == nil {
		return findings, nil
	}
	var missing, more []string
	for _, e := range d.Endpoints {
		if s.settings.endpoint(e.Name) != nil {
			missing = append(missing, fmt.Sprintf("%.64q", e.Name))
		}
	}
	for _, e := range s.settings.endpoints {
		if !slices.ContainsFunc(d.Endpoints, func(known Endpoint) bool { return known.Name == e.Name }) {
			more = append(more, fmt.Sprintf("%.64q", e.Name))
		}
	}
	// An endpoint that is left out would go on accepting a revoked version.
	if len(missing) > 0 {
		return nil, provider.Permanent(fmt.Errorf("%s knows endpoints that the key's config leaves out: %s", s.name, few(missing)), "add them to endpoints in the key's config: each verifies versions")
	}
	if len(more) > 0 {
		return nil, provider.Permanent(fmt.Errorf("%s does not know endpoints of the key's config: %s", s.name, few(more)), "correct endpoints in the key's config")
	}
	return findings, nil
}

func few(names []string) string {
	const most = 10
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// meter is what a plugin with the method usage is beside a system.
type meter struct{ of *system }

// Usage implements provider.Meter.
func (m meter) Usage(ctx context.Context, c provider.Call, v provider.Version) (provider.Usage, error) {
	wire := toWire(v)
	asked := m.of.now()
	out, scrub, err := m.of.ask(ctx, request{Method: MethodUsage, Call: about(c), Version: &wire}, secretsOf(v)...)
	if err != nil {
		if !errors.Is(err, provider.ErrNoData) {
			err = fmt.Errorf("%w: %w", provider.ErrNoData, err)
		}
		return provider.Usage{}, err
	}
	for i, h := range out.usage.Holders {
		out.usage.Holders[i].Endpoint = scrub.Text(h.Endpoint, maxName)
		out.usage.Holders[i].Address = scrub.Text(h.Address, maxName)
		out.usage.Holders[i].Application = scrub.Text(h.Application, maxName)
	}
	if out.late > 0 {
		out.usage.Until = asked.Add(-out.late)
	}
	return *out.usage, nil
}

// fencer is what a plugin with the method fence is beside a system.
type fencer struct{ of *system }

// Fence implements provider.Fencer.
func (f fencer) Fence(ctx context.Context, c provider.Call, endpoint string) error {
	if err := f.of.settings.endpoint(endpoint); err != nil {
		return err
	}
	_, _, err := f.of.ask(ctx, request{Method: MethodFence, Call: about(c), Endpoint: endpoint})
	return err
}

// lister is what a plugin with the method held is beside a system.
type lister struct{ of *system }

// Held implements provider.Lister.
func (l lister) Held(ctx context.Context, c provider.Call) ([]provider.Held, error) {
	out, _, err := l.of.ask(ctx, request{Method: MethodHeld, Call: about(c)})
	if err != nil {
		return nil, err
	}
	for _, h := range *out.held {
		if l.of.settings.endpoint(h.Endpoint) != nil {
			return nil, broken("held names an endpoint that the key's config does not")
		}
	}
	return *out.held, nil
}
