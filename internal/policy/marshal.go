package policy

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Marshal prints resources as YAML in their canonical form: every effective
// value, fields in the order of the documentation, maps in the order of their
// keys. Parse reads the result back to equal resources. It fails for an empty
// Resource and for one that holds an invalid enumeration value.
func Marshal(resources ...Resource) ([]byte, error) {
	var b strings.Builder
	for i, r := range resources {
		d, err := r.document()
		if err != nil {
			return nil, err
		}
		n, err := encode(reflect.ValueOf(d))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
		if i > 0 {
			b.WriteString("---\n")
		}
		n.print(&b, 0)
	}
	return []byte(b.String()), nil
}

// encode is the reverse of decoder.value.
func encode(v reflect.Value) (*node, error) {
	switch value := v.Interface().(type) {
	case time.Time:
		return &node{kind: nodeText, text: value.UTC().Format(time.RFC3339Nano)}, nil
	case encoding.TextMarshaler:
		text, err := value.MarshalText()
		return &node{kind: nodeText, text: string(text)}, err
	}
	switch v.Kind() {
	case reflect.Struct:
		out := &node{kind: nodeMap}
		for _, f := range structFields(v.Type()) {
			if f.omitZero && isZero(v.Field(f.index)) {
				continue
			}
			n, err := encode(v.Field(f.index))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			out.add(f.name, n)
		}
		return out, nil
	case reflect.Slice:
		out := &node{kind: nodeList}
		for i := range v.Len() {
			n, err := encode(v.Index(i))
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			out.values = append(out.values, n)
		}
		return out, nil
	case reflect.Map:
		out := &node{kind: nodeMap}
		names := map[string]struct{}{}
		for _, k := range v.MapKeys() {
			names[k.String()] = struct{}{}
		}
		for _, name := range sortedKeys(names) {
			n, err := encode(v.MapIndex(reflect.ValueOf(name)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out.add(name, n)
		}
		return out, nil
	case reflect.Interface:
		if v.IsNil() {
			return nil, fmt.Errorf("%w: a value is missing", ErrInvalid)
		}
		return encode(v.Elem())
	case reflect.Bool:
		return &node{kind: nodeBool, text: strconv.FormatBool(v.Bool())}, nil
	case reflect.Int:
		return &node{kind: nodeNumber, text: strconv.FormatInt(v.Int(), 10)}, nil
	case reflect.Float64:
		return &node{kind: nodeNumber, text: formatFloat(v.Float())}, nil
	case reflect.String:
		return &node{kind: nodeText, text: v.String()}, nil
	default:
		return nil, fmt.Errorf("%w: a value of type %s cannot be written", ErrInvalid, v.Type())
	}
}

// isZero reports whether a field with omitzero is left out. An empty list or map
// is the same as none.
func isZero(v reflect.Value) bool {
	if z, ok := v.Interface().(interface{ IsZero() bool }); ok {
		return z.IsZero()
	}
	if v.Kind() == reflect.Slice || v.Kind() == reflect.Map {
		return v.Len() == 0
	}
	return v.IsZero()
}

func formatFloat(f float64) string {
	if f == float64(int64(f)) && f > -(1<<53) && f < 1<<53 {
		return strconv.FormatInt(int64(f), 10)
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func (n *node) add(name string, value *node) {
	n.keys = append(n.keys, &node{kind: nodeText, text: name})
	n.values = append(n.values, value)
}

// print writes a mapping or a list in block style.
func (n *node) print(b *strings.Builder, indent int) {
	for i, value := range n.values {
		b.WriteString(strings.Repeat("  ", indent))
		if n.kind == nodeMap {
			b.WriteString(scalar(nodeText, n.keys[i].text))
			b.WriteByte(':')
		} else {
			b.WriteByte('-')
		}
		switch {
		case value.kind != nodeMap && value.kind != nodeList:
			b.WriteString(" " + scalar(value.kind, value.text) + "\n")
		case len(value.values) == 0 && value.kind == nodeMap:
			b.WriteString(" {}\n")
		case len(value.values) == 0:
			b.WriteString(" []\n")
		case n.kind == nodeList && value.kind == nodeMap:
			// The mapping begins on the line of the dash.
			var inner strings.Builder
			value.print(&inner, indent+1)
			b.WriteString(" " + strings.TrimLeft(inner.String(), " "))
		default:
			b.WriteByte('\n')
			value.print(b, indent+1)
		}
	}
}

var (
	plainText     = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_./-]*$`)
	plainDuration = regexp.MustCompile(`^([0-9]+(d|h|m|s|ms|us|ns))+$`)
)

// scalar prints one scalar; a text is quoted whenever some YAML reader could take
// it for something else.
func scalar(kind nodeKind, text string) string {
	if kind != nodeText || plainDuration.MatchString(text) {
		return text
	}
	switch strings.ToLower(text) {
	case "y", "n", "yes", "no", "on", "off":
		return strconv.Quote(text)
	}
	if plainText.MatchString(text) && plainKind(text) == nodeText {
		return text
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
