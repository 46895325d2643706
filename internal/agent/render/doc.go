// Package render turns key versions into file contents by Go templates.
//
// Guarantees:
//   - A template reads nothing but the key versions that it names: no
//     environment, file, network or process.
//   - User name and password in one rendering always come from one version,
//     because a key is handed over whole.
//   - A missing key or field is an error, never an empty string.
//   - An execution ends: loop steps, bytes produced and the output are bounded.
//   - No error contains a field's value.
//
// A Template may be executed by several goroutines at once.
package render

import (
	"errors"
	"fmt"
	"strings"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Bounds of a template and of one execution.
const (
	// MaxSource is the largest template, in bytes.
	MaxSource = 256 << 10
	// MaxOutput is the largest rendering, in bytes.
	MaxOutput = 1 << 20
	// MaxSteps bounds loop iterations and template calls together.
	MaxSteps = 20_000
	// MaxWork bounds the bytes that all function calls of one execution produce.
	MaxWork = 16 << 20
)

var (
	// ErrTemplate is wrapped by every error of Parse: the template must be changed.
	ErrTemplate = errors.New("invalid template")
	// ErrExecute is wrapped by every error of Execute: the template does not fit
	// the versions that it was given, or exceeds a bound.
	ErrExecute = errors.New("cannot render")
)

// Material is one version of one key: what a template sees of it.
type Material struct {
	Version    key.Version
	Attributes map[string]string
	Secrets    map[string]secret.Value
}

// Error says where a template is wrong and how to mend it. It wraps ErrTemplate
// or ErrExecute.
type Error struct {
	// Line and Column count from 1 within the template; 0 means unknown.
	Line, Column int
	Message      string
	// Hint says how to mend it; it may be empty.
	Hint string
	kind error
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.kind.Error())
	switch {
	case e.Line > 0 && e.Column > 0:
		fmt.Fprintf(&b, " at line %d, column %d", e.Line, e.Column)
	case e.Line > 0:
		fmt.Fprintf(&b, " at line %d", e.Line)
	}
	b.WriteString(": " + e.Message)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns ErrTemplate or ErrExecute.
func (e *Error) Unwrap() error { return e.kind }
