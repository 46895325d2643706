package render

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Fields is a key version as a template sees it: its public and secret fields.
// The whole of it cannot be printed, only its fields.
type Fields map[string]string

// whole stands for a Fields that a template tries to print.
const whole = "\x00keyturn: a whole key\x00"

// Format implements fmt.Formatter, so that output notices and refuses it.
func (Fields) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, whole) }

// Execute renders the template from the given versions. Every error is an
// *Error, wraps ErrExecute and names no value.
func (t *Template) Execute(versions map[key.Name]Material) (secret.Value, error) {
	run := &execution{versions: versions, opened: make(map[key.Name]Fields)}
	bound, err := t.root.Clone()
	if err != nil {
		return secret.Value{}, &Error{kind: ErrExecute, Message: "the template cannot be copied"}
	}
	if err := bound.Funcs(run.funcs()).Execute(&run.out, Fields{}); err != nil {
		clear(run.out.bytes)
		return secret.Value{}, executeError(err)
	}
	v := secret.New(run.out.bytes)
	clear(run.out.bytes)
	return v, nil
}

// output collects the rendering up to MaxOutput bytes.
type output struct{ bytes []byte }

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	if string(p) == whole {
		return 0, refuse("a whole key cannot be printed; name a field, for example .password")
	}
	if len(o.bytes)+len(p) > MaxOutput {
		return 0, refuse("the output exceeds %d bytes", MaxOutput)
	}
	o.bytes = append(o.bytes, p...)
	return len(p), nil
}

// execution is the state of one Execute. It is used by one goroutine.
type execution struct {
	versions map[key.Name]Material
	opened   map[key.Name]Fields
	out      output
	steps    int
	work     int
}

// refusal is an error of our own functions; its text holds no value.
type refusal struct{ message string }

func (r *refusal) Error() string { return r.message }

func refuse(format string, args ...any) error { return &refusal{message: fmt.Sprintf(format, args...)} }

func (x *execution) step() (string, error) {
	x.steps++
	if x.steps > MaxSteps {
		return "", refuse("more than %d loop steps and template calls", MaxSteps)
	}
	return "", nil
}

// spend counts bytes that a function is about to produce.
func (x *execution) spend(n int) error {
	if n < 0 || n > MaxWork-x.work {
		return refuse("more than %d bytes are produced on the way", MaxWork)
	}
	x.work += n
	return nil
}

func (x *execution) key(name string) (Fields, error) {
	n := key.Name(name)
	if f, ok := x.opened[n]; ok {
		return f, nil
	}
	m, ok := x.versions[n]
	if !ok {
		return nil, refuse("key %q has not been delivered", name)
	}
	f := make(Fields, len(m.Attributes)+len(m.Secrets))
	maps.Copy(f, m.Attributes)
	for field, v := range m.Secrets {
		if err := x.spend(v.Len()); err != nil {
			return nil, err
		}
		f[field] = v.RevealString()
	}
	x.opened[n] = f
	return f, nil
}

func (x *execution) keyversion(name string) (uint64, error) {
	m, ok := x.versions[key.Name(name)]
	if !ok {
		return 0, refuse("key %q has not been delivered", name)
	}
	return uint64(m.Version), nil
}

// field is the template function "index": a field whose name is no identifier.
func field(f Fields, name string) (string, error) {
	v, ok := f[name]
	if !ok {
		return "", missing(f, name)
	}
	return v, nil
}

func missing(f Fields, name string) error {
	return refuse("there is no field %q; the version has %s", name, strings.Join(slices.Sorted(maps.Keys(f)), ", "))
}

var (
	execPosition = regexp.MustCompile(`^template: ` + rootName + `:(\d+):(\d+): executing "[^"]*" at <(.*?)>: `)
	missingEntry = regexp.MustCompile(`map has no entry for key "([^"]*)"$`)
)

// executeError keeps of err what cannot hold a value: package text/template
// quotes values in some of its messages.
func executeError(err error) *Error {
	e := &Error{kind: ErrExecute, Message: "the expression does not fit the data"}
	text := err.Error()
	if m := execPosition.FindStringSubmatch(text); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
		e.Column, _ = strconv.Atoi(m[2])
		e.Column++
		e.Message = fmt.Sprintf("%q does not fit the data", m[3])
	}
	var own *refusal
	var exec template.ExecError
	switch {
	case errors.As(err, &own):
		e.Message = own.message
	case errors.As(err, &exec):
		if m := missingEntry.FindStringSubmatch(text); m != nil {
			e.Message = fmt.Sprintf("there is no field %q", m[1])
			e.Hint = "keyturn key show NAME lists the fields of a key"
		}
	}
	return e
}
