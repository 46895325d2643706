package agent

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/keyturn/keyturn/internal/spelling"
)

// maxDocument is the largest configuration file, in bytes.
const maxDocument = 1 << 20

// maxNesting is the deepest nesting of a configuration file.
const maxNesting = 64

// document is the configuration as it is written. Fields that need a check of
// their own are texts here.
type document struct {
	APIVersion    string            `yaml:"apiVersion"`
	Kind          string            `yaml:"kind"`
	Server        string            `yaml:"server"`
	CAFile        string            `yaml:"caFile"`
	TokenFile     string            `yaml:"tokenFile"`
	JoinTokenFile string            `yaml:"joinTokenFile"`
	StateDir      string            `yaml:"stateDir"`
	Party         documentParty     `yaml:"party"`
	Targets       []documentTarget  `yaml:"targets"`
	Metadata      *documentMetadata `yaml:"metadata"`
	MetricsListen string            `yaml:"metricsListen"`
}

type documentParty struct {
	ID     string            `yaml:"id"`
	Region string            `yaml:"region"`
	Labels map[string]string `yaml:"labels"`
}

type documentTarget struct {
	Name          string          `yaml:"name"`
	Keys          []string        `yaml:"keys"`
	Template      string          `yaml:"template"`
	TemplateFile  string          `yaml:"templateFile"`
	Path          string          `yaml:"path"`
	Mode          literal         `yaml:"mode"`
	Owner         string          `yaml:"owner"`
	Group         string          `yaml:"group"`
	WorldReadable bool            `yaml:"worldReadable"`
	Order         int             `yaml:"order"`
	Reload        *documentReload `yaml:"reload"`
	Health        *documentHealth `yaml:"health"`
}

// literal is a scalar as it is written: 0640 without quotes is no number here.
type literal string

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (l *literal) UnmarshalYAML(n ast.Node) error {
	if t := n.GetToken(); t != nil {
		*l = literal(t.Value)
	}
	return nil
}

type documentReload struct {
	Signal  *documentSignal `yaml:"signal"`
	Command []string        `yaml:"command"`
	Timeout string          `yaml:"timeout"`
}

type documentSignal struct {
	Name    string `yaml:"name"`
	PIDFile string `yaml:"pidFile"`
	Process string `yaml:"process"`
}

type documentHealth struct {
	Command  []string        `yaml:"command"`
	HTTP     string          `yaml:"http"`
	TCP      string          `yaml:"tcp"`
	Timeout  string          `yaml:"timeout"`
	Interval string          `yaml:"interval"`
	Retries  *int            `yaml:"retries"`
	Sample   *documentSample `yaml:"sample"`
}

type documentSample struct {
	Every string `yaml:"every"`
	For   string `yaml:"for"`
	Then  string `yaml:"then"`
}

// problem is one mistake in a configuration file. It wraps ErrConfig.
type problem struct {
	file         string
	line, column int
	path         string
	message      string
	hint         string
}

// Error reads file:line:column: path: message; hint.
func (p *problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", p.file, p.line, p.column)
	if p.path != "" {
		b.WriteString(p.path + ": ")
	}
	b.WriteString(p.message)
	if p.hint != "" {
		b.WriteString("; " + p.hint)
	}
	return b.String()
}

// Unwrap returns ErrConfig.
func (p *problem) Unwrap() error { return ErrConfig }

// reader decodes one file and collects its problems.
type reader struct {
	file     string
	tree     *ast.File
	problems []*problem
}

