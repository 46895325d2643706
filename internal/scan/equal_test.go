package scan

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/zricethezav/gitleaks/v8/detect"
)

// oracle is the library's own search.
type oracle struct{ detector *detect.Detector }

func newOracle(t testing.TB) oracle {
	t.Helper()
	detector, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		t.Fatal(err)
	}
	return oracle{detector}
}

// search returns what the library finds, as RULE@OFFSET: MATCH: SECRET. It tells
// columns from the end of the line before, but for the first line.
func (o oracle) search(path, text string) []string {
	var found []string
	for _, f := range o.detector.Detect(detect.Fragment{Raw: text, FilePath: path}) { //nolint:staticcheck // Detect takes no other
		if strings.HasPrefix(f.Match, "file detected: ") {
			continue // a rule for names of files
		}
		at := f.StartColumn - 1
		for line, from := f.StartLine, 0; line > 0; line-- {
			from += strings.IndexByte(text[from:], '\n') + 1
			at = from - 1 + f.StartColumn - 1
		}
		for text[at] == '\n' {
			at++ // it is of the match, but not of what is told of it
		}
		found = append(found, fmt.Sprintf("%s@%d: %q: %q", f.RuleID, at, f.Match, f.Secret))
	}
	slices.Sort(found)
	return found
}

func (r *rules) searched(path, text string, s *scratch) []string {
	var found []string
	for _, m := range r.search(path, text, s) {
		found = append(found, fmt.Sprintf("%s@%d: %q: %q", m.rule.RuleID, m.at.from, text[m.at.from:m.at.to], m.secret))
		if text[m.secretAt.from:m.secretAt.to] != m.secret {
			found = append(found, "the secret is elsewhere")
		}
	}
	slices.Sort(found)
	return found
}

// comparison compares texts.
type comparison struct {
	rules   *rules
	scratch *scratch
	oracle  oracle
	found   int
}

func newComparison(t testing.TB) *comparison {
	t.Helper()
	r, err := loadRules()
	if err != nil {
		t.Fatal(err)
	}
	return &comparison{rules: r, scratch: r.newScratch(), oracle: newOracle(t)}
}

func (c *comparison) of(t testing.TB, path, text string) bool {
	t.Helper()
	// For the library a last line without an end begins with the text.
	if strings.Contains(text, "\n") && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	want, got := c.oracle.search(path, text), c.rules.searched(path, text, c.scratch)
	c.found += len(want)
	if !slices.Equal(want, got) {
		t.Errorf("in %q of %q\nthe library finds %q\nthe scanner     %q", text[:min(len(text), 4000)], path, want, got)
		return false
	}
	return true
}

// paths are such as rules look for.
var paths = []string{"", "a.txt", "b.php", "c.tf", "d.yaml", "nuget.config", "recipe.bb"}

