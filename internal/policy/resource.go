package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
)

// APIVersion is the only accepted value of the field apiVersion.
const APIVersion = "keyturn/v1"

// Resource is one document of a file. Exactly one of Policy, Freeze, Rule and
// Key is set.
type Resource struct {
	Policy *Policy
	Freeze *Freeze
	Rule   *Rule
	Key    *Key
	// Source says where the resource was read from; zero if it was not.
	Source Source
}

// Source is the place a resource was read from.
type Source struct {
	File   string
	places map[string]place
}

// place is where a value stands; text that is inline stands in the source as it
// is, inset characters after the position.
type place struct {
	Position

	inset  int
	inline bool
}

// Locate returns the position of the field at path, or of the nearest field
// around it, for example Locate("spec.config.users[1]"). It returns the zero
// Position for a resource that was not read from a file.
func (s Source) Locate(path string) Position {
	for {
		if at, ok := s.places[path]; ok || path == "" {
			return at.Position
		}
		cut := max(strings.LastIndexAny(path, ".["), 0)
		path = path[:cut]
	}
}

// Kind returns the kind, the invalid zero value for an empty Resource.
func (r Resource) Kind() Kind {
	switch {
	case r.Policy != nil:
		return KindPolicy
	case r.Freeze != nil:
		return KindFreeze
	case r.Rule != nil:
		return KindRule
	case r.Key != nil:
		return KindKey
	}
	return 0
}

// Name returns metadata.name, empty for an empty Resource.
func (r Resource) Name() string {
	switch r.Kind() {
	case KindPolicy:
		return r.Policy.Metadata.Name
	case KindFreeze:
		return r.Freeze.Metadata.Name
	case KindRule:
		return r.Rule.Metadata.Name
	case KindKey:
		return r.Key.Metadata.Name.String()
	}
	return ""
}

// String returns kind and name, for example "Policy database".
func (r Resource) String() string { return r.Kind().String() + " " + r.Name() }

// document is the wire form of a resource.
type document struct {
	APIVersion string `json:"apiVersion"`
	Kind       Kind   `json:"kind"`
	Metadata   any    `json:"metadata"`
	Spec       any    `json:"spec"`
}

func (r Resource) document() (document, error) {
	d := document{APIVersion: APIVersion, Kind: r.Kind()}
	switch d.Kind {
	case KindPolicy:
		d.Metadata, d.Spec = r.Policy.Metadata, r.Policy.Spec
	case KindFreeze:
		d.Metadata, d.Spec = r.Freeze.Metadata, r.Freeze.Spec
	case KindRule:
		d.Metadata, d.Spec = r.Rule.Metadata, r.Rule.Spec
	case KindKey:
		d.Metadata, d.Spec = r.Key.Metadata, r.Key.Spec
	default:
		return document{}, fmt.Errorf("%w: it is empty", ErrInvalid)
	}
	return d, nil
}

// MarshalJSON implements json.Marshaler. Parse reads the result back when the
// file name ends in ".json".
func (r Resource) MarshalJSON() ([]byte, error) {
	d, err := r.document()
	if err != nil {
		return nil, err
	}
	return json.Marshal(d)
}

// Policy says when keys are rotated, in which stages, and what becomes of the
// old version.
type Policy struct {
	Metadata Metadata `json:"metadata"`
	Spec     Spec     `json:"spec"`
}

// Metadata names a policy, a freeze or a rule.
type Metadata struct {
	// The name, unique among resources of the same kind: one segment of a-z, 0-9, '.', '_' and '-'.
	Name string `json:"name" jsonschema:"required"`
}

// Freeze is a period in which no scheduled rotation starts, for all keys or for
// those that match.
type Freeze struct {
	Metadata Metadata   `json:"metadata"`
	Spec     FreezeSpec `json:"spec"`
}

// FreezeSpec is what a Freeze consists of.
type FreezeSpec struct {
	// When the freeze begins, for example 2026-12-18T00:00:00Z.
	From time.Time `json:"from" jsonschema:"required"`
	// When it ends: the first moment at which rotations may start again.
	To time.Time `json:"to" jsonschema:"required"`
	// Why, for whoever wonders.
	Reason string `json:"reason,omitzero"`
	// Which keys it holds, as a CEL expression over key; empty means all.
	Match string `json:"match,omitzero"`
}

// Key declares one key: who issues it, and the policy it follows.
type Key struct {
	Metadata KeyMetadata `json:"metadata"`
	Spec     KeySpec     `json:"spec"`
}

// KeyMetadata names a key and says whose it is.
type KeyMetadata struct {
	// The name, for example prod/orders/db.
	Name key.Name `json:"name" jsonschema:"required"`
	// The team or person who answers for the key.
	Owner string `json:"owner,omitzero"`
	// Labels, which CEL expressions can read; an absent label reads as empty text.
	Labels map[string]string `json:"labels,omitzero"`
}

// KeySpec is what a Key consists of.
type KeySpec struct {
	// The kind of system that holds the key, for example postgres.
	Provider string `json:"provider" jsonschema:"required"`
	// The policy it follows; empty means the built-in policy "default", which has no schedule.
	Policy string `json:"policy,omitzero"`
	// The provider's own configuration: text, numbers, true and false, lists and mappings.
	Config map[string]any `json:"config,omitzero"`
}

// PolicyName returns the policy the key follows: Spec.Policy or DefaultName.
func (k *Key) PolicyName() string {
	if k.Spec.Policy == "" {
		return DefaultName
	}
	return k.Spec.Policy
}

// Info returns what CEL expressions see of the key.
func (k *Key) Info() KeyInfo {
	return KeyInfo{Name: k.Metadata.Name, Owner: k.Metadata.Owner, Labels: k.Metadata.Labels}
}

// KeyInfo is the variable "key" of CEL expressions: key.name, key.owner, key.labels.
type KeyInfo struct {
	Name   key.Name
	Owner  string
	Labels map[string]string
}

// Party is the variable "party" of CEL expressions: party.id, party.name,
// party.kind, party.region, party.labels. It is one presenter of a key, such as
// an agent or an SDK client.
type Party struct {
	ID     string
	Name   string
	Kind   string
	Region string
	Labels map[string]string
}
