package render

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/keyturn/keyturn/key"
)

// rootName is the name of the main template in positions of package text/template.
const rootName = "main"

// stepName is the function that the parser puts into every loop body and every
// template, so that an execution can be stopped. Users cannot call it.
const stepName = "keyturnStep"

// Template is a parsed template. Make one with Parse.
type Template struct {
	root *template.Template
	keys []key.Name
}

// Parse checks text and finds the keys that it names. Every argument of the
// function "key" must be a literal, so that the keys to watch are known before
// the first execution. If declared is not empty, the template may name only
// those keys. Every error is an *Error and wraps ErrTemplate.
func Parse(text string, declared []key.Name) (*Template, error) {
	if len(text) > MaxSource {
		return nil, &Error{kind: ErrTemplate, Message: fmt.Sprintf("it has %d bytes, at most %d are allowed", len(text), MaxSource)}
	}
	root, err := template.New(rootName).Option("missingkey=error").Funcs(new(execution).funcs()).Parse(text)
	if err != nil {
		return nil, parseError(err)
	}
	step, err := template.New("step").Funcs(new(execution).funcs()).Parse("{{" + stepName + "}}")
	if err != nil {
		return nil, &Error{kind: ErrTemplate, Message: err.Error()}
	}
	c := &checker{text: text, declared: declared, step: step.Root.Nodes[0]}
	for _, t := range root.Templates() {
		if t.Tree == nil || t.Root == nil {
			continue
		}
		scope := dotUnknown
		if t.Name() == rootName {
			scope = dotNothing
		}
		c.list(t.Root, scope)
		c.instrument(t.Root)
	}
	if c.err != nil {
		return nil, c.err
	}
	slices.Sort(c.keys)
	return &Template{root: root, keys: slices.Compact(c.keys)}, nil
}

// Keys returns the names of the keys in the template, sorted, without duplicates.
func (t *Template) Keys() []key.Name { return slices.Clone(t.keys) }

var parsePosition = regexp.MustCompile(`^template: ` + rootName + `:(\d+):(?:(\d+):)? ?`)

func parseError(err error) *Error {
	e := &Error{kind: ErrTemplate, Message: err.Error()}
	if m := parsePosition.FindStringSubmatch(e.Message); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
		e.Message = e.Message[len(m[0]):]
	}
	if strings.Contains(e.Message, "function") && strings.Contains(e.Message, "not defined") {
		e.Hint = "the functions are " + strings.Join(functionNames(), ", ")
	}
	return e
}

// dotScope says what the dot is at some place of a template.
type dotScope uint8

const (
	// dotNothing: outside every "with" and "range" of the main template.
	dotNothing dotScope = iota + 1
	dotUnknown
)

// checker walks a parsed template. It keeps the first error.
type checker struct {
	text     string
	declared []key.Name
	step     parse.Node
	keys     []key.Name
	err      *Error
}

func (c *checker) fail(at parse.Node, message, hint string) {
	if c.err != nil {
		return
	}
	before := c.text[:min(int(at.Position()), len(c.text))]
	c.err = &Error{
		kind:    ErrTemplate,
		Line:    1 + strings.Count(before, "\n"),
		Column:  len(before) - strings.LastIndexByte(before, '\n'),
		Message: message, Hint: hint,
	}
}

// instrument puts a step at the beginning of a list that may run many times.
func (c *checker) instrument(list *parse.ListNode) {
	list.Nodes = slices.Insert(list.Nodes, 0, c.step.Copy())
}

func (c *checker) list(list *parse.ListNode, dot dotScope) {
	if list == nil {
		return
	}
	for _, n := range list.Nodes {
		c.node(n, dot)
	}
}

func (c *checker) node(n parse.Node, dot dotScope) {
	switch n := n.(type) {
	case *parse.ActionNode:
		c.pipe(n.Pipe, dot)
	case *parse.TemplateNode:
		c.pipe(n.Pipe, dot)
	case *parse.IfNode:
		c.branch(&n.BranchNode, dot, dot)
	case *parse.WithNode:
		c.branch(&n.BranchNode, dot, dotUnknown)
	case *parse.RangeNode:
		c.branch(&n.BranchNode, dot, dotUnknown)
		c.instrument(n.List)
	}
}

func (c *checker) branch(n *parse.BranchNode, dot, inner dotScope) {
	c.pipe(n.Pipe, dot)
	c.list(n.List, inner)
	c.list(n.ElseList, dot)
}

func (c *checker) pipe(p *parse.PipeNode, dot dotScope) {
	if p == nil {
		return
	}
	for i, cmd := range p.Cmds {
		c.command(cmd, dot, i > 0)
	}
}

func (c *checker) command(cmd *parse.CommandNode, dot dotScope, piped bool) {
	for i, arg := range cmd.Args {
		if id, ok := arg.(*parse.IdentifierNode); ok {
			c.call(cmd, id, i, piped)
			continue
		}
		c.operand(arg, dot)
	}
}

func (c *checker) operand(n parse.Node, dot dotScope) {
	switch n := n.(type) {
	case *parse.PipeNode:
		c.pipe(n, dot)
	case *parse.ChainNode:
		c.operand(n.Node, dot)
	case *parse.IdentifierNode:
		c.call(nil, n, 0, false)
	case *parse.FieldNode:
		if dot == dotNothing {
			c.fail(n, n.String()+" names no key", c.fieldHint(n.Ident))
		}
	case *parse.VariableNode:
		if len(n.Ident) > 1 && n.Ident[0] == "$" {
			c.fail(n, n.String()+" names no key", c.fieldHint(n.Ident[1:]))
		}
	}
}

func (c *checker) fieldHint(field []string) string {
	name := "prod/orders/db"
	if len(c.declared) > 0 {
		name = c.declared[0].String()
	}
	return fmt.Sprintf("write {{ (key %q).%s }}, or put it inside {{ with key %q }} … {{ end }}", name, strings.Join(field, "."), name)
}

// call checks the identifier id, the argument with the given index of cmd.
func (c *checker) call(cmd *parse.CommandNode, id *parse.IdentifierNode, index int, piped bool) {
	if !slices.Contains(functionNames(), id.Ident) {
		c.fail(id, fmt.Sprintf("function %q is not available", id.Ident), "the functions are "+strings.Join(functionNames(), ", "))
		return
	}
	if id.Ident != "key" && id.Ident != "keyversion" {
		return
	}
	hint := fmt.Sprintf("write for example {{ %s \"prod/orders/db\" }}: the agent must know which keys to watch before it renders", id.Ident)
	if cmd == nil || piped || index != 0 || len(cmd.Args) != 2 {
		c.fail(id, fmt.Sprintf("%s needs exactly one literal name", id.Ident), hint)
		return
	}
	literal, ok := cmd.Args[1].(*parse.StringNode)
	if !ok {
		c.fail(id, fmt.Sprintf("%s needs a literal name, not %s", id.Ident, cmd.Args[1]), hint)
		return
	}
	name, err := key.ParseName(literal.Text)
	if err != nil {
		c.fail(literal, err.Error(), "")
		return
	}
	if len(c.declared) > 0 && !slices.Contains(c.declared, name) {
		c.fail(literal, fmt.Sprintf("key %q is not among the target's keys", name), "add it to keys, or leave keys out: they are then taken from the template")
		return
	}
	c.keys = append(c.keys, name)
}
