package plugin

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Trial is one try of the protocol itself, beside what package conformance tries of
// the provider that a plugin makes.
type Trial struct {
	// Name is unique and stable; Proves says what holds where it passes.
	Name, Proves string

	run func(ctx context.Context, s *system, call provider.Call, number key.Version) error
}

// Trials returns them all. None has an effect on an endpoint that exists.
func Trials() []Trial {
	return []Trial{
		{"Describe", "the plugin describes itself, and the key's config fits", tryDescribe},
		{"UnknownMembersAreIgnored", "a later version of the protocol may add members", tryUnknownMembers},
		{"UnknownMethodIsUnsupported", "a later version of the protocol may add methods", tryUnknownMethod},
		{"UnknownProtocolIsUnsupported", "another version of the protocol is not guessed at", tryUnknownProtocol},
		{"UnknownEndpointHasNoVerdict", "an endpoint that is not there is an error", tryUnknownEndpoint},
	}
}

// trialTime bounds one trial.
const trialTime = 30 * time.Second

// Run runs the trial against a plugin with the config of a key; number is one that
// the system has not seen, and the fence as well.
func (t Trial) Run(ctx context.Context, transport Transport, config provider.Config, name key.Name, number key.Version) error {
	s, err := parse(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	sys := &system{settings: s, transport: transport, random: rand.Reader, now: time.Now, name: s.plugin}
	call := provider.Call{Key: name, Rotation: key.NewRotationID(time.UnixMilli(int64(number)), [10]byte{1}), Fence: uint64(number)}
	return t.run(ctx, sys, call, number)
}

// Describe asks a plugin what it is. settings is what keys would give it.
func Describe(ctx context.Context, transport Transport, own map[string]any) (*Description, error) {
	sys := &system{settings: settings{own: own, endpoints: []endpoint{}}, transport: transport, random: rand.Reader, now: time.Now, name: "the plugin"}
	return sys.describe(ctx, provider.Call{})
}

func tryDescribe(ctx context.Context, s *system, call provider.Call, _ key.Version) error {
	d, err := s.describe(ctx, call)
	if err != nil {
		return err
	}
	_, err = s.compare(d)
	return err
}

// altered changes messages on their way.
type altered struct {
	Transport

	change func([]byte) []byte
}

func (a altered) Call(ctx context.Context, env provider.Env, request Request) ([]byte, error) {
	request.Body = a.change(request.Body)
	return a.Transport.Call(ctx, env, request)
}

func (s *system) altered(change func([]byte) []byte) *system {
	other := *s
	other.transport = altered{s.transport, change}
	return &other
}

func tryUnknownMembers(ctx context.Context, s *system, call provider.Call, _ key.Version) error {
	_, err := s.altered(func(body []byte) []byte {
		return slices.Concat([]byte(`{"ofTomorrow":{"list":[1,null,"x"]},`), bytes.TrimPrefix(body, []byte("{")))
	}).describe(ctx, call)
	return err
}

func tryUnknownMethod(ctx context.Context, s *system, call provider.Call, _ key.Version) error {
	return s.wantUnsupported(ctx, request{Method: "of-tomorrow", Call: about(call)})
}

func tryUnknownProtocol(ctx context.Context, s *system, call provider.Call, _ key.Version) error {
	other := s.altered(func(body []byte) []byte {
		return bytes.Replace(body, []byte(Protocol), []byte("keyturn-provider/v0"), 1)
	})
	return other.wantUnsupported(ctx, request{Method: MethodDescribe, Call: about(call)})
}

// wantUnsupported wants the error with the code unsupported.
func (s *system) wantUnsupported(ctx context.Context, r request) error {
	answer, err := s.exchange(ctx, &r, NewScrubber())
	if err != nil {
		return err
	}
	out, err := decode(answer, &r)
	if err != nil {
		return err
	}
	if out.failure == nil || out.failure.Code != codeUnsupported {
		return fmt.Errorf(`it must answer with an error of the code %q`, codeUnsupported)
	}
	return nil
}

func tryUnknownEndpoint(ctx context.Context, s *system, call provider.Call, number key.Version) error {
	const nowhere = "no such endpoint"
	material, err := s.Mint(ctx, call, provider.MintRequest{Number: number})
	if err != nil {
		return fmt.Errorf("mint: %w", err)
	}
	wire := toWire(provider.Version{Number: number, Material: material})
	for _, method := range [...]string{MethodProbe, MethodAccept, MethodRefuse} {
		out, _, err := s.ask(ctx, request{Method: method, Call: about(call), Endpoint: nowhere, Version: &wire}, secretsOf(provider.Version{Material: material})...)
		if err == nil {
			return fmt.Errorf("%s at an endpoint that is not there succeeded%s", method, verdictText(out))
		}
	}
	return nil
}

func verdictText(r result) string {
	if r.verdict == 0 {
		return ""
	}
	return " with the verdict " + r.verdict.String()
}
