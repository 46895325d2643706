package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Parse reads the resources of one file: one or more YAML documents, or, when
// the file name ends in ".json", one or more JSON objects. The file name is used
// for messages only.
//
// When anything is wrong the error is a Problems that lists everything, and the
// resources are those documents nothing is wrong with. The error is also
// ErrInvalid, by errors.Is. Fields are checked by themselves; what concerns
// expressions, schedules and other resources is found by Lint.
func Parse(filename string, src []byte) ([]Resource, error) {
	p := &fileParser{file: filename}
	text, ok := p.source(string(src))
	if ok {
		if strings.HasSuffix(strings.ToLower(filename), ".json") {
			p.json(text)
		} else {
			p.yaml(text)
		}
	}
	p.problems.sort()
	return p.resources, p.problems.Err()
}

type fileParser struct {
	file      string
	documents int
	resources []Resource
	problems  Problems
}

func (p *fileParser) report(at Position, resource, path, code, message, hint string) {
	p.problems = append(p.problems, Problem{
		File: p.file, Line: at.Line, Col: at.Col, Resource: resource, Path: path,
		Severity: Error, Code: code, Message: message, Hint: hint,
	})
}

// reportAt reports what concerns a place rather than a resource.
func (p *fileParser) reportAt(at Position, code, message, hint string) {
	p.report(at, "", "", code, message, hint)
}

// source checks the characters of the file and returns it with unified line ends.
func (p *fileParser) source(src string) (string, bool) {
	if len(src) > MaxSource {
		p.reportAt(Position{Line: 1, Col: 1}, "too-large", fmt.Sprintf("the file has %d bytes, at most %d are allowed", len(src), MaxSource), "split it into several files")
		return "", false
	}
	src = strings.ReplaceAll(strings.TrimPrefix(src, "\ufeff"), "\r\n", "\n")
	at := Position{Line: 1, Col: 1}
	for i, r := range src {
		switch {
		case r == '\n':
			at = Position{Line: at.Line + 1, Col: 1}
			continue
		case r == utf8.RuneError && !strings.HasPrefix(src[i:], "\ufffd"):
			p.reportAt(at, "encoding", "the file is not valid UTF-8", "save it as UTF-8")
			return "", false
		case r != '\t' && unicode.IsControl(r), r == '\ufeff', r == '\u2028', r == '\u2029':
			p.reportAt(at, "encoding", fmt.Sprintf("the character %U is not allowed here", r), "remove it, or write it as an escape in double quotes")
			return "", false
		}
		at.Col++
	}
	return src, true
}

func (p *fileParser) json(src string) {
	reader := &jsonReader{src: src, report: p.reportAt}
	for _, root := range reader.read() {
		if !p.count(root.at) {
			return
		}
		p.document(root)
	}
}

// yaml splits the file into documents itself, so that a broken document hides no
// problem of another one, and so that the cost of a document is bounded.
func (p *fileParser) yaml(src string) {
	lines := strings.Split(src, "\n")
	begin := 0
	flush := func(end int) bool {
		body := strings.Join(lines[begin:end], "\n") + "\n"
		if strings.TrimSpace(body) == "" {
			return true
		}
		reader := &yamlReader{offset: begin, report: p.reportAt}
		before := len(p.problems)
		root := reader.read(body)
		if len(p.problems) > before {
			return p.count(Position{Line: begin + 1, Col: 1})
		}
		if root == nil {
			return true
		}
		if !p.count(root.at) {
			return false
		}
		p.document(root)
		return true
	}
	for i, line := range lines {
		mark := strings.HasPrefix(line, "---") || strings.HasPrefix(line, "...")
		if !mark || len(line) > 3 && line[3] != ' ' && line[3] != '\t' {
			continue
		}
		if rest := strings.TrimSpace(line[3:]); rest != "" && rest[0] != '#' {
			p.reportAt(Position{Line: i + 1, Col: 5}, "syntax", "something follows the mark between documents", "begin the document on the next line")
		}
		if !flush(i) {
			return
		}
		begin = i + 1
	}
	flush(len(lines))
}

// count reports whether one more document is allowed.
func (p *fileParser) count(at Position) bool {
	p.documents++
	if p.documents == MaxDocuments+1 {
		p.reportAt(at, "too-many", fmt.Sprintf("the file has more than %d documents", MaxDocuments), "split it into several files")
	}
	return p.documents <= MaxDocuments
}

// header is what every document begins with.
type header struct {
	APIVersion string   `json:"apiVersion" jsonschema:"required"`
	Kind       string   `json:"kind" jsonschema:"required"`
	Metadata   struct{} `json:"metadata" jsonschema:"required"`
	Spec       struct{} `json:"spec" jsonschema:"required"`
}

