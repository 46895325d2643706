package doccheck

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// walk calls visit for each regular file that belongs to the project.
func walk(root fs.FS, visit func(name string) error) error {
	return fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed while walking, such as a test's temporary file
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (strings.HasPrefix(entry.Name(), ".") || name == "bin" || name == "dist" || entry.Name() == "node_modules"):
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		return visit(name)
	})
}

var testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)[A-Za-z0-9_]*)\(`)

// Tests returns the names that a coverage row may give as its test: functions of
// test files, and scripts below testdata folders.
func Tests(root fs.FS) (map[string]bool, error) {
	names := map[string]bool{}
	err := walk(root, func(name string) error {
		inTestdata := strings.Contains("/"+name, "/testdata/")
		switch ext := path.Ext(name); {
		case inTestdata && (ext == ".txtar" || ext == ".txt"):
			names[path.Base(name)] = true
		case !inTestdata && strings.HasSuffix(name, "_test.go"):
			text, err := fs.ReadFile(root, name)
			if err != nil {
				return err
			}
			for _, match := range testFunction.FindAllSubmatch(text, -1) {
				names[string(match[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("collect tests: %w", err)
	}
	return names, nil
}

var (
	makeTarget = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`)
	goLine     = regexp.MustCompile(`(?m)^go ([0-9]+\.[0-9]+)`)
)

// makeTargets returns the targets of the Makefile.
func makeTargets(root fs.FS) (map[string]bool, error) {
	text, err := fs.ReadFile(root, "Makefile")
	if err != nil {
		return nil, err
	}
	targets := map[string]bool{}
	for _, match := range makeTarget.FindAllSubmatch(text, -1) {
		targets[string(match[1])] = true
	}
	return targets, nil
}

// goVersion returns the language version of go.mod, for example "1.26".
func goVersion(root fs.FS) (string, error) {
	text, err := fs.ReadFile(root, "go.mod")
	if err != nil {
		return "", err
	}
	match := goLine.FindSubmatch(text)
	if match == nil {
		return "", errors.New("go.mod has no go line")
	}
	return string(match[1]), nil
}
