// Package mutant builds one test binary that holds many deliberate mistakes, of
// which one at a time is made.
//
// The source knows nothing of this: it is changed on its way to the compiler
// (go test -overlay). A function in which a mistake is to be made gets a copy with
// the mistake, and calls that copy instead of itself when the process was started
// with the mistake's number in the environment. Without a number the binary does
// what the source says.
package mutant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Env names the variable with the number of the mistake to make, counted from 1.
const Env = "KEYTURN_MUTANT"

// Mistake is one change of one function.
type Mistake struct {
	// File holds Old exactly once, within one function; New takes its place.
	File, Old, New string
}

// Build compiles the tests of the package in the working directory with all
// mistakes, which are numbered in their order from 1, and returns the binary's
// path in dir. A mistake that does not fit its file any more is an error.
func Build(ctx context.Context, dir string, mistakes []Mistake) (binary string, err error) {
	byFile := map[string][]numbered{}
	for i, m := range mistakes {
		path, err := filepath.Abs(m.File)
		if err != nil {
			return "", err
		}
		byFile[path] = append(byFile[path], numbered{i + 1, m})
	}
	replace := map[string]string{}
	for path, list := range byFile {
		source, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		changed, name, err := plant(path, source, list)
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, fmt.Sprintf("changed%d.go", len(replace)))
		replace[path] = file
		if err := os.WriteFile(file, changed, 0o600); err != nil {
			return "", err
		}
		// The number is read in a file that the compiler sees beside the others.
		reader := filepath.Join(dir, fmt.Sprintf("reader%d.go", len(replace)))
		replace[filepath.Join(filepath.Dir(path), "mutant_number.go")] = reader
		text := "package " + name + "\n\nimport \"os\"\n\nvar mutantNumber = os.Getenv(\"" + Env + "\")\n"
		if err := os.WriteFile(reader, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	mapping, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, mapping, 0o600); err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "mutants.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the mutants: %w: %s", err, out)
	}
	return binary, nil
}

// Command is the binary's test of the given name with mistake number n.
func Command(ctx context.Context, binary string, n int, test string, env ...string) *exec.Cmd {
	child := exec.CommandContext(ctx, binary, "-test.run", "^"+test+"$", "-test.v", "-test.timeout", "5m")
	child.Env = append(os.Environ(), Env+"="+strconv.Itoa(n))
	child.Env = append(child.Env, env...)
	return child
}

// Running reports whether this process makes a mistake.
func Running() bool { return os.Getenv(Env) != "" }

type numbered struct {
	number int
	Mistake
}

// errPlace: the text to change is not where a mistake can be planted.
var errPlace = errors.New("adapt the mutant")

// plant returns the source with the mistakes in it, and the package's name.
func plant(path string, source []byte, list []numbered) (changed []byte, name string, err error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, source, 0)
	if err != nil {
		return nil, "", err
	}
	type insertion struct {
		at   int
		text string
	}
	var insertions []insertion
	var copies []string
	for _, m := range list {
		if n := bytes.Count(source, []byte(m.Old)); n != 1 {
			return nil, "", fmt.Errorf("%w: %s holds %q %d times, not once", errPlace, path, m.Old, n)
		}
		at := bytes.Index(source, []byte(m.Old))
		offset := func(p token.Pos) int { return files.Position(p).Offset }
		i := slices.IndexFunc(file.Decls, func(d ast.Decl) bool {
			f, ok := d.(*ast.FuncDecl)
			return ok && f.Body != nil && offset(f.Body.Lbrace) < at && at+len(m.Old) <= offset(f.Body.Rbrace)
		})
		if i < 0 {
			return nil, "", fmt.Errorf("%w: in %s %q is not within one function", errPlace, path, m.Old)
		}
		f := file.Decls[i].(*ast.FuncDecl)
		call, err := callOf(f, m.number)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", path, err)
		}
		guard := fmt.Sprintf("if mutantNumber == \"%d\" { %s };", m.number, call)
		insertions = append(insertions, insertion{offset(f.Body.Lbrace) + 1, guard})
		// The copy differs from the function by its name and the mistake.
		start, end, named := offset(f.Pos()), offset(f.End()), offset(f.Name.End())
		copies = append(copies, string(source[start:named])+suffix(m.number)+string(source[named:at])+m.New+string(source[at+len(m.Old):end]))
	}
	slices.SortStableFunc(insertions, func(a, b insertion) int { return b.at - a.at })
	changed = slices.Clone(source)
	for _, ins := range insertions {
		changed = slices.Insert(changed, ins.at, []byte(ins.text)...)
	}
	return append(append(changed, '\n'), strings.Join(copies, "\n\n")+"\n"...), file.Name.Name, nil
}

func suffix(n int) string { return "Mutant" + strconv.Itoa(n) }

// callOf is the statement with which f hands over to its copy.
func callOf(f *ast.FuncDecl, n int) (string, error) {
	var args []string
	for _, field := range f.Type.Params.List {
		_, variadic := field.Type.(*ast.Ellipsis)
		for _, name := range field.Names {
			if name.Name == "_" {
				return "", fmt.Errorf("%w: a parameter of %s has no name", errPlace, f.Name)
			}
			arg := name.Name
			if variadic {
				arg += "..."
			}
			args = append(args, arg)
		}
		if len(field.Names) == 0 {
			return "", fmt.Errorf("%w: a parameter of %s has no name", errPlace, f.Name)
		}
	}
	name := f.Name.Name + suffix(n)
	if f.Recv != nil {
		if len(f.Recv.List[0].Names) == 0 {
			return "", fmt.Errorf("%w: the receiver of %s has no name", errPlace, f.Name)
		}
		name = f.Recv.List[0].Names[0].Name + "." + name
	}
	call := name + "(" + strings.Join(args, ", ") + ")"
	if f.Type.Results == nil {
		return call + "; return", nil
	}
	return "return " + call, nil
}
