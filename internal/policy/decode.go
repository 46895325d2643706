package policy

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
)

// decoder copies nodes into resources, remembers where every field stands, and
// reports every mismatch.
type decoder struct {
	places map[string]place
	report func(at Position, path, code, message, hint string)
}

// defaulter is implemented by list elements that begin as something else than zero.
type defaulter interface{ setDefaults() }

// field is one field of a struct, by its wire name.
type field struct {
	name     string
	index    int
	required bool
	omitZero bool
}

// structFields returns the fields of a struct type by their JSON tags.
func structFields(t reflect.Type) []field {
	fields := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		fields = append(fields, field{
			name: name, index: i,
			required: f.Tag.Get("jsonschema") == "required",
			omitZero: options == "omitzero",
		})
	}
	return fields
}

func (d *decoder) wrongType(n *node, path, want, hint string) {
	d.report(n.at, path, "wrong-type", fmt.Sprintf("it is %s, but must be %s", n, want), hint)
}

// value copies n into v, which is settable and holds the defaults. It reports
// whether it could.
func (d *decoder) value(n *node, v reflect.Value, path string) bool {
	d.places[path] = place{Position: n.at, inset: n.inset, inline: n.inline}
	if n.kind == nodeVague {
		d.report(n.at, path, "ambiguous", fmt.Sprintf("%s means different things to different YAML readers", n.text), fmt.Sprintf("write a plain decimal number, or put it in quotes: %q", n.text))
		return false
	}
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		return d.time(n, v, path)
	case reflect.TypeFor[key.Name]():
		return d.text(n, path, "a name", func(s string) error { v.SetString(s); return nil })
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return d.text(n, path, describe(v), func(s string) error { return u.UnmarshalText([]byte(s)) })
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.object(n, v, path)
	case reflect.Slice:
		return d.list(n, v, path)
	case reflect.Map:
		return d.mapping(n, v, path)
	case reflect.Interface:
		value, ok := d.free(n, path)
		if ok {
			v.Set(reflect.ValueOf(value))
		}
		return ok
	case reflect.Bool:
		if n.kind != nodeBool {
			d.wrongType(n, path, "true or false", "")
			return false
		}
		v.SetBool(strings.EqualFold(n.text, "true"))
		return true
	case reflect.Int:
		f, err := 0.0, error(nil)
		if n.kind == nodeNumber {
			f, err = n.number()
		}
		if n.kind != nodeNumber || err != nil || f != float64(int(f)) {
			d.wrongType(n, path, "a whole number", "")
			return false
		}
		v.SetInt(int64(f))
		return true
	case reflect.String:
		return d.text(n, path, "a text", func(s string) error { v.SetString(s); return nil })
	default:
		panic("policy: no decoder for " + v.Type().String()) // a resource type was given an unknown field type
	}
}

// describe names what a text type expects.
func describe(v reflect.Value) string {
	if v.Type() == reflect.TypeFor[Duration]() {
		return "a duration"
	}
	return "a text"
}

func (d *decoder) text(n *node, path, want string, set func(string) error) bool {
	if n.kind != nodeText {
		hint := ""
		switch n.kind {
		case nodeNumber, nodeBool:
			hint = fmt.Sprintf("put it in quotes: %q", n.text)
			if want == "a duration" {
				hint = durationHint
			}
		case nodeNull:
			hint = "give it a value, or leave the field out"
		case nodeVague, nodeText, nodeList, nodeMap:
		}
		d.wrongType(n, path, want, hint)
		return false
	}
	if err := set(n.text); err != nil {
		message, hint := splitHint(err)
		d.report(n.at, path, "invalid-value", message, hint)
		return false
	}
	return true
}

func (d *decoder) time(n *node, v reflect.Value, path string) bool {
	return d.text(n, path, "a time", func(s string) error {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return &hintError{problem: "invalid time " + quote(s), hint: "write date, time and offset as in 2026-12-18T00:00:00Z"}
		}
		v.Set(reflect.ValueOf(t.UTC()))
		return nil
	})
}

