package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// ErrAnswer is wrapped by every error about an answer that breaks the protocol.
var ErrAnswer = errors.New("the plugin broke the protocol " + Protocol)

// Bounds of an answer beside its size.
const (
	maxDepth     = 32
	maxHeld      = 10_000
	maxFindings  = 100
	maxEndpoints = 1000
	maxSessions  = 1 << 40
	maxLate      = 366 * 24 * time.Hour
)

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrAnswer, fmt.Errorf(format, args...))
}

// decode reads the answer to a request. Its errors name members of the protocol
// and quote nothing of the answer, which may hold secrets.
func decode(answer []byte, asked *request) (result, error) {
	if len(answer) > MaxAnswer {
		return result{}, broken("the answer has more than %d bytes", MaxAnswer)
	}
	if len(bytes.TrimSpace(answer)) == 0 {
		return result{}, broken("there is no answer")
	}
	if err := checkJSON(answer); err != nil {
		return result{}, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(answer, &members); err != nil || members == nil {
		return result{}, broken("the answer is no JSON object")
	}
	for _, echo := range []struct{ member, want string }{{"protocol", Protocol}, {"id", asked.ID}, {"method", asked.Method}} {
		var got string
		if raw, ok := members[echo.member]; !ok || json.Unmarshal(raw, &got) != nil || isNull(raw) {
			return result{}, broken("the answer has no text %q", echo.member)
		}
		if got != echo.want {
			return result{}, broken("the answer is not for this call: its %q is another one", echo.member)
		}
	}
	want := resultOf(asked.Method)
	var has []string
	for _, member := range [...]string{"ok", "verdict", "material", "usage", "findings", "held", "describe", "error"} {
		if _, ok := members[member]; ok {
			has = append(has, member)
		}
	}
	if len(has) != 1 {
		return result{}, broken("the answer to %s must have either %q or \"error\", it has %d results; leave out what does not apply", asked.Method, want, len(has))
	}
	if isNull(members[has[0]]) {
		return result{}, broken("%s: it is null", has[0])
	}
	if has[0] != want && has[0] != "error" {
		return result{}, broken("the answer to %s has %q instead of %q", asked.Method, has[0], want)
	}
	out, err := decodeResult(has[0], members[has[0]])
	if err != nil {
		return result{}, broken("%s: %w", has[0], err)
	}
	return out, nil
}

// resultOf is the member that answers a method.
func resultOf(method string) string {
	switch method {
	case MethodAccept, MethodRefuse, MethodFence, MethodDestroy:
		return "ok"
	case MethodProbe:
		return "verdict"
	case MethodMint:
		return "material"
	case MethodPreflight:
		return "findings"
	}
	return method // usage, held, describe
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// checkJSON refuses what different readers could read differently: invalid UTF-8,
// members that are there twice, more than one value, and what is nested too deeply.
func checkJSON(answer []byte) error {
	if !utf8.Valid(answer) {
		return broken("the answer is not UTF-8")
	}
	if !json.Valid(answer) {
		return broken("the answer is not one JSON value; nothing else may be written to where it goes")
	}
	decoder := json.NewDecoder(bytes.NewReader(answer))
	var open []scope
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return broken("the answer is no JSON")
		}
		if delimiter, ok := token.(json.Delim); ok && (delimiter == '}' || delimiter == ']') {
			open = open[:len(open)-1]
			continue
		}
		if len(open) > 0 {
			if top := &open[len(open)-1]; top.members != nil {
				if top.inValue = !top.inValue; top.inValue {
					name, _ := token.(string)
					if top.members[name] {
						return broken("a member of the answer is there twice")
					}
					top.members[name] = true
					continue
				}
			}
		}
		if delimiter, ok := token.(json.Delim); ok {
			s := scope{}
			if delimiter == '{' {
				s.members = map[string]bool{}
			}
			if open = append(open, s); len(open) > maxDepth {
				return broken("the answer is nested more than %d deep", maxDepth)
			}
		}
	}
}

// scope is an object, with its members so far, or a list.
type scope struct {
	members map[string]bool
	inValue bool
}

func decodeResult(member string, raw json.RawMessage) (result, error) {
	switch member {
	case "ok":
		if string(raw) != "true" {
			return result{}, errors.New("it must be true; write an error if it is not")
		}
		return result{ok: true}, nil
	case "verdict":
		switch string(raw) {
		case `"accepted"`:
			return result{verdict: provider.Accepted}, nil
		case `"refused"`:
			return result{verdict: provider.Refused}, nil
		}
		return result{}, errors.New(`it must be "accepted" or "refused"; write an error if neither is sure`)
	case "material":
		var wire material
		if json.Unmarshal(raw, &wire) != nil {
			return result{}, errShape
		}
		m, err := wire.fromWire()
		return result{material: &m}, err
	case "usage":
		return decodeUsage(raw)
	case "findings":
		return decodeFindings(raw)
	case "held":
		return decodeHeld(raw)
	case "describe":
		return decodeDescription(raw)
	}
	var f failure
	if json.Unmarshal(raw, &f) != nil {
		return result{}, errShape
	}
	if f.Message == "" {
		return result{}, errors.New("it has no message")
	}
	if len(f.Endpoints) > provider.MaxEndpoints || !(f.RetryAfterSeconds >= 0) {
		return result{}, errors.New("its endpoints are too many, or its retryAfterSeconds is negative")
	}
	return result{failure: &f}, nil
}