// document decodes one document and keeps it if nothing is wrong with it.
func (p *fileParser) document(root *node) {
	before := len(p.problems)
	kind, ok := p.header(root)
	if !ok {
		return
	}
	var res Resource
	switch kind {
	case KindPolicy:
		res.Policy = &Policy{Spec: incompleteSpec()}
	case KindFreeze:
		res.Freeze = &Freeze{}
	case KindRule:
		res.Rule = &Rule{Spec: defaultRule()}
	case KindKey:
		res.Key = &Key{}
	}
	resource := kind.String()
	if name := root.field("metadata").field("name"); name != nil && name.kind == nodeText {
		resource += " " + name.text[:min(len(name.text), 253)]
	}
	d := &decoder{places: map[string]place{"": {Position: root.at}}}
	d.report = func(at Position, path, code, message, hint string) {
		p.report(at, resource, path, code, message, hint)
	}
	metadata, spec := res.parts()
	if n := root.field("metadata"); n != nil {
		d.value(n, reflect.ValueOf(metadata).Elem(), "metadata")
	}
	if n := root.field("spec"); n != nil {
		d.value(n, reflect.ValueOf(spec).Elem(), "spec")
	}
	if len(p.problems) > before {
		return
	}
	res.Source = Source{File: p.file, places: d.places}
	res.complete()
	res.check(func(f finding) { p.problems = append(p.problems, res.problem(f)) })
	if len(p.problems) == before {
		p.resources = append(p.resources, res)
	}
}

// header checks the outermost fields and returns the kind.
func (p *fileParser) header(root *node) (Kind, bool) {
	before := len(p.problems)
	if root.kind != nodeMap {
		p.reportAt(root.at, "wrong-type", fmt.Sprintf("the document is %s, but must be a mapping", root), "begin it with apiVersion: "+APIVersion)
		return 0, false
	}
	known := fieldNames(reflect.TypeFor[header]())
	seen := map[string]Position{}
	for _, k := range root.keys {
		if first, twice := seen[k.text]; twice {
			p.report(k.at, "", mapPath("", k.text), "duplicate-field", fmt.Sprintf("the field is there twice, first in line %d", first.Line), "keep one of them, or separate documents by a line ---")
			continue
		}
		seen[k.text] = k.at
		if !slices.Contains(known, k.text) {
			p.report(k.at, "", "", "unknown-field", "unknown field "+quote(k.text), suggest(k.text, known))
		}
	}
	for _, name := range known {
		if _, there := seen[name]; !there {
			hint := ""
			if name == "apiVersion" {
				hint = "add apiVersion: " + APIVersion
			}
			p.report(root.at, "", "", "missing-field", fmt.Sprintf("the field %q is missing", name), hint)
		}
	}
	if n := root.field("apiVersion"); n != nil && (n.kind != nodeText || n.text != APIVersion) {
		p.report(n.at, "", "apiVersion", "unknown-version", fmt.Sprintf("unknown API version %s", quote(n.text)), "write "+APIVersion)
	}
	var kind Kind
	if n := root.field("kind"); n != nil {
		if n.kind != nodeText || kind.UnmarshalText([]byte(n.text)) != nil {
			p.report(n.at, "", "kind", "unknown-kind", fmt.Sprintf("unknown kind %s", quote(n.text)), suggest(n.text, kindNames()[1:]))
		}
	}
	// A repeated or unknown outer field does not stop the rest from being checked.
	return kind, kind != 0 && (len(p.problems) == before || seen["spec"] != Position{})
}

// field returns the value of a field, nil if there is none.
func (n *node) field(name string) *node {
	if n == nil || n.kind != nodeMap {
		return nil
	}
	for i, k := range n.keys {
		if k.text == name {
			return n.values[i]
		}
	}
	return nil
}

// parts returns pointers to the metadata and the spec.
func (r Resource) parts() (metadata, spec any) {
	switch r.Kind() {
	case KindPolicy:
		return &r.Policy.Metadata, &r.Policy.Spec
	case KindFreeze:
		return &r.Freeze.Metadata, &r.Freeze.Spec
	case KindRule:
		return &r.Rule.Metadata, &r.Rule.Spec
	case KindKey:
		return &r.Key.Metadata, &r.Key.Spec
	}
	return nil, nil
}

func (r Resource) complete() {
	if r.Policy != nil {
		r.Policy.Spec.complete()
	}
}

// check reports what is wrong with the resource by itself.
func (r Resource) check(report reporter) {
	metadata, spec := report.within("metadata"), report.within("spec")
	switch r.Kind() {
	case KindPolicy:
		r.Policy.Metadata.check(metadata)
		r.Policy.Spec.check(spec)
	case KindFreeze:
		r.Freeze.Metadata.check(metadata)
		f := r.Freeze.Spec.interval()
		f.check(spec)
	case KindRule:
		r.Rule.Metadata.check(metadata)
		r.Rule.Spec.check(spec)
	case KindKey:
		r.Key.Metadata.check(metadata)
		r.Key.Spec.check(spec)
	}
}
