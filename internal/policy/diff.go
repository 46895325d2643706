package policy

import (
	"cmp"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// Op says what applying a resource does. The zero value is invalid.
type Op uint8

// The operations.
const (
	Created Op = iota + 1
	Changed
	Deleted
	Unchanged
)

func opNames() []string {
	return []string{Created: "created", Changed: "changed", Deleted: "deleted", Unchanged: "unchanged"}
}

// String returns "created", "changed", "deleted", "unchanged" or "invalid".
func (v Op) String() string { return enumString(v, opNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Op) MarshalText() ([]byte, error) { return enumMarshal(v, opNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Op) UnmarshalText(text []byte) error { return enumParse(v, text, opNames()) }

// Change is what becomes of one resource.
type Change struct {
	Op   Op     `json:"op"`
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	// Fields are the fields that differ; for a created or deleted resource all.
	Fields []FieldChange `json:"fields,omitempty"`
}

// FieldChange is the difference in one field. Old is empty for a field that was
// added, New for one that was removed. Values that look like credentials are
// shown as [redacted].
type FieldChange struct {
	// Path leads to the field; elements of lists go by their name if they have one,
	// for example "spec.stages[canary].bake".
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Diff compares resources by kind and name, and by their effective values. The
// changes come in the order in which they should be applied: policies, freezes,
// rules, keys, each by name. Whether what only old holds is to be deleted is up to the
// caller: apply does so with --prune.
func Diff(before, after []Resource) []Change {
	type pair struct{ old, new Resource }
	pairs := map[string]pair{}
	for _, r := range before {
		pairs[r.String()] = pair{old: r}
	}
	for _, r := range after {
		p := pairs[r.String()]
		p.new = r
		pairs[r.String()] = p
	}
	changes := make([]Change, 0, len(pairs))
	for _, id := range sortedKeys(pairs) {
		p := pairs[id]
		r, op := p.new, Changed
		switch {
		case p.old.Kind() == 0:
			op = Created
		case p.new.Kind() == 0:
			r, op = p.old, Deleted
		}
		c := Change{Op: op, Kind: r.Kind(), Name: r.Name(), Fields: diffFields(p.old, p.new)}
		if op == Changed && len(c.Fields) == 0 {
			c.Op = Unchanged
		}
		changes = append(changes, c)
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return changes
}

func diffFields(before, after Resource) []FieldChange {
	old, oldPaths := flatten(before)
	now, nowPaths := flatten(after)
	var out []FieldChange
	for _, path := range nowPaths {
		if was, ok := old[path]; !ok || was != now[path] {
			out = append(out, fieldChange(path, was, now[path]))
		}
	}
	for _, path := range oldPaths {
		if _, ok := now[path]; !ok {
			out = append(out, fieldChange(path, old[path], ""))
		}
	}
	return out
}

func fieldChange(path, before, after string) FieldChange {
	return FieldChange{Path: path, Old: redact(path, before), New: redact(path, after)}
}

// flatten returns the scalars of a resource by path, and the paths in order.
func flatten(r Resource) (values map[string]string, paths []string) {
	values = map[string]string{}
	d, err := r.document()
	if err != nil {
		return values, nil
	}
	root, err := encode(reflect.ValueOf(d))
	if err != nil {
		return map[string]string{"": err.Error()}, []string{""}
	}
	add := func(path, text string) {
		values[path] = text
		paths = append(paths, path)
	}
	var walk func(n *node, path string)
	walk = func(n *node, path string) {
		switch n.kind {
		case nodeMap:
			for i, k := range n.keys {
				walk(n.values[i], mapPath(path, k.text))
			}
			if len(n.keys) == 0 {
				add(path, "{}")
			}
		case nodeList:
			names := elementNames(n)
			for i, value := range n.values {
				if names == nil {
					walk(value, indexPath(path, i))
				} else {
					walk(value, path+"["+names[i]+"]")
				}
			}
			if names != nil || len(n.values) == 0 {
				add(path, "["+strings.Join(names, ", ")+"]") // the order matters
			}
		case nodeNull, nodeBool, nodeNumber, nodeVague, nodeText:
			add(path, scalar(n.kind, n.text))
		}
	}
	walk(root, "")
	return values, paths
}

// elementNames returns the names of a list's elements if each has its own.
func elementNames(n *node) []string {
	var names []string
	for _, value := range n.values {
		name := value.field("name")
		if name == nil || name.kind != nodeText || slices.Contains(names, name.text) {
			return nil
		}
		names = append(names, name.text)
	}
	return names
}

var (
	secretField = regexp.MustCompile(`(?i)(passw|secret|token|credential|private|apikey|api_key|passphrase)`)
	secretURL   = regexp.MustCompile(`(://[^/\s:"]*):[^\s"]*@`)
	secretParam = regexp.MustCompile(`(?i)(passw(or)?d|secret|token|passphrase)=[^&\s"]+`)
)

// redacted stands for a value that is not shown.
const redacted = "[redacted]"

// redact hides what looks like a credential in a key's config block, where none belongs.
func redact(path, value string) string {
	if value == "" || !strings.HasPrefix(path, "spec.config") {
		return value
	}
	if secretField.MatchString(path) {
		return redacted
	}
	value = secretURL.ReplaceAllString(value, "${1}:"+redacted+"@")
	return secretParam.ReplaceAllStringFunc(value, func(s string) string {
		name, _, _ := strings.Cut(s, "=")
		return name + "=" + redacted
	})
}