// vectors are the texts by which the library tests its rules, and all else that its
// tests say.
func vectors(t testing.TB) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/zricethezav/gitleaks/v8").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "cmd/generate/config/rules/*.go"))
	if err != nil || len(files) < 100 {
		t.Fatal(err, files)
	}
	var texts []string
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				if text, err := strconv.Unquote(literal.Value); err == nil && len(text) > 8 {
					texts = append(texts, text)
				}
			}
			return true
		})
	}
	return texts
}

// generate draws a text that a pattern matches, if its assertions allow it.
func generate(re *syntax.Regexp, r *rand.Rand) string {
	var b strings.Builder
	repeat := func(least, most int) {
		if most < 0 {
			most = least + 5
		}
		n := []int{least, most, least + r.IntN(most-least+1)}[r.IntN(3)]
		for range n {
			b.WriteString(generate(re.Sub[0], r))
		}
	}
	switch re.Op {
	case syntax.OpLiteral:
		for _, c := range re.Rune {
			if re.Flags&syntax.FoldCase != 0 && r.IntN(2) == 0 {
				c = []rune(strings.ToLower(string(c)))[0]
			}
			b.WriteRune(c)
		}
	case syntax.OpCharClass:
		c := utf8.MaxRune
		for try := 0; try < 20 && c >= utf8.RuneSelf; try++ { // folded letters, seldom
			i := 2 * r.IntN(len(re.Rune)/2)
			c = re.Rune[i] + r.Int32N(min(re.Rune[i+1]-re.Rune[i]+1, 100))
			if r.IntN(500) == 0 {
				break
			}
		}
		b.WriteRune(c)
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte(byte(' ' + r.IntN(95)))
	case syntax.OpCapture:
		return generate(re.Sub[0], r)
	case syntax.OpStar:
		repeat(0, -1)
	case syntax.OpPlus:
		repeat(1, -1)
	case syntax.OpQuest:
		repeat(0, 1)
	case syntax.OpRepeat:
		repeat(re.Min, re.Max)
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			b.WriteString(generate(sub, r))
		}
	case syntax.OpAlternate:
		return generate(re.Sub[r.IntN(len(re.Sub))], r)
	case syntax.OpNoMatch, syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
	}
	return b.String()
}

// TestFindsWhatTheLibraryFindsInItsVectors: alone, and many in one text.
func TestFindsWhatTheLibraryFindsInItsVectors(t *testing.T) {
	c := newComparison(t)
	texts := vectors(t)
	for i, text := range texts {
		if strings.ContainsAny(text, "0123456789") {
			c.of(t, paths[i%len(paths)], text)
		}
	}
	alone := c.found
	r := rand.New(rand.NewPCG(1, 2))
	r.Shuffle(len(texts), func(i, j int) { texts[i], texts[j] = texts[j], texts[i] })
	for i := 0; i < len(texts); i += 100 {
		between := []string{"\n", " ", "\n", ""}[i/100%4]
		c.of(t, paths[i/100%len(paths)], strings.Join(texts[i:min(i+100, len(texts))], between))
	}
	// In a text of several lanes.
	long := strings.Join(texts[:len(texts)/5], "\n")
	if len(long) < 2*lanes*lane {
		t.Fatalf("%d bytes are too few", len(long))
	}
	c.of(t, paths[1], long)
	if alone < 200 || c.found < 3*alone/2 {
		t.Errorf("the library finds %d, and %d in all", alone, c.found)
	}
	t.Logf("%d texts, %d findings alone, %d in all", len(texts), alone, c.found)
}

// TestFindsWhatTheLibraryFindsByEachRule: texts that each pattern matches, or hardly
// does not, in the middle of others.
func TestFindsWhatTheLibraryFindsByEachRule(t *testing.T) {
	c := newComparison(t)
	r := rand.New(rand.NewPCG(3, 4))
	between := []string{" ", "\n", "", ";", "é", "\u212a", "key", "\xff", "=", "x := ", "\"", "\n\n"}
	var last []string
	for i := range c.rules.list {
		one := &c.rules.list[i]
		parsed, err := syntax.Parse(one.Regex.String(), syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 6 {
			text := generate(parsed, r)
			switch n {
			case 3: // a byte less
				at := r.IntN(len(text))
				text = text[:at] + text[at+1:]
			case 4: // another byte
				at := r.IntN(len(text))
				text = text[:at] + string(rune(' '+r.IntN(95))) + text[at+1:]
			case 5: // twice, sharing a part
				text += text[r.IntN(len(text)):]
			}
			path := paths[1]
			for _, other := range paths[1:] {
				if one.Path != nil && one.Path.MatchString(other) {
					path = other
				}
			}
			c.of(t, path, text)
			last = append(last, text)
			if len(last) == 8 {
				var b strings.Builder
				for _, text := range last {
					b.WriteString(between[r.IntN(len(between))] + text + between[r.IntN(len(between))])
				}
				c.of(t, path, b.String())
				last = last[:0]
			}
		}
	}
	t.Logf("%d findings", c.found)
}

// TestHardTextsTakeNoLonger: texts with a keyword everywhere, or a secret, are no
// harder than others by more than the library's patterns are.
func TestHardTextsTakeNoLonger(t *testing.T) {
	r, err := loadRules()
	if err != nil {
		t.Fatal(err)
	}
	s := r.newScratch()
	secret := `password="hT9x2LmQ7vRb4NcW8sYd1" `
	for _, part := range []string{
		"key=", "curl ", "curl -u ", "curl\n -u ", ".ey", "a.eyaaaaaaaaaaaaaaaaaaaaaa", "key \u017f=", "-----begin private key-----", "secret data: ", secret,
	} {
		const size = 16 << 10
		took := func(n int) time.Duration {
			text := strings.Repeat(part, n/len(part))
			best := time.Hour
			for range 2 {
				begun := time.Now()
				if found := r.search("a.txt", text, s); part == secret && len(found) < n/len(part)/2 {
					t.Fatalf("%d found", len(found))
				}
				best = min(best, time.Since(begun))
			}
			return best
		}
		one, eight := took(size), took(8*size)
		if eight > 30*one+50*time.Millisecond {
			t.Errorf("%q: %v for %d bytes, %v for eight times as many", part, one, size, eight)
		}
	}
}

// FuzzFindsWhatTheLibraryFinds: whatever the text is, both find the same.
func FuzzFindsWhatTheLibraryFinds(f *testing.F) {
	c := newComparison(f)
	texts := vectors(f)
	for i := 0; i < len(texts); i += 50 {
		f.Add(texts[i], uint8(i))
	}
	f.Fuzz(func(t *testing.T, text string, path uint8) {
		if !strings.Contains(text, allowMark) {
			c.of(t, paths[int(path)%len(paths)], text)
		}
	})
}
