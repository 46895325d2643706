package doccheck

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

var declared = regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?([A-Za-z0-9_]+)[(\[]`)

// CheckFunctions reports functions that a page names and that do not exist, in
// tables with the columns "when", "folder", "functions" and "what happens". It
// returns the number of functions that were looked for.
func CheckFunctions(root fs.FS, page string) (checked int, problems []Problem, err error) {
	text, err := fs.ReadFile(root, page)
	if err != nil {
		return 0, nil, fmt.Errorf("check functions: %w", err)
	}
	number, inTable := 0, false
	for line := range bytes.Lines(text) {
		number++
		row := cells(string(line))
		switch {
		case row == nil:
			inTable = false
			continue
		case slices.Equal(row, []string{"when", "folder", "functions", "what happens"}):
			inTable = true
			continue
		case !inTable || len(row) != 4 || strings.Trim(row[1], "-:") == "":
			continue
		}
		folder := strings.Trim(row[1], "`")
		names, err := functions(root, folder)
		if err != nil || len(names) == 0 {
			problems = append(problems, Problem{page, number, fmt.Sprintf("there is no Go code in %s", folder)})
			continue
		}
		for _, match := range quoted.FindAllStringSubmatch(row[2], -1) {
			checked++
			if !names[match[1]] {
				problems = append(problems, Problem{page, number, fmt.Sprintf("there is no function %s in %s", match[1], folder)})
			}
		}
	}
	return checked, problems, nil
}

// functions returns the names of functions and methods in one folder, tests left out.
func functions(root fs.FS, folder string) (map[string]bool, error) {
	files, err := fs.ReadDir(root, folder)
	if err != nil {
		return nil, fmt.Errorf("list functions: %w", err)
	}
	names := map[string]bool{}
	for _, file := range files {
		if path.Ext(file.Name()) != ".go" || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		text, err := fs.ReadFile(root, path.Join(folder, file.Name()))
		if err != nil {
			return nil, fmt.Errorf("list functions: %w", err)
		}
		for _, match := range declared.FindAllSubmatch(text, -1) {
			names[string(match[1])] = true
		}
	}
	return names, nil
}
