package doccheck

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// source is the comment before a fenced block that says which file it is from.
var source = regexp.MustCompile(`^<!-- from ([^ ]+) -->$`)

// CheckSnippets compares fenced blocks with the files they are from: a block
// behind the line
//
//	<!-- from examples/x/x.go -->
//
// must stand in that file as it is, from the beginning of a line to the end of
// one. It returns the number of blocks that were compared.
func CheckSnippets(root fs.FS) (compared int, problems []Problem, err error) {
	err = walk(root, func(name string) error {
		if path.Ext(name) != ".md" || strings.Contains("/"+name, "/testdata/") {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		for _, s := range snippets(text) {
			compared++
			file, err := fs.ReadFile(root, s.file)
			switch {
			case err != nil:
				problems = append(problems, Problem{name, s.line, fmt.Sprintf("the block is said to be from %s, which cannot be read", s.file)})
			case s.text == "":
				problems = append(problems, Problem{name, s.line, fmt.Sprintf("no fenced block follows the comment that names %s", s.file)})
			case !strings.Contains("\n"+string(file), "\n"+s.text):
				problems = append(problems, Problem{name, s.line, fmt.Sprintf("the block does not stand in %s like this; copy it anew", s.file)})
			}
		}
		return nil
	})
	if err != nil {
		return compared, nil, fmt.Errorf("compare snippets: %w", err)
	}
	return compared, problems, nil
}

type snippet struct {
	file, text string
	line       int
}

// snippets returns the blocks of a page that name their file.
func snippets(page []byte) []snippet {
	var found []snippet
	var open *snippet
	inBlock := false
	number := 0
	for raw := range bytes.Lines(page) {
		number++
		line := string(raw)
		match := source.FindStringSubmatch(strings.TrimSpace(line))
		fence := strings.HasPrefix(line, "```")
		switch {
		case open == nil && match != nil:
			open = &snippet{file: match[1], line: number}
		case open == nil:
		case fence && !inBlock:
			inBlock = true
		case fence, !inBlock && strings.TrimSpace(line) != "":
			found = append(found, *open)
			open, inBlock = nil, false
		case inBlock:
			open.text += line
		}
	}
	if open != nil {
		found = append(found, snippet{file: open.file, line: open.line})
	}
	return found
}