// decode reads content strictly into a document.
func (r *reader) decode(content []byte) document {
	var doc document
	if len(content) > maxDocument {
		r.problems = append(r.problems, &problem{file: r.file, line: 1, column: 1, message: fmt.Sprintf("the file has %d bytes, at most %d are allowed", len(content), maxDocument)})
		return doc
	}
	tokens := lexer.Tokenize(string(content))
	if p := r.plainYAML(tokens); p != nil {
		r.problems = append(r.problems, p)
		return doc
	}
	tree, err := parser.Parse(tokens, 0)
	if err != nil {
		r.problems = append(r.problems, r.yamlProblem(err))
		return doc
	}
	if len(tree.Docs) > 1 {
		r.problems = append(r.problems, r.problemAt(tree.Docs[1].Start, "a second document begins here", "keep one agent's configuration in one file"))
		return doc
	}
	r.tree = tree
	if len(tree.Docs) == 0 || tree.Docs[0].Body == nil {
		return doc
	}
	if _, ok := tree.Docs[0].Body.(ast.MapNode); !ok {
		r.problems = append(r.problems, r.problemAt(tree.Docs[0].Body.GetToken(), "the file must be a mapping", "begin with for example server: https://keyturn.example:8443"))
		return doc
	}
	if err := yaml.NewDecoder(bytes.NewReader(content), yaml.Strict()).Decode(&doc); err != nil {
		r.problems = append(r.problems, r.yamlProblem(err))
	}
	return doc
}

// plainYAML refuses what no configuration needs and what can make a small file
// expand without bound.
func (r *reader) plainYAML(tokens token.Tokens) *problem {
	depth := 0
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return r.problemAt(t, "YAML anchors and aliases are not supported", "write the value out")
		case token.TagType:
			return r.problemAt(t, "YAML tags are not supported", "write the plain value")
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		if depth > maxNesting || t.Position != nil && t.Position.IndentNum > 1000 {
			return r.problemAt(t, "the nesting is too deep", "")
		}
	}
	return nil
}

func (r *reader) problemAt(t *token.Token, message, hint string) *problem {
	p := &problem{file: r.file, line: 1, column: 1, message: message, hint: hint}
	if t != nil && t.Position != nil {
		p.line, p.column = max(1, t.Position.Line), max(1, t.Position.Column)
	}
	return p
}

// yamlProblem turns an error of the YAML package into a problem.
func (r *reader) yamlProblem(err error) *problem {
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) {
		p := r.problemAt(unknown.GetToken(), unknown.GetMessage(), "")
		if unknown.Token != nil {
			p.hint = nearest(unknown.Token.Value)
		}
		return p
	}
	var placed yaml.Error
	if errors.As(err, &placed) {
		return r.problemAt(placed.GetToken(), strings.TrimSpace(placed.GetMessage()), "")
	}
	return r.problemAt(nil, err.Error(), "")
}

// nearest names the known field that differs least from an unknown one.
func nearest(field string) string {
	known := []string{
		"apiVersion", "kind", "server", "caFile", "tokenFile", "joinTokenFile", "stateDir", "party", "targets", "id", "region",
		"labels", "name", "keys", "template", "templateFile", "path", "mode", "owner", "group", "worldReadable", "order", "reload",
		"health", "signal", "command", "timeout", "pidFile", "process", "http", "tcp", "interval", "retries", "sample", "every", "for", "then",
		"metadata", "listen", "authorizationFile", "google", "tokens", "issuer", "audiences", "scopes", "subjectTokenFile", "subjectTokenType",
	}
	if best := spelling.Nearest(field, known, 2); best != "" {
		return "did you mean " + best + "?"
	}
	return "docs/reference/agent.md lists the fields"
}

// fail notes a problem at a path such as "targets[0].path". When the path is not
// in the file, the nearest part of it that is gives the position.
func (r *reader) fail(path, message, hint string) {
	p := r.problemAt(r.token(path), message, hint)
	p.path = path
	r.problems = append(r.problems, p)
}

func (r *reader) token(path string) *token.Token {
	for path != "" {
		if n := r.node(path); n != nil {
			return n.GetToken()
		}
		cut := strings.LastIndexAny(path, ".[")
		path = path[:max(cut, 0)]
	}
	return nil
}

// node returns the value at path, nil when the file has none.
func (r *reader) node(path string) ast.Node {
	if r.tree == nil {
		return nil
	}
	at, err := yaml.PathString("$." + path)
	if err != nil {
		return nil
	}
	n, err := at.FilterFile(r.tree)
	if err != nil {
		return nil
	}
	return n
}

// err returns the problems in the order of the file, nil when there is none.
func (r *reader) err() error {
	slices.SortStableFunc(r.problems, func(a, b *problem) int {
		if a.line != b.line {
			return a.line - b.line
		}
		return a.column - b.column
	})
	var errs []error
	for _, p := range r.problems {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}
