// Package provider is the interface between Keyturn and the systems whose keys
// it rotates. Anybody can write one: it needs this package, package key and
// package secret, and nothing else of Keyturn.
//
// A Driver knows one kind of system. It opens a System from the configuration
// of one key. A System is an Issuer, which mints versions, and a Verifier,
// which accepts and refuses them at its endpoints and can be probed. What a
// system can do beyond that it says by implementing the optional interfaces
// Meter, Preflighter, Lister, Fencer, Destroyer, Forgetter and io.Closer.
//
// Contract for every method that reaches outside:
//
//   - It is idempotent by (Call.Rotation, version, operation, endpoint): Keyturn
//     repeats it after a crash, and a repetition must end in the same state.
//   - It may run concurrently with calls for other versions and endpoints, never
//     with another call for the same endpoint and version.
//   - It returns by the context's deadline. After an error the outcome is taken
//     as unknown, and the call is repeated unless the error is marked Permanent.
//     What takes longer than a call, such as caches that expire, is answered by
//     Later: nothing failed, and the call is repeated until it is done.
//   - No plaintext of a secret may reach an error, a log, a command line or a
//     statement that the system could log.
//
// Package providerconf reads a key's config block, package providertest is the
// conformance suite that every provider runs.
package provider

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Driver knows one kind of system, for example "postgres".
// Both methods may be called concurrently.
type Driver interface {
	// Check validates config without any IO and says what the system looks like.
	// Every problem is reported, each as a *ConfigError, joined by errors.Join.
	Check(config Config) (Topology, error)

	// Open prepares a System for a config that Check accepts. It should not block
	// on the network: connections are made when a method needs them.
	Open(ctx context.Context, config Config, env Env) (System, error)
}

// Config is the "config" block of one key, decoded from YAML or JSON: strings,
// float64, bool, []any and map[string]any.
type Config map[string]any

// Env is what the server lends to a System.
type Env struct {
	// Resolve returns the current version of another key, for a provider whose own
	// administrator credential is managed by Keyturn. It fails with an error that
	// wraps ErrNoVersion while that key has no current version.
	Resolve func(ctx context.Context, name key.Name) (Material, error)
}

// Topology is what a system consists of, as far as its configuration tells.
type Topology struct {
	// Endpoints are the places that verify a version: at least one, names unique.
	Endpoints []Endpoint
	// Capacity is how many versions the system can accept or hold suspended at the
	// same time; 0 means any number.
	Capacity int
	// Gap says that accepting a version makes the system refuse the one before it
	// in the same instant. The policy must allow this in so many words.
	Gap bool
}

// Endpoint is one verifier of a system: a primary, a replica, a gateway.
type Endpoint struct {
	// Name is unique within the key, for example "primary" or "replica db2:5432".
	Name string
	// Region is the failure domain; empty means the default one.
	Region string
	// Host is what is reached, for example "db1:5432". Calls to endpoints with the
	// same Host share a bulkhead, also across keys; empty means the key has its own.
	Host string
}

// System is one opened system.
type System interface {
	Issuer
	Verifier
}

// Issuer mints versions.
type Issuer interface {
	// Mint generates the material of a new version. It must have no effect outside
	// that would have to be undone: the material is stored before any other call.
	// When every slot is taken by a version in request.Live it fails with an error
	// that wraps ErrNoRoom.
	Mint(ctx context.Context, call Call, request MintRequest) (Material, error)
}

// Verifier makes endpoints accept and refuse versions, and tries whether they do.
type Verifier interface {
	// Accept makes the endpoint accept version beside those it accepts already
	// (instead of them, where Topology.Gap says so). For an endpoint that follows
	// another one, such as a replica, it waits until the change has arrived there.
	Accept(ctx context.Context, call Call, endpoint string, version Version) error

	// Refuse makes the endpoint refuse version, and ends the sessions it opened.
	// The version stays restorable: a later Accept of it must succeed.
	Refuse(ctx context.Context, call Call, endpoint string, version Version) error

	// Probe really uses version at the endpoint, as a client would, and reports
	// whether it was let in. It returns an error, never a Verdict, when it cannot
	// tell: an unreachable endpoint refuses nothing.
	Probe(ctx context.Context, call Call, endpoint string, version Version) (Verdict, error)
}

// Meter is implemented by systems that can say who uses a version.
type Meter interface {
	// Usage reports the present use of version at all endpoints. It fails with an
	// error that wraps ErrNoData when any endpoint could not be asked: a partial
	// count is not a count. That endpoint is marked by At.
	Usage(ctx context.Context, call Call, version Version) (Usage, error)
}

