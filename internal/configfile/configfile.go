// Package configfile reads the YAML files that processes are configured by.
//
// Guarantees:
//
//   - An unknown field, a field twice, or a value of another kind is an error.
//   - Every error names file and line, and all problems of a file are told at once.
//   - Files are bounded; no input makes it panic.
package configfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxSize is the largest file, in bytes.
const maxSize = 1 << 20

// Problem is what is wrong with one field, and how to mend it.
type Problem struct {
	// Field is its path, for example limits.body or pages[1].
	Field string
	// Message does not name the field again.
	Message string
}

// Error names the field.
func (p Problem) Error() string { return p.Field + ": " + p.Message }

// Problems gathers what is wrong with one block.
type Problems struct {
	// In is put before the fields, for example "limits.".
	In   string
	list []Problem
}

// Add notes what is wrong with a field.
func (p *Problems) Add(field, format string, args ...any) {
	p.list = append(p.list, Problem{Field: p.In + field, Message: fmt.Sprintf(format, args...)})
}

// List returns what was noted.
func (p *Problems) List() []Problem { return p.list }

// Form is a kind of configuration.
type Form struct {
	// Err is wrapped by every error.
	Err error
	// Page is the file that describes all fields.
	Page string
}

// Read reads a file.
func (f Form) Read(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; see %s for an example", f.Err, err, f.Page)
	}
	defer func() { _ = file.Close() }() // it was only read
	source, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", f.Err, err)
	}
	if len(source) > maxSize {
		return nil, fmt.Errorf("%w: %s has more than %d bytes, which is the most that is allowed", f.Err, path, maxSize)
	}
	return source, nil
}

// Decode reads a configuration into a struct whose fields have yaml tags, then asks
// check, which may fill in defaults, what is wrong with it. file is for messages.
func (f Form) Decode(file string, source []byte, into any, check func() []Problem) error {
	lines := linesOf(source)
	var problems []Problem
	// A bad duration is told like other bad values, with its line.
	durations := yaml.CustomUnmarshaler(func(d *time.Duration, text []byte) error {
		value := strings.Trim(string(text), "\"' \n")
		parsed, err := time.ParseDuration(value)
		if err != nil {
			problems = append(problems, Problem{Field: lines.fieldWith(value), Message: fmt.Sprintf("%q is not a duration; write for example 2m", value)})
		}
		*d = parsed
		return nil
	})
	err := yaml.UnmarshalWithOptions(source, into, yaml.Strict(), durations)
	if err != nil && !errors.Is(err, io.EOF) { // an empty file lacks what is required, and no more
		return fmt.Errorf("%w: %s", f.Err, f.placed(file, err))
	}
	problems = append(problems, check()...)
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = fmt.Errorf("%w: %s:%d: %w", f.Err, file, lines.of(p.Field), p)
	}
	return errors.Join(errs...)
}

// placed is a decoder's error as file:line:column and what is wrong.
func (f Form) placed(file string, err error) string {
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil {
		position := at.GetToken().Position
		return fmt.Sprintf("%s:%d:%d: %s; see %s for all fields", file, position.Line, position.Column, at.GetMessage(), f.Page)
	}
	return file + ": " + err.Error()
}

// sourceLines says on which line of a configuration a field stands.
type sourceLines struct{ file *ast.File }

func linesOf(source []byte) sourceLines {
	file, err := parser.ParseBytes(source, 0)
	if err != nil {
		return sourceLines{}
	}
	return sourceLines{file: file}
}

// of returns the line of the field, or of the nearest one around it that is
// there, or 1.
func (l sourceLines) of(field string) int {
	for l.file != nil && field != "" {
		if path, err := yaml.PathString("$." + field); err == nil {
			if node, err := path.FilterFile(l.file); err == nil && node != nil && node.GetToken() != nil {
				return node.GetToken().Position.Line
			}
		}
		field = field[:max(strings.LastIndexAny(field, ".["), 0)]
	}
	return 1
}

// fieldWith returns the path of the first field with that text as its value.
func (l sourceLines) fieldWith(value string) string {
	found := &finder{value: value}
	if l.file != nil {
		for _, doc := range l.file.Docs {
			ast.Walk(found, doc)
		}
	}
	return strings.TrimPrefix(found.path, "$.")
}

type finder struct{ value, path string }

// Visit implements ast.Visitor.
func (f *finder) Visit(node ast.Node) ast.Visitor {
	if pair, ok := node.(*ast.MappingValueNode); ok && f.path == "" && pair.Value != nil && pair.Value.GetToken() != nil && pair.Value.GetToken().Value == f.value {
		f.path = pair.Value.GetPath()
	}
	return f
}

// Fill sets *v to a default if it is zero.
func Fill[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}