func (d *decoder) object(n *node, v reflect.Value, path string) bool {
	if n.kind != nodeMap {
		names := fieldNames(v.Type())
		d.wrongType(n, path, "a mapping", "its fields are "+strings.Join(names, ", "))
		return false
	}
	fields := structFields(v.Type())
	seen, ok := map[string]Position{}, true
	for i, k := range n.keys {
		at := joinPath(path, k.text)
		if first, twice := seen[k.text]; twice {
			d.report(k.at, mapPath(path, k.text), "duplicate-field", fmt.Sprintf("the field is there twice, first in line %d", first.Line), "keep one of them")
			ok = false
			continue
		}
		seen[k.text] = k.at
		known := false
		for _, f := range fields {
			if f.name == k.text {
				known = true
				ok = d.value(n.values[i], v.Field(f.index), at) && ok
			}
		}
		if !known {
			d.report(k.at, path, "unknown-field", "unknown field "+quote(k.text), suggest(k.text, fieldNames(v.Type())))
			ok = false
		}
	}
	for _, f := range fields {
		if _, there := seen[f.name]; f.required && !there {
			d.report(n.at, path, "missing-field", fmt.Sprintf("the field %q is missing", f.name), "")
			ok = false
		}
	}
	return ok
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for _, f := range structFields(t) {
		names = append(names, f.name)
	}
	return names
}

func (d *decoder) list(n *node, v reflect.Value, path string) bool {
	if n.kind != nodeList {
		d.wrongType(n, path, "a list", "begin each entry with a dash")
		return false
	}
	ok := true
	list := reflect.Zero(v.Type())
	for i, value := range n.values {
		element := reflect.New(v.Type().Elem())
		if e, is := element.Interface().(defaulter); is {
			e.setDefaults()
		}
		ok = d.value(value, element.Elem(), indexPath(path, i)) && ok
		list = reflect.Append(list, element.Elem())
	}
	v.Set(list)
	return ok
}

// mapping copies into a map[string]string or a map[string]any; an empty one becomes nil.
func (d *decoder) mapping(n *node, v reflect.Value, path string) bool {
	if n.kind != nodeMap {
		d.wrongType(n, path, "a mapping", "write name: value")
		return false
	}
	seen, ok := map[string]Position{}, true
	out := reflect.MakeMap(v.Type())
	for i, k := range n.keys {
		at := mapPath(path, k.text)
		if first, twice := seen[k.text]; twice {
			d.report(k.at, at, "duplicate-field", fmt.Sprintf("the field is there twice, first in line %d", first.Line), "keep one of them")
			ok = false
			continue
		}
		seen[k.text] = k.at
		element := reflect.New(v.Type().Elem()).Elem()
		if d.value(n.values[i], element, at) {
			out.SetMapIndex(reflect.ValueOf(k.text), element)
		} else {
			ok = false
		}
	}
	if out.Len() > 0 {
		v.Set(out)
	}
	return ok
}

// free copies a value of a config block: text, float64, bool, []any, map[string]any.
func (d *decoder) free(n *node, path string) (any, bool) {
	switch n.kind {
	case nodeText:
		return n.text, true
	case nodeBool:
		return strings.EqualFold(n.text, "true"), true
	case nodeNumber:
		f, err := n.number()
		if err != nil {
			d.report(n.at, path, "out-of-range", err.Error(), "put it in quotes")
			return nil, false
		}
		return f, true
	case nodeList:
		list, ok := make([]any, len(n.values)), true
		for i, value := range n.values {
			ok = d.value(value, reflect.ValueOf(&list[i]).Elem(), indexPath(path, i)) && ok
		}
		return list, ok
	case nodeMap:
		m := map[string]any{}
		ok := d.mapping(n, reflect.ValueOf(&m).Elem(), path)
		return m, ok
	case nodeNull, nodeVague: // a vague number was refused by value
	}
	d.report(n.at, path, "empty-value", "it has no value", "give it one, or leave the field out")
	return nil, false
}
