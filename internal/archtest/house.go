package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// emptyNames say nothing of what a package is for.
var emptyNames = [...]string{"util", "utils", "common", "helper", "helpers", "misc"}

// checkPackages reports packages without a comment or with an empty name, and
// files that are too long.
func checkPackages(m *Module, r Rules) []Violation {
	var out []Violation
	for _, p := range m.Packages {
		first := p.Files[0]
		if slices.Contains(emptyNames[:], p.Name) || slices.Contains(emptyNames[:], path.Base(p.Dir)) {
			out = append(out, Violation{
				Rule: "name", File: first.Name, Line: m.line(first.Syntax.Package),
				Problem: fmt.Sprintf("the name of %s does not say what it is for", p.Dir),
				Mend:    "name it after the one idea it holds",
			})
		}
		if !documented(p) {
			out = append(out, Violation{
				Rule: "comment", File: first.Name, Line: m.line(first.Syntax.Package),
				Problem: fmt.Sprintf("package %s has no package comment", p.Name),
				Mend:    "begin doc.go with // Package " + p.Name + " and state its guarantees (// Command for a program)",
			})
		}
		for _, f := range p.Files {
			if lines := bytes.Count(f.Content, []byte("\n")); lines > r.MaxLines && !ast.IsGenerated(f.Syntax) {
				out = append(out, Violation{
					Rule: "long", File: f.Name,
					Problem: fmt.Sprintf("it has %d lines, at most %d are allowed", lines, r.MaxLines),
					Mend:    "split it by idea",
				})
			}
		}
	}
	return out
}

// documented reports whether one file has a proper package comment. In a
// package with non-test files it must stand in one of these, where readers see it.
func documented(p *Package) bool {
	onlyTests := !slices.ContainsFunc(p.Files, func(f *File) bool { return !f.Test })
	want := "Package " + p.Name + " "
	if p.Name == "main" {
		want = "Command "
	}
	return slices.ContainsFunc(p.Files, func(f *File) bool {
		return f.Test == onlyTests && (strings.HasPrefix(f.Syntax.Doc.Text(), want) ||
			onlyTests && strings.HasPrefix(f.Syntax.Doc.Text(), "Package "+f.Syntax.Name.Name+" "))
	})
}

// checkDeclarations reports init functions, and package variables of non-test
// code that can only be there to be changed.
func checkDeclarations(m *Module, r Rules) []Violation {
	var out []Violation
	for _, p := range m.Packages {
		for _, f := range p.Files {
			for _, decl := range f.Syntax.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					if d.Name.Name == "init" && d.Recv == nil && !excepted(r.Init, f.Name) {
						out = append(out, Violation{
							Rule: "init", File: f.Name, Line: m.line(d.Pos()),
							Problem: "it has an init function",
							Mend:    "build the value where it is wired and pass it on",
						})
					}
				case *ast.GenDecl:
					if d.Tok == token.VAR && !f.Test && !excepted(r.Variables, f.Name) {
						out = append(out, mutableVariables(m, f, d)...)
					}
				}
			}
		}
	}
	return out
}

// mutableVariables judges by the form of the declaration: a variable with a
// type and no value, one that holds a plain literal, a pointer, a channel, an
// empty map or an empty slice, or something of package sync, is a global state
// or a constant in disguise. Errors, filled tables, compiled expressions,
// embedded files and interface assertions are constants that Go cannot declare
// as such.
func mutableVariables(m *Module, f *File, d *ast.GenDecl) []Violation {
	var out []Violation
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok || isDirective(d.Doc, "//go:embed") || isDirective(v.Doc, "//go:embed") {
			continue
		}
		for i, name := range v.Names {
			if name.Name == "_" {
				continue
			}
			var value ast.Expr
			if i < len(v.Values) {
				value = v.Values[i]
			}
			if why := mutable(value, len(v.Values)); why != "" {
				out = append(out, Violation{
					Rule: "variable", File: f.Name, Line: m.line(name.Pos()),
					Problem: fmt.Sprintf("package variable %s %s", name.Name, why),
					Mend:    "make it a constant, a field of a struct, or a local variable",
				})
			}
		}
	}
	return out
}

