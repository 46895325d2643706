package policy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Limits on input. What exceeds them is refused.
const (
	// MaxSource is the size of one file, in bytes.
	MaxSource = 1 << 20
	// MaxDocument is the size of one YAML document, in bytes.
	MaxDocument = 64 << 10
	// MaxDocuments is how many documents a file may hold.
	MaxDocuments = 1000
	// MaxDepth is how deep lists and mappings may be nested.
	MaxDepth = 32
	// MaxNodes is how many values, keys and marks a document may consist of.
	MaxNodes = 4_000
)

// nodeKind is the kind of a value. The zero value is invalid.
type nodeKind uint8

const (
	nodeNull nodeKind = iota + 1
	nodeBool
	nodeNumber
	// nodeVague is a plain scalar that different YAML readers take for different values.
	nodeVague
	nodeText
	nodeList
	nodeMap
)

// node is one value of a document, whatever the document was written in.
type node struct {
	kind nodeKind
	at   Position
	// text is the content of a nodeText, else the source of the scalar.
	text string
	// inline says that text stands in the source as it is, starting inset characters after at.
	inline bool
	inset  int
	// keys are the keys of a nodeMap, values its values or those of a nodeList.
	keys   []*node
	values []*node
}

// String says what the node is, in words for an error message.
func (n *node) String() string {
	switch n.kind {
	case nodeNull:
		return "empty"
	case nodeBool:
		return n.text
	case nodeNumber, nodeVague:
		return "the number " + n.text
	case nodeText:
		return "a text"
	case nodeList:
		return "a list"
	case nodeMap:
		return "a mapping"
	}
	return "invalid"
}

var (
	plainNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)
	vagueNumber = regexp.MustCompile(`^[-+]?(\.?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|0[xob][0-9a-fA-F_]+|\.(inf|Inf|INF)|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$|^\.(nan|NaN|NAN)$`)
)

// plainKind returns what a plain, unquoted scalar is by the core schema of YAML 1.2.
func plainKind(s string) nodeKind {
	switch s {
	case "", "~", "null", "Null", "NULL":
		return nodeNull
	case "true", "True", "TRUE", "false", "False", "FALSE":
		return nodeBool
	}
	switch {
	case plainNumber.MatchString(s):
		return nodeNumber
	case vagueNumber.MatchString(s):
		return nodeVague
	}
	return nodeText
}

// number returns the value of a nodeNumber, or says why it has none.
func (n *node) number() (float64, error) {
	f, err := strconv.ParseFloat(n.text, 64)
	if err != nil {
		return 0, fmt.Errorf("the number %s is too large", n.text)
	}
	if f == 0 {
		return 0, nil // never the negative zero
	}
	if !strings.ContainsAny(n.text, ".eE") && strconv.FormatFloat(f, 'f', -1, 64) != n.text {
		return 0, fmt.Errorf("the number %s is too large to be exact", n.text)
	}
	return f, nil
}