// errShape is all that is told of a value of the wrong type: what encoding/json
// says could quote it.
var errShape = errors.New("it has not the form that the schema says")

func decodeUsage(raw json.RawMessage) (result, error) {
	// By exact names, unlike those of a struct: two spellings of one member would be
	// read differently by others.
	var members map[string]json.RawMessage
	var wire struct {
		sessions *int
		holders  []provider.Holder
		late     float64
	}
	if json.Unmarshal(raw, &members) != nil {
		return result{}, errShape
	}
	for name, into := range map[string]any{"sessions": &wire.sessions, "holders": &wire.holders, "lateSeconds": &wire.late} {
		if value, has := members[name]; has && (json.Unmarshal(value, into) != nil || name == "lateSeconds" && isNull(value)) {
			return result{}, errShape
		}
	}
	if wire.sessions == nil || *wire.sessions < 0 || *wire.sessions > maxSessions {
		return result{}, errors.New("sessions must be a number that is not negative; write the error no-data if nobody knows")
	}
	if !(wire.late >= 0 && wire.late <= maxLate.Seconds()) {
		return result{}, fmt.Errorf("lateSeconds must be from 0 to %.0f; write the error no-data if nobody knows", maxLate.Seconds())
	}
	sum := 0
	for i := range wire.holders {
		if wire.holders[i].Sessions < 0 || wire.holders[i].Sessions > maxSessions {
			return result{}, errors.New("the sessions of a holder are negative")
		}
		sum += wire.holders[i].Sessions
	}
	if sum > *wire.sessions {
		return result{}, errors.New("the holders have more sessions than there are")
	}
	holders := wire.holders[:min(len(wire.holders), provider.MaxHolders)]
	late := time.Duration(math.Ceil(wire.late * float64(time.Second)))
	return result{usage: &provider.Usage{Sessions: *wire.sessions, Holders: holders}, late: late}, nil
}

func decodeFindings(raw json.RawMessage) (result, error) {
	var findings []provider.Finding
	if json.Unmarshal(raw, &findings) != nil {
		return result{}, errShape
	}
	if len(findings) > maxFindings {
		return result{}, fmt.Errorf("there are %d, at most %d are allowed", len(findings), maxFindings)
	}
	for _, f := range findings {
		if f.Code == "" || f.Message == "" {
			return result{}, errors.New("one has no code or no message")
		}
	}
	return result{findings: &findings}, nil
}

func decodeHeld(raw json.RawMessage) (result, error) {
	var wire []struct {
		Endpoint   string            `json:"endpoint"`
		Version    uint64            `json:"version"`
		Accepted   *bool             `json:"accepted"`
		Attributes map[string]string `json:"attributes"`
	}
	if json.Unmarshal(raw, &wire) != nil {
		return result{}, errShape
	}
	if len(wire) > maxHeld {
		return result{}, fmt.Errorf("there are %d, at most %d are allowed", len(wire), maxHeld)
	}
	held := make([]provider.Held, 0, len(wire))
	for _, h := range wire {
		if h.Endpoint == "" || h.Version == 0 || h.Accepted == nil {
			return result{}, errors.New("one has no endpoint, version or accepted")
		}
		if len(h.Attributes) > maxFields {
			return result{}, errors.New("one has too many attributes")
		}
		for name, value := range h.Attributes {
			if err := checkField(name, len(value), maxAttribute); err != nil {
				return result{}, err
			}
		}
		held = append(held, provider.Held{Endpoint: h.Endpoint, Version: key.Version(h.Version), Accepted: *h.Accepted, Attributes: h.Attributes})
	}
	return result{held: &held}, nil
}

func decodeDescription(raw json.RawMessage) (result, error) {
	var d Description
	if json.Unmarshal(raw, &d) != nil {
		return result{}, errShape
	}
	if d.Name == "" {
		return result{}, errors.New("it has no name")
	}
	if !slices.Contains(d.Protocols, Protocol) {
		return result{}, errors.New("protocols does not list " + Protocol)
	}
	for _, method := range [...]string{MethodAccept, MethodRefuse, MethodProbe} {
		if !slices.Contains(d.Methods, method) {
			return result{}, fmt.Errorf("methods does not list %s, which every plugin must know", method)
		}
	}
	if len(d.Endpoints) > maxEndpoints || d.Capacity != nil && *d.Capacity < 0 {
		return result{}, errors.New("the endpoints are too many, or the capacity is negative")
	}
	for i, e := range d.Endpoints {
		if e.Name == "" || slices.ContainsFunc(d.Endpoints[:i], func(other Endpoint) bool { return other.Name == e.Name }) {
			return result{}, errors.New("the name of an endpoint is empty or there twice")
		}
	}
	return result{description: &d}, nil
}
