package plugin

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// Protocol names the protocol and its version, in every message.
const Protocol = "keyturn-provider/v1"

// The methods. A plugin must know describe, accept, refuse and probe, and mint
// unless the config of keys says that Keyturn mints.
const (
	MethodDescribe  = "describe"
	MethodMint      = "mint"
	MethodAccept    = "accept"
	MethodRefuse    = "refuse"
	MethodProbe     = "probe"
	MethodUsage     = "usage"
	MethodPreflight = "preflight"
	MethodHeld      = "held"
	MethodFence     = "fence"
	MethodDestroy   = "destroy"
)

// Methods lists them all.
func Methods() []string {
	return []string{MethodDescribe, MethodMint, MethodAccept, MethodRefuse, MethodProbe, MethodUsage, MethodPreflight, MethodHeld, MethodFence, MethodDestroy}
}

// MaxAnswer is the largest answer, in bytes.
const MaxAnswer = 1 << 20

// request is what is sent. docs/reference/schema/keyturn-provider-v1.json is its
// published form.
type request struct {
	Protocol string `json:"protocol"`
	ID       string `json:"id"`
	Method   string `json:"method"`
	// TimeoutSeconds is how long the caller waits, from now on.
	TimeoutSeconds float64        `json:"timeoutSeconds"`
	Call           *call          `json:"call,omitempty"`
	Settings       map[string]any `json:"settings"`
	Endpoints      []endpoint     `json:"endpoints"`
	Endpoint       string         `json:"endpoint,omitempty"`
	Version        *version       `json:"version,omitempty"`
	Live           []version      `json:"live,omitempty"`
}

type call struct {
	Key      string `json:"key"`
	Rotation string `json:"rotation"`
	Fence    uint64 `json:"fence"`
}

type endpoint struct {
	Name   string `json:"name"`
	Region string `json:"region,omitempty"`
	Host   string `json:"host,omitempty"`
}

type version struct {
	Number uint64 `json:"number"`
	material
}

// material holds secrets that are UTF-8 as they are, and others in base64.
type material struct {
	Attributes    map[string]string `json:"attributes,omitempty"`
	Secrets       map[string]string `json:"secrets,omitempty"`
	SecretsBase64 map[string]string `json:"secretsBase64,omitempty"`
}

// toWire is the only place where secrets are put into a message.
func toWire(v provider.Version) version {
	w := version{Number: uint64(v.Number), material: material{Attributes: v.Material.Attributes}}
	for name, value := range v.Material.Secrets {
		if utf8.Valid(value.Reveal()) {
			if w.Secrets == nil {
				w.Secrets = map[string]string{}
			}
			w.Secrets[name] = value.RevealString()
			continue
		}
		if w.SecretsBase64 == nil {
			w.SecretsBase64 = map[string]string{}
		}
		w.SecretsBase64[name] = base64.StdEncoding.EncodeToString(value.Reveal())
	}
	return w
}

// Bounds of what a plugin may mint.
const (
	maxFields    = 100
	maxFieldName = 255
	maxAttribute = 4096
	maxSecret    = 256 << 10
)

func (m *material) fromWire() (provider.Material, error) {
	out := provider.Material{Attributes: map[string]string{}, Secrets: map[string]secret.Value{}}
	if n := len(m.Attributes) + len(m.Secrets) + len(m.SecretsBase64); n > maxFields {
		return out, fmt.Errorf("the material has %d fields, at most %d are allowed", n, maxFields)
	}
	for name, value := range m.Attributes {
		if err := checkField(name, len(value), maxAttribute); err != nil {
			return out, fmt.Errorf("attribute: %w", err)
		}
		out.Attributes[name] = value
	}
	for name, value := range m.Secrets {
		out.Secrets[name] = secret.NewString(value)
	}
	for name, value := range m.SecretsBase64 {
		if _, twice := out.Secrets[name]; twice {
			return out, errors.New("a secret is in secrets and in secretsBase64")
		}
		plain, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return out, errors.New("a secret of secretsBase64 is no base64")
		}
		out.Secrets[name] = secret.New(plain)
	}
	for name, value := range out.Secrets {
		if err := checkField(name, value.Len(), maxSecret); err != nil {
			return out, fmt.Errorf("secret: %w", err)
		}
		if _, twice := out.Attributes[name]; twice {
			return out, fmt.Errorf("field %q is an attribute and a secret", name)
		}
		if value.Len() == 0 {
			return out, fmt.Errorf("secret %q is empty", name)
		}
	}
	if len(out.Secrets) == 0 {
		return out, errors.New("the material has no secret")
	}
	return out, nil
}

// checkField checks the name of a field, which will be shown, and the size of its value.
func checkField(name string, size, most int) error {
	if name == "" || len(name) > maxFieldName {
		return fmt.Errorf("the name of a field has %d bytes; 1 to %d are allowed", len(name), maxFieldName)
	}
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '.') {
			return errors.New("the name of a field has characters other than letters, digits, '_', '-' and '.'")
		}
	}
	if size > most {
		return fmt.Errorf("field %q has %d bytes, at most %d are allowed", name, size, most)
	}
	return nil
}

// Description is what a plugin says of itself and, for given settings, of the system.
type Description struct {
	// Name and Version are the plugin's own, for people.
	Name    string `json:"name"`
	Version string `json:"version"`
	// Protocols are those that it speaks, Methods those that it knows.
	Protocols []string `json:"protocols"`
	Methods   []string `json:"methods"`
	// Endpoints, Capacity and Gap are as in provider.Topology; nil means that the
	// plugin does not know better than the key's config.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	Capacity  *int       `json:"capacity,omitempty"`
	Gap       *bool      `json:"gap,omitempty"`
}

// Endpoint is one verifier, as in provider.Endpoint.
type Endpoint = endpoint

// result is what one answer says. Exactly one field is set.
type result struct {
	ok          bool
	verdict     provider.Verdict
	material    *provider.Material
	usage       *provider.Usage
	late        time.Duration // goes with usage: how late uses are told at most
	findings    *[]provider.Finding
	held        *[]provider.Held
	description *Description
	failure     *failure
}

// failure is the member "error" of an answer.
type failure struct {
	Message string `json:"message"`
	Hint    string `json:"hint"`
	// Code says what kind of error it is; unknown ones are as none.
	Code string `json:"code"`
	// Endpoints are those where it failed, for calls that concern all of them.
	Endpoints []string `json:"endpoints"`
	// RetryAfterSeconds goes with the code later.
	RetryAfterSeconds float64 `json:"retryAfterSeconds"`
}

// The codes of errors.
const (
	codePermanent   = "permanent"
	codeSilent      = "silent"
	codeDenied      = "denied"
	codeNoRoom      = "no-room"
	codeNoData      = "no-data"
	codeLater       = "later"
	codeUnsupported = "unsupported"
)

// encode writes a request. The caller clears what it returns after use.
func (r *request) encode() ([]byte, error) {
	if r.Settings == nil {
		r.Settings = map[string]any{}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode the request %s: %w", r.Method, err)
	}
	return append(body, '\n'), nil
}
