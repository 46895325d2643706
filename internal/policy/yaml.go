package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// yamlReader turns one YAML document into nodes. It accepts the plain part of
// YAML only: mappings, lists and scalars. Anchors, aliases, tags, merge keys and
// directives are refused, so that a document is never larger than it looks.
type yamlReader struct {
	lines  [][]rune
	offset int // lines of the file before the document
	report func(at Position, code, message, hint string)
}

// read returns nil for an empty document and for one that it reports problems of.
func (y *yamlReader) read(src string) *node {
	if len(src) > MaxDocument {
		y.report(Position{Line: y.offset + 1, Col: 1}, "too-large", fmt.Sprintf("the document has %d bytes, at most %d are allowed", len(src), MaxDocument), "split it into several documents")
		return nil
	}
	for line := range strings.SplitSeq(src, "\n") {
		y.lines = append(y.lines, []rune(line))
	}
	tokens := lexer.Tokenize(src)
	if !y.bounded(tokens) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		y.syntax(err)
		return nil
	}
	var root *node
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType {
			continue
		}
		n, ok := y.node(doc.Body, 1)
		if !ok {
			return nil
		}
		if root != nil {
			y.report(n.at, "syntax", "a second value follows the document", "begin it with a line that holds only ---")
			return nil
		}
		root = n
	}
	return root
}

// bounded refuses what would make the parser recurse or compare without bound.
func (y *yamlReader) bounded(tokens token.Tokens) bool {
	if len(tokens) > MaxNodes {
		y.report(y.tokenPosition(tokens[MaxNodes]), "too-large", fmt.Sprintf("the document has more than %d values, keys and marks", MaxNodes), "split it into several documents")
		return false
	}
	flow, line, dashes := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, dashes = t.Position.Line, 0
		}
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType:
			dashes++
		case token.AnchorType, token.AliasType:
			y.report(y.tokenPosition(t), "unsupported", "anchors and aliases are not supported", "write the value out")
			return false
		case token.TagType:
			y.report(y.tokenPosition(t), "unsupported", "tags are not supported", "leave out "+quote(t.Value))
			return false
		case token.MergeKeyType:
			y.report(y.tokenPosition(t), "unsupported", "merge keys are not supported", "write the fields out")
			return false
		case token.DirectiveType:
			y.report(y.tokenPosition(t), "unsupported", "directives are not supported", "leave the line out")
			return false
		default:
		}
		// A block begins further right than the one around it, so that its column bounds its depth.
		block := flow == 0 && (t.Type == token.SequenceEntryType || t.Type == token.MappingValueType) && y.indent(t.Position.Line) > 8*MaxDepth
		if flow > MaxDepth || dashes > MaxDepth || block {
			y.report(y.tokenPosition(t), "too-deep", fmt.Sprintf("lists and mappings are nested more than %d deep", MaxDepth), "")
			return false
		}
	}
	return true
}

// indent returns the number of spaces that a line of the document begins with.
func (y *yamlReader) indent(line int) int {
	if line < 1 || line > len(y.lines) {
		return 0
	}
	n := 0
	for n < len(y.lines[line-1]) && y.lines[line-1][n] == ' ' {
		n++
	}
	return n
}

func (y *yamlReader) syntax(err error) {
	at, message := Position{Line: y.offset + 1, Col: 1}, err.Error()
	var located interface {
		GetMessage() string
		GetToken() *token.Token
	}
	if errors.As(err, &located) {
		message = located.GetMessage()
		if t := located.GetToken(); t != nil {
			at = y.tokenPosition(t)
		}
	}
	hint := "check the indentation, and put texts that hold special characters in quotes"
	if strings.Contains(message, "'\t'") {
		message, hint = "a tab stands where the line is indented", "indent with spaces"
	}
	y.report(at, "syntax", "not valid YAML: "+message, hint)
}

// tokenPosition returns where a token begins in the file. The parser counts the
// blanks before some tokens as part of them.
func (y *yamlReader) tokenPosition(t *token.Token) Position {
	line, col := max(t.Position.Line, 1), max(t.Position.Column, 1)
	if line <= len(y.lines) {
		runes := y.lines[line-1]
		for col <= len(runes) && runes[col-1] == ' ' {
			col++
		}
	}
	return Position{Line: y.offset + line, Col: col}
}

func (y *yamlReader) node(n ast.Node, depth int) (*node, bool) {
	if depth > MaxDepth {
		y.report(y.tokenPosition(n.GetToken()), "too-deep", fmt.Sprintf("lists and mappings are nested more than %d deep", MaxDepth), "")
		return nil, false
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		return y.mapping(n.Start, n.Values, depth)
	case *ast.MappingValueNode:
		return y.mapping(nil, []*ast.MappingValueNode{n}, depth)
	case *ast.SequenceNode:
		out := &node{kind: nodeList, at: y.tokenPosition(n.Start)}
		for _, value := range n.Values {
			v, ok := y.node(value, depth+1)
			if !ok {
				return nil, false
			}
			out.values = append(out.values, v)
		}
		return out, true
	case *ast.LiteralNode:
		return &node{kind: nodeText, at: y.tokenPosition(n.Start), text: n.Value.Value}, true
	case *ast.StringNode:
		return y.text(n), true
	case *ast.NullNode, *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		t := n.GetToken()
		return &node{kind: plainKind(t.Value), at: y.tokenPosition(t), text: t.Value}, true
	}
	y.report(y.tokenPosition(n.GetToken()), "unsupported", "this part of YAML is not supported", "write plain mappings, lists and texts")
	return nil, false
}

func (y *yamlReader) text(n *ast.StringNode) *node {
	out := &node{kind: nodeText, at: y.tokenPosition(n.Token), text: n.Value}
	if n.Token.Type != token.SingleQuoteType && n.Token.Type != token.DoubleQuoteType {
		out.kind = plainKind(n.Value)
	} else {
		out.inset = 1
	}
	if line := out.at.Line - y.offset; line >= 1 && line <= len(y.lines) {
		runes := y.lines[line-1]
		start := min(out.at.Col-1+out.inset, len(runes))
		end := min(start+len(n.Value), len(runes))
		out.inline = strings.HasPrefix(string(runes[start:end]), n.Value)
	}
	return out
}

func (y *yamlReader) mapping(start *token.Token, pairs []*ast.MappingValueNode, depth int) (*node, bool) {
	out := &node{kind: nodeMap}
	for _, pair := range pairs {
		var name *node
		switch k := pair.Key.(type) {
		case *ast.StringNode:
			name = y.text(k)
			name.kind = nodeText
		case *ast.NullNode, *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
			t := k.GetToken()
			name = &node{kind: nodeText, at: y.tokenPosition(t), text: t.Value}
		default:
			y.report(y.tokenPosition(pair.Key.GetToken()), "unsupported", "a field's name must be a plain text", "write name: value")
			return nil, false
		}
		value, ok := y.node(pair.Value, depth+1)
		if !ok {
			return nil, false
		}
		out.keys, out.values = append(out.keys, name), append(out.values, value)
	}
	switch {
	case start != nil && start.Type == token.MappingStartType:
		out.at = y.tokenPosition(start)
	case len(out.keys) > 0:
		out.at = out.keys[0].at
	default:
		out.at = Position{Line: y.offset + 1, Col: 1}
	}
	return out, true
}