func mutable(value ast.Expr, values int) string {
	switch v := value.(type) {
	case nil:
		if values == 0 {
			return "has no value until somebody sets it"
		}
	case *ast.BasicLit:
		return "holds a literal"
	case *ast.UnaryExpr:
		if v.Op == token.AND {
			return "holds a pointer"
		}
	case *ast.CompositeLit:
		switch t := v.Type.(type) {
		case *ast.MapType, *ast.ArrayType:
			if len(v.Elts) == 0 {
				return "is filled by somebody"
			}
		case *ast.SelectorExpr:
			if x, ok := t.X.(*ast.Ident); ok && (x.Name == "sync" || x.Name == "atomic") {
				return "guards shared state"
			}
		}
	case *ast.CallExpr:
		if fun, ok := v.Fun.(*ast.Ident); ok && (fun.Name == "make" || fun.Name == "new") {
			return "is filled by somebody"
		}
	}
	return ""
}

// checkTests reports tests that skip and tests that sleep. Sleeping inside a
// bubble of testing/synctest only moves its clock and is free.
func checkTests(m *Module, r Rules) []Violation {
	var out []Violation
	for _, p := range m.Packages {
		openers := bubbleOpeners(p)
		for _, f := range p.Files {
			if localName(f.Syntax, "testing") == "" {
				continue
			}
			if !excepted(r.Skip, f.Name) {
				out = append(out, skips(m, f)...)
			}
			if !excepted(r.Sleep, f.Name) {
				out = append(out, sleeps(m, f, openers)...)
			}
		}
	}
	return out
}

// testers are the names that hold a *testing.T and its kin.
var testers = [...]string{"t", "tb", "b", "f"}

func skips(m *Module, f *File) []Violation {
	var out []Violation
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		use, ok := n.(*ast.SelectorExpr)
		if !ok || use.Sel.Name != "Skip" && use.Sel.Name != "Skipf" && use.Sel.Name != "SkipNow" {
			return true
		}
		if x, ok := use.X.(*ast.Ident); ok && slices.Contains(testers[:], x.Name) {
			out = append(out, Violation{
				Rule: "skip", File: f.Name, Line: m.line(use.Sel.Pos()),
				Problem: "it skips a test",
				Mend:    "install what it needs (scripts/parts.txt) and fail without",
			})
		}
		return true
	})
	return out
}

func sleeps(m *Module, f *File, openers map[string]bool) []Violation {
	var bubbles []*ast.CallExpr
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && opensBubble(f, call, openers) {
			bubbles = append(bubbles, call)
		}
		return true
	})
	var out []Violation
	for _, use := range uses(f.Syntax, "time", []string{"Sleep"}) {
		inBubble := slices.ContainsFunc(bubbles, func(c *ast.CallExpr) bool { return c.Pos() <= use.Pos() && use.Pos() < c.End() })
		if !inBubble {
			out = append(out, Violation{
				Rule: "sleep", File: f.Name, Line: m.line(use.Pos()),
				Problem: "a test sleeps",
				Mend:    "wait for a channel or a condition, or run it in testing/synctest",
			})
		}
	}
	return out
}

// bubbleOpeners returns the functions of a package that call synctest.Test: what
// is passed to them runs, or may run, in a bubble.
func bubbleOpeners(p *Package) map[string]bool {
	openers := map[string]bool{}
	for _, f := range p.Files {
		for _, decl := range f.Syntax.Decls {
			fun, ok := decl.(*ast.FuncDecl)
			if !ok || fun.Recv != nil {
				continue
			}
			ast.Inspect(fun, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && opensBubble(f, call, nil) {
					openers[fun.Name.Name] = true
				}
				return true
			})
		}
	}
	return openers
}

// opensBubble reports whether call is synctest.Test or one of the openers.
func opensBubble(f *File, call *ast.CallExpr, openers map[string]bool) bool {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		return openers[fun.Name]
	case *ast.SelectorExpr:
		bubble := localName(f.Syntax, "testing/synctest")
		x, ok := fun.X.(*ast.Ident)
		return ok && bubble != "" && x.Name == bubble && fun.Sel.Name == "Test"
	}
	return false
}
