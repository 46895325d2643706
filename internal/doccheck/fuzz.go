package doccheck

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// CheckFuzz compares the fuzz targets of the source with those that a page names,
// in tables with the columns "what", "decoder" and "fuzz target": every target
// stands in a row that names its folder, and every row names targets that are in
// one of its folders. It returns the number of targets that were found.
func CheckFuzz(root fs.FS, page string) (found int, problems []Problem, err error) {
	text, err := fs.ReadFile(root, page)
	if err != nil {
		return 0, nil, fmt.Errorf("check fuzz targets: %w", err)
	}
	targets, err := fuzzTargets(root)
	if err != nil {
		return 0, nil, fmt.Errorf("check fuzz targets: %w", err)
	}
	named := map[string]bool{}
	number, inTable := 0, false
	for line := range bytes.Lines(text) {
		number++
		row := cells(string(line))
		switch {
		case row == nil:
			inTable = false
			continue
		case slices.Equal(row, []string{"what", "decoder", "fuzz target"}):
			inTable = true
			continue
		case !inTable || len(row) != 3 || strings.Trim(row[1], "-:") == "":
			continue
		}
		for _, target := range quoted.FindAllStringSubmatch(row[2], -1) {
			is := false
			for _, folder := range quoted.FindAllStringSubmatch(row[1], -1) {
				if where := path.Join(folder[1], target[1]); slices.Contains(targets, where) {
					is, named[where] = true, true
				}
			}
			if !is {
				problems = append(problems, Problem{page, number, fmt.Sprintf("there is no fuzz target %s in %s", target[1], row[1])})
			}
		}
	}
	for _, where := range targets {
		if !named[where] {
			problems = append(problems, Problem{page, 0, fmt.Sprintf("no row has the fuzz target %s and its folder `%s`", path.Base(where), path.Dir(where))})
		}
	}
	return len(targets), problems, nil
}

// fuzzTargets returns the paths of the folders of all fuzz targets, each followed
// by the target's name.
func fuzzTargets(root fs.FS) ([]string, error) {
	var targets []string
	err := walk(root, func(name string) error {
		if !strings.HasSuffix(name, "_test.go") || strings.Contains("/"+name, "/testdata/") {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		for _, match := range testFunction.FindAllSubmatch(text, -1) {
			if is := string(match[1]); strings.HasPrefix(is, "Fuzz") {
				targets = append(targets, path.Join(path.Dir(name), is))
			}
		}
		return nil
	})
	slices.Sort(targets)
	return targets, err
}
