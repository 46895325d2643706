package archtest

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Module is the source of one Go module, as far as rules look at it.
type Module struct {
	// Path is the module path, for example "github.com/keyturn/keyturn".
	Path string
	// Packages are the module's packages by folder, in the order of their folders.
	Packages []*Package
	// Texts are all other text files, in the order of their names.
	Texts []Text

	fset *token.FileSet
}

// Package is the Go files of one folder, test files included.
type Package struct {
	// Dir is the folder below the module's root with forward slashes, "." for the root.
	Dir string
	// Name is the name in the package clauses, without "_test".
	Name string
	// Files are in the order of their names.
	Files []*File
}

// File is one Go file.
type File struct {
	// Name is the path below the module's root with forward slashes.
	Name string
	// Test says that the name ends in "_test.go".
	Test bool
	// Content is what the file holds.
	Content []byte
	// Imports are the import paths and where they stand.
	Imports []Import
	// Syntax is the parsed file with comments.
	Syntax *ast.File
}

// Import is one import of a file.
type Import struct {
	Path string
	Pos  token.Pos
}

// Text is a file that is not Go source of the module.
type Text struct {
	// Name is the path below the module's root with forward slashes.
	Name string
	// Content is what the file holds.
	Content []byte
}

// maxText bounds the text files that are looked at, in bytes.
const maxText = 4 << 20

// Load reads the module whose root folder is root. Left out are hidden folders
// but .ci and .github, what is built (bin, dist, node_modules), what is
// generated (gen) and the folders of archtest's own fake modules. Go files in
// testdata folders count as text.
func Load(root string) (*Module, error) {
	m := &Module{fset: token.NewFileSet()}
	var err error
	if m.Path, err = modulePath(filepath.Join(root, "go.mod")); err != nil {
		return nil, err
	}
	packages := map[string]*Package{}
	err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed while walking, such as a test's temporary file
		case err != nil:
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		switch {
		case entry.IsDir() && leftOut(name):
			return fs.SkipDir
		case !entry.Type().IsRegular(), name == ".git": // a file in a worktree
			return nil
		case path.Ext(name) != ".go" || inTestdata(name):
			return m.addText(file, name)
		default:
			return m.addGo(file, name, packages)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", m.Path, err)
	}
	for _, p := range packages {
		m.Packages = append(m.Packages, p)
	}
	slices.SortFunc(m.Packages, func(a, b *Package) int { return strings.Compare(a.Dir, b.Dir) })
	return m, nil
}

func leftOut(dir string) bool {
	switch base := path.Base(dir); {
	case dir == ".", base == ".ci", base == ".github":
		return false
	case strings.HasPrefix(base, "."), base == "bin", base == "dist", base == "node_modules":
		return true
	}
	return dir == "gen" || dir == "internal/archtest/testdata"
}

func inTestdata(name string) bool {
	return slices.Contains(strings.Split(path.Dir(name), "/"), "testdata")
}

func modulePath(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("find the module's root: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "module "); ok {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", fmt.Errorf("%s has no module line", file)
}

func (m *Module) addText(file, name string) error {
	info, err := os.Stat(file)
	if err != nil || info.Size() > maxText {
		return ignoreMissing(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return ignoreMissing(err)
	}
	if bytes.IndexByte(content, 0) < 0 {
		m.Texts = append(m.Texts, Text{Name: name, Content: content})
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (m *Module) addGo(file, name string, packages map[string]*Package) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return ignoreMissing(err)
	}
	syntax, err := parser.ParseFile(m.fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := &File{
		Name:    name,
		Test:    strings.HasSuffix(name, "_test.go"),
		Content: content,
		Syntax:  syntax,
	}
	for _, spec := range syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return fmt.Errorf("%s: import %s: %w", name, spec.Path.Value, err)
		}
		f.Imports = append(f.Imports, Import{Path: imported, Pos: spec.Pos()})
	}
	dir := path.Dir(name)
	p := packages[dir]
	if p == nil {
		p = &Package{Dir: dir, Name: strings.TrimSuffix(syntax.Name.Name, "_test")}
		packages[dir] = p
	}
	p.Files = append(p.Files, f)
	return nil
}

// inside returns the folder of an import path within the module, and whether
// the path lies within it.
func (m *Module) inside(imported string) (dir string, ok bool) {
	if imported == m.Path {
		return ".", true
	}
	return strings.CutPrefix(imported, m.Path+"/")
}

func (m *Module) line(pos token.Pos) int { return m.fset.Position(pos).Line }
