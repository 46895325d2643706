package client

import (
	"maps"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Names of fields that providers of log-ins use.
const (
	FieldUsername = "username"
	FieldPassword = "password"
)

// Credential is one version of a key as an application presents it. All its
// fields belong to that one version. It does not change; copies are cheap.
type Credential struct {
	Key     key.Name
	Version key.Version
	// Epoch grows with every assignment of this key to this party.
	Epoch uint64
	// Rotation is what brought the version; zero outside a rotation.
	Rotation key.RotationID
	// PublishedAt is when the server handed the version out, in UTC.
	PublishedAt time.Time

	attributes map[string]string
	secrets    map[string]secret.Value
}

// NewCredential returns the credential that an assignment stands for.
func NewCredential(a Assignment) Credential {
	return Credential{
		Key: a.Key, Version: a.Version, Epoch: a.Epoch, Rotation: a.Rotation, PublishedAt: a.PublishedAt,
		attributes: maps.Clone(a.Attributes), secrets: maps.Clone(a.Secrets),
	}
}

// IsZero reports whether c is no credential at all.
func (c Credential) IsZero() bool { return c.Version == 0 }

// Attribute returns a public field, or "" when there is none of that name.
func (c Credential) Attribute(name string) string { return c.attributes[name] }

// Attributes returns a copy of the public fields.
func (c Credential) Attributes() map[string]string { return maps.Clone(c.attributes) }

// Secret returns a secret field, or an empty value when there is none of that name.
func (c Credential) Secret(name string) secret.Value { return c.secrets[name] }

// Secrets returns a copy of the map of secret fields; the values share their bytes.
func (c Credential) Secrets() map[string]secret.Value { return maps.Clone(c.secrets) }

// Username returns the attribute "username".
func (c Credential) Username() string { return c.attributes[FieldUsername] }

// Password returns the secret "password".
func (c Credential) Password() secret.Value { return c.secrets[FieldPassword] }
