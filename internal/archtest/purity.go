package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// impure are the standard packages that read from or act on the world. An entry
// that ends in "/..." includes what is below.
var impure = [...]string{
	"os/...", "net/...", "log/...", "syscall/...", "runtime/...", "database/...", "plugin", "unsafe",
	"io/ioutil", "math/rand/...", "crypto/rand", "testing/...", "expvar", "flag",
}

// harmless are those below an impure one that compute only.
var harmless = [...]string{"net/netip", "net/url", "net/mail", "net/textproto"}

// clocks are the functions of package time that read the clock or wait for it.
var clocks = [...]string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}

// readings are those that read it.
var readings = clocks[:3]

// checkPurity reports non-test code of pure places that imports IO, logging or
// randomness, or that mentions the clock.
func checkPurity(m *Module, r Rules) []Violation {
	var out []Violation
	for _, p := range m.Packages {
		place := r.place(p.Dir)
		if place == nil || !place.Pure {
			continue
		}
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			for _, i := range f.Imports {
				if isImpure(i.Path) || place.NoContext && i.Path == "context" {
					out = append(out, Violation{
						Rule: "pure", File: f.Name, Line: m.line(i.Pos),
						Problem: fmt.Sprintf("%s is pure and must not import %s", p.Dir, i.Path),
						Mend:    "take what it needs as an argument",
					})
				}
			}
			for _, use := range uses(f.Syntax, "time", clocks[:]) {
				out = append(out, Violation{
					Rule: "pure", File: f.Name, Line: m.line(use.Pos()),
					Problem: fmt.Sprintf("%s is pure and must not use time.%s", p.Dir, use.Sel.Name),
					Mend:    "take the time as an argument",
				})
			}
		}
	}
	return out
}

func isImpure(imported string) bool {
	return matches(impure[:], imported) && !slices.Contains(harmless[:], imported)
}

// checkClock reports calls that read the clock outside the listed folders and
// outside what serves tests.
// Naming time.Now without calling it, as a default for a now function, is free.
func checkClock(m *Module, r Rules) []Violation {
	var out []Violation
	for _, p := range m.Packages {
		place := r.place(p.Dir)
		if excepted(r.Clock, p.Dir) || place != nil && (place.Pure || place.ForTests) {
			continue
		}
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			called := map[ast.Expr]bool{}
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					called[call.Fun] = true
				}
				return true
			})
			for _, use := range uses(f.Syntax, "time", readings) {
				if called[use] {
					out = append(out, Violation{
						Rule: "clock", File: f.Name, Line: m.line(use.Pos()),
						Problem: fmt.Sprintf("time.%s is called directly", use.Sel.Name),
						Mend:    "take now func() time.Time in the Config, with time.Now as its default",
					})
				}
			}
		}
	}
	return out
}

// checkReveal reports code that takes the plaintext out of a secret.Value
// outside the listed folders.
func checkReveal(m *Module, r Rules) []Violation {
	var out []Violation
	for _, p := range m.Packages {
		if excepted(r.Plaintext, p.Dir) {
			continue
		}
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				if use, ok := n.(*ast.SelectorExpr); ok && (use.Sel.Name == "Reveal" || use.Sel.Name == "RevealString") {
					out = append(out, Violation{
						Rule: "reveal", File: f.Name, Line: m.line(use.Sel.Pos()),
						Problem: fmt.Sprintf("%s takes a secret's plaintext", p.Dir),
						Mend:    "pass the secret.Value on; if this is where it must be used, list the folder in internal/archtest/exceptions.go",
					})
				}
				return true
			})
		}
	}
	return out
}

// uses returns where a file mentions one of the functions of a package.
func uses(file *ast.File, imported string, functions []string) []*ast.SelectorExpr {
	name := localName(file, imported)
	if name == "" {
		return nil
	}
	var out []*ast.SelectorExpr
	ast.Inspect(file, func(n ast.Node) bool {
		if use, ok := n.(*ast.SelectorExpr); ok && slices.Contains(functions, use.Sel.Name) {
			if x, ok := use.X.(*ast.Ident); ok && x.Name == name {
				out = append(out, use)
			}
		}
		return true
	})
	return out
}

var majorVersion = regexp.MustCompile(`^v[0-9]+$`)

// localName returns the name under which a file knows an import, "" when it does not.
func localName(file *ast.File, imported string) string {
	for _, spec := range file.Imports {
		if found, err := strconv.Unquote(spec.Path.Value); err != nil || found != imported {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		if base := path.Base(imported); !majorVersion.MatchString(base) {
			return base
		}
		return path.Base(path.Dir(imported))
	}
	return ""
}

// isComment reports whether pos lies in one of the comments.
func isComment(comments []*ast.CommentGroup, pos token.Pos) bool {
	return slices.ContainsFunc(comments, func(g *ast.CommentGroup) bool { return g.Pos() <= pos && pos < g.End() })
}

// isDirective reports whether a comment group holds the directive, for example "//go:embed".
func isDirective(group *ast.CommentGroup, directive string) bool {
	return group != nil && slices.ContainsFunc(group.List, func(c *ast.Comment) bool {
		return c.Text == directive || strings.HasPrefix(c.Text, directive+" ")
	})
}