// Preflighter is implemented by systems that can check, before a rotation has
// any effect, whether it could succeed.
type Preflighter interface {
	// Preflight changes nothing. It returns an error when a rotation would fail,
	// and findings, such as drift, that an operator should know of. What failed at
	// one endpoint is marked by At.
	Preflight(ctx context.Context, call Call, live []Version) ([]Finding, error)
}

// Lister is implemented by systems that keep note of which versions they hold.
// After a restore of Keyturn's database it tells of versions that are known
// nowhere else; without it these can only be found at those who use them.
type Lister interface {
	// Held returns every version of call.Key that any endpoint holds, accepted or
	// refused. It changes nothing and fails when any endpoint could not be asked.
	Held(ctx context.Context, call Call) ([]Held, error)
}

// Held is a version as an endpoint knows it.
type Held struct {
	Endpoint string
	Version  key.Version
	// Accepted: whoever has the material is let in.
	Accepted bool
	// Attributes are those of the material, as far as the endpoint knows them: all
	// that Refuse, Usage and Mint need to leave the version alone or to find it.
	Attributes map[string]string
}

// Fencer is implemented by systems that compare fences and can note one without
// changing what they accept. After a restore of Keyturn's database it turns away
// what was sent before and has not arrived yet, however late that is, and what a
// server sends that was believed to be gone.
type Fencer interface {
	// Fence makes the endpoint refuse Accept and Refuse of call.Key with a smaller
	// fence from now on, for all that it holds of the key. When it returns, those that
	// came before have ended, and what is read there afterwards stays so until a call
	// with call.Fence or a larger one. It lowers no fence. An endpoint that follows
	// another one has nothing to note.
	Fence(ctx context.Context, call Call, endpoint string) error
}

// Destroyer is implemented by systems that hold material of their own for a
// version and can delete it. Keyturn's copy is shredded by Keyturn.
type Destroyer interface {
	// Destroy removes what the system still holds of version, which every endpoint
	// refuses by now. live are the versions that must not be harmed.
	Destroy(ctx context.Context, call Call, version Version, live []Version) error
}

// Forgetter is implemented by systems whose versions are shown to their user once:
// when that has proven to have one, Keyturn's own copy is shredded although the
// version is in use. Accept, Refuse, Probe, Usage and Destroy then get the
// attributes and no secrets, and must do by these.
type Forgetter interface {
	// Forgets reports whether the key's config wants that.
	Forgets() bool
}

// Call says on whose behalf a method runs.
type Call struct {
	Key      key.Name
	Rotation key.RotationID
	// Fence grows with every lease of the effect. A system that can compare it
	// refuses a smaller one than it has seen.
	Fence uint64
}

// MintRequest asks for one version.
type MintRequest struct {
	Number key.Version
	// Live are the versions that occupy a slot: accepted, suspended or uncertain.
	// Their secrets are absent.
	Live []Version
}

// Version is one version of the key with its material.
type Version struct {
	Number   key.Version
	Material Material
}

// Material is what a version consists of.
type Material struct {
	// Attributes are public: they are shown, logged and templated. For example
	// "username".
	Attributes map[string]string
	// Secrets are sealed before they are stored. For example "password".
	Secrets map[string]secret.Value
}

// Verdict is the answer of a probe. The zero value is invalid.
type Verdict uint8

// The verdicts.
const (
	// Accepted: the endpoint let the version in.
	Accepted Verdict = iota + 1
	// Refused: the endpoint answered and turned the version away.
	Refused
)

// String returns "accepted", "refused" or "invalid".
func (v Verdict) String() string {
	switch v {
	case Accepted:
		return "accepted"
	case Refused:
		return "refused"
	}
	return "invalid"
}

// Usage is who uses a version at one moment.
type Usage struct {
	// Sessions is the number of uses: open sessions, or requests since the last call.
	Sessions int
	// Holders names them, at most MaxHolders, those with most sessions first.
	Holders []Holder
	// Until is the moment up to which the system is sure to have told every use, for
	// one that tells of them late; zero means now. No use is believed only when it is
	// not before the moment at which the last presenter had gone.
	Until time.Time
}

// MaxHolders bounds Usage.Holders.
const MaxHolders = 100

// Holder is one user of a version.
type Holder struct {
	Endpoint    string `json:"endpoint,omitempty"`
	Address     string `json:"address,omitempty"`
	Application string `json:"application,omitempty"`
	Sessions    int    `json:"sessions"`
}

// Finding is something an operator should know of, for example drifted grants.
type Finding struct {
	// Code is stable and machine-readable, for example "grants-drifted".
	Code string `json:"code"`
	// Message says what was found, Hint what to do about it.
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}
