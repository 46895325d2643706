package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// jsonReader turns a stream of JSON values into nodes.
type jsonReader struct {
	src     string
	decoder *json.Decoder
	nodes   int
	at      Position // of the byte at offset
	offset  int
	report  func(at Position, code, message, hint string)
}

// errReported says that the reader has reported the problem already.
var errReported = errors.New("reported")

// read returns one node per value; it stops at the first syntax error.
func (j *jsonReader) read() []*node {
	j.decoder = json.NewDecoder(strings.NewReader(j.src))
	j.decoder.UseNumber()
	var roots []*node
	for {
		j.nodes = 0
		n, err := j.value(1)
		switch {
		case errors.Is(err, io.EOF):
			return roots
		case err == nil:
			roots = append(roots, n)
			if len(roots) > MaxDocuments {
				return roots // refused by the caller
			}
			continue
		case errors.Is(err, errReported):
			return roots
		}
		offset := j.decoder.InputOffset()
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			offset = syntax.Offset - 1
		}
		message := err.Error()
		if errors.Is(err, io.ErrUnexpectedEOF) {
			offset, message = int64(len(j.src)), "it ends in the middle of a value"
		}
		j.report(j.position(offset), "syntax", "not valid JSON: "+message, "check quotes, commas and brackets")
		return roots
	}
}

// value reads one value. At the end of the input between values it returns io.EOF.
func (j *jsonReader) value(depth int) (*node, error) {
	at := j.next()
	t, err := j.decoder.Token()
	if err != nil {
		if depth > 1 && errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if j.nodes++; j.nodes > MaxNodes {
		j.report(at, "too-large", fmt.Sprintf("the document has more than %d values and keys", MaxNodes), "split it into several documents")
		return nil, errReported
	}
	if depth > MaxDepth {
		j.report(at, "too-deep", fmt.Sprintf("lists and mappings are nested more than %d deep", MaxDepth), "")
		return nil, errReported
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '[' {
			return j.list(at, depth)
		}
		return j.object(at, depth)
	case string:
		return &node{kind: nodeText, at: at, text: t, inset: 1, inline: !strings.ContainsAny(t, "\"\\\n\r\t")}, nil
	case json.Number:
		return &node{kind: nodeNumber, at: at, text: t.String()}, nil
	case bool:
		return &node{kind: nodeBool, at: at, text: fmt.Sprint(t)}, nil
	}
	return &node{kind: nodeNull, at: at}, nil
}

func (j *jsonReader) list(at Position, depth int) (*node, error) {
	out := &node{kind: nodeList, at: at}
	for j.decoder.More() {
		n, err := j.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out.values = append(out.values, n)
	}
	return out, j.end()
}

func (j *jsonReader) object(at Position, depth int) (*node, error) {
	out := &node{kind: nodeMap, at: at}
	for j.decoder.More() {
		name, err := j.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n, err := j.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out.keys, out.values = append(out.keys, name), append(out.values, n)
	}
	return out, j.end()
}

// end reads the closing bracket.
func (j *jsonReader) end() error {
	_, err := j.decoder.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next returns where the next token begins.
func (j *jsonReader) next() Position {
	offset := int(j.decoder.InputOffset())
	for offset < len(j.src) && strings.ContainsRune(" \t\r\n,:", rune(j.src[offset])) {
		offset++
	}
	return j.position(int64(offset))
}

// position turns an offset into a position. Offsets mostly grow, so that the
// whole file is walked once.
func (j *jsonReader) position(offset int64) Position {
	to := min(max(int(offset), 0), len(j.src))
	if to < j.offset || j.at.Line == 0 {
		j.offset, j.at = 0, Position{Line: 1, Col: 1}
	}
	between := j.src[j.offset:to]
	if last := strings.LastIndexByte(between, '\n'); last >= 0 {
		j.at.Line += strings.Count(between, "\n")
		j.at.Col, between = 1, between[last+1:]
	}
	j.at.Col += utf8.RuneCountInString(between)
	j.offset = to
	return j.at
}
