package provider

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

var (
	// ErrNoRoom: the system can hold no further version.
	ErrNoRoom = errors.New("no room for a further version")
	// ErrNoData: use could not be measured.
	ErrNoData = errors.New("no usage data")
	// ErrNoVersion: a key that another one refers to has no current version.
	ErrNoVersion = errors.New("key has no current version")
	// ErrSilent: the system could not be reached, or gave no answer in time. A
	// provider that cannot tell need not wrap it; see IsSilent.
	ErrSilent = errors.New("no answer")
	// ErrDenied: the system refused Keyturn's own credential. It is tried a few
	// times only: systems lock accounts out, and a human must act.
	ErrDenied = errors.New("own credential refused")
)

// ConfigError is one problem in a key's config block.
type ConfigError struct {
	// Path leads to the field, for example "users[1]"; empty means the block itself.
	Path string
	// Problem says what is wrong, Hint what would be right.
	Problem string
	Hint    string
}

// Error implements error.
func (e *ConfigError) Error() string {
	s := e.Problem
	if e.Path != "" {
		s = e.Path + ": " + s
	}
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Error is an operator's error: what happened, and what to do next.
type Error struct {
	// Hint says what to do next.
	Hint string
	// Permanent says that repeating the same call cannot succeed: a human must act first.
	Permanent bool
	// Err is the cause.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v (%s)", e.Err, e.Hint)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Permanent marks err as one that repeating cannot mend. It returns nil for nil.
func Permanent(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Hint: hint, Permanent: true, Err: err}
}

// Hint adds advice to err. It returns nil for nil.
func Hint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Hint: hint, Err: err}
}

// Later says that a call is not at its end, with nothing wrong: for example that
// the change is made and caches elsewhere have yet to expire. Keyturn repeats the
// call about after from now (between a tenth of a second and a minute, and the more
// seldom the longer it takes), shows err
// to people, and neither counts the try nor puts the rotation on hold; after a day
// it takes it for a failure. It returns nil when err is nil.
func Later(after time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return &laterError{after: after, err: err}
}

type laterError struct {
	after time.Duration
	err   error
}

func (e *laterError) Error() string { return e.err.Error() }
func (e *laterError) Unwrap() error { return e.err }

// IsLater reports whether err or one it wraps was made by Later, and after what
// time the call is to be repeated.
func IsLater(err error) (after time.Duration, later bool) {
	if e := new(laterError); errors.As(err, &e) {
		return e.after, true
	}
	return 0, false
}

// IsPermanent reports whether err or one it wraps was marked by Permanent.
func IsPermanent(err error) bool {
	for e := new(Error); errors.As(err, &e); err = e.Err {
		if e.Permanent {
			return true
		}
	}
	return false
}

// MaxEndpoints bounds what Endpoints returns.
const MaxEndpoints = 20

// endpointError says at which endpoint something failed.
type endpointError struct {
	endpoint string
	err      error
}

func (e *endpointError) Error() string { return e.err.Error() }
func (e *endpointError) Unwrap() error { return e.err }

// At marks err as the failure of one endpoint, by its name in the Topology. It
// matters for calls that concern all endpoints, Preflight and Usage: by it Keyturn
// tells the region that is cut off. It returns nil for nil.
func At(endpoint string, err error) error {
	if err == nil {
		return nil
	}
	return &endpointError{endpoint: endpoint, err: err}
}

// Endpoints returns the endpoints that At named anywhere in err, sorted, at most
// MaxEndpoints of them; none when err tells no place.
func Endpoints(err error) []string {
	found := map[string]bool{}
	var walk func(error)
	walk = func(err error) {
		if at, ok := err.(*endpointError); ok { //nolint:errorlint // the tree is walked here
			found[at.endpoint] = true
		}
		switch e := err.(type) { //nolint:errorlint // the tree is walked here
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				walk(inner)
			}
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		}
	}
	walk(err)
	names := slices.Sorted(maps.Keys(found))
	return names[:min(len(names), MaxEndpoints)]
}
