package doccheck

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Page is one Markdown file.
type Page struct {
	// Name is the path below the module's root with forward slashes.
	Name string

	anchors map[string]bool
	prose   []line // outside code
	code    []line // fenced blocks, and what stands in backticks
}

// line is a piece of text and the line it stands on.
type line struct {
	number int
	text   string
}

// Pages reads every Markdown file outside testdata folders.
func Pages(root fs.FS) ([]*Page, error) {
	var pages []*Page
	err := walk(root, func(name string) error {
		if path.Ext(name) != ".md" || strings.Contains("/"+name, "/testdata/") {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err == nil {
			pages = append(pages, newPage(name, text))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read pages: %w", err)
	}
	return pages, nil
}

var heading = regexp.MustCompile(`^#{1,6} +(.*?)( +#+)?$`)

func newPage(name string, text []byte) *Page {
	p := &Page{Name: name, anchors: map[string]bool{}}
	fence := ""
	number := 0
	for raw := range bytes.Lines(text) {
		number++
		s := strings.TrimRight(string(raw), "\r\n")
		switch trimmed := strings.TrimSpace(s); {
		case fence != "" && strings.HasPrefix(trimmed, fence):
			fence = ""
		case fence != "":
			p.code = append(p.code, line{number, trimmed})
		case strings.HasPrefix(trimmed, "```"), strings.HasPrefix(trimmed, "~~~"):
			fence = trimmed[:3]
		default:
			if match := heading.FindStringSubmatch(s); match != nil {
				p.addAnchor(slug(match[1]))
			}
			for _, match := range quoted.FindAllStringSubmatch(s, -1) {
				p.code = append(p.code, line{number, match[1]})
			}
			p.prose = append(p.prose, line{number, quoted.ReplaceAllString(s, "``")})
		}
	}
	return p
}

func (p *Page) addAnchor(s string) {
	unique := s
	for i := 1; p.anchors[unique]; i++ {
		unique = fmt.Sprintf("%s-%d", s, i)
	}
	p.anchors[unique] = true
}

var linkText = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)

// slug returns the anchor that forges give a heading.
func slug(heading string) string {
	heading = linkText.ReplaceAllString(heading, "$1")
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			b.WriteRune(r)
		}
	}
	return b.String()
}

var links = [...]*regexp.Regexp{
	regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)`),
	regexp.MustCompile(`^\s*\[[^\]]+\]:\s+<?(\S+?)>?(?:\s|$)`),
}

// CheckLinks reports relative links of pages that lead to no file or no heading.
func CheckLinks(root fs.FS, pages []*Page) []Problem {
	byName := map[string]*Page{}
	for _, p := range pages {
		byName[p.Name] = p
	}
	var problems []Problem
	for _, p := range pages {
		for _, l := range p.prose {
			for _, link := range links {
				for _, match := range link.FindAllStringSubmatch(l.text, -1) {
					if text := checkLink(root, byName, p, match[1]); text != "" {
						problems = append(problems, Problem{p.Name, l.number, text})
					}
				}
			}
		}
	}
	return problems
}

var scheme = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9+.-]*:`)

func checkLink(root fs.FS, pages map[string]*Page, from *Page, target string) string {
	if scheme.MatchString(target) {
		return "" // other sites are not asked
	}
	file, anchor, _ := strings.Cut(target, "#")
	name := from.Name
	if file != "" {
		name = path.Join(path.Dir(from.Name), file)
		if strings.HasPrefix(file, "/") {
			name = path.Clean(file[1:])
		}
		if !fs.ValidPath(name) {
			return fmt.Sprintf("link %s leaves the repository", target)
		}
		if _, err := fs.Stat(root, name); err != nil {
			return fmt.Sprintf("link %s: there is no %s", target, name)
		}
	}
	if to := pages[name]; anchor != "" && to != nil && !to.anchors[anchor] {
		return fmt.Sprintf("link %s: %s has no heading with the anchor #%s", target, name, anchor)
	}
	return ""
}

// CheckIndex reports pages beside the index page that it does not link to.
func CheckIndex(pages []*Page, index string) []Problem {
	linked := map[string]bool{index: true}
	for _, p := range pages {
		if p.Name != index {
			continue
		}
		for _, l := range p.prose {
			for _, match := range links[0].FindAllStringSubmatch(l.text, -1) {
				linked[path.Join(path.Dir(index), match[1])] = true
			}
		}
	}
	var problems []Problem
	for _, p := range pages {
		if path.Dir(p.Name) == path.Dir(index) && !linked[p.Name] {
			problems = append(problems, Problem{p.Name, 0, "the index " + index + " has no link to this page"})
		}
	}
	return problems
}

var (
	makeWord = regexp.MustCompile(`^(?:\$ )?make((?: [a-z][a-z-]*)+)\b`)
	goNamed  = regexp.MustCompile(`\bGo ([0-9]+\.[0-9]+)`)
)

// CheckNames reports make targets and Go versions that pages give and that the
// Makefile and go.mod do not have.
func CheckNames(root fs.FS, pages []*Page) ([]Problem, error) {
	targets, err := makeTargets(root)
	if err != nil {
		return nil, err
	}
	version, err := goVersion(root)
	if err != nil {
		return nil, err
	}
	var problems []Problem
	for _, p := range pages {
		for _, l := range p.code {
			for _, match := range makeWord.FindAllStringSubmatch(l.text, -1) {
				for target := range strings.FieldsSeq(match[1]) {
					if !targets[target] {
						problems = append(problems, Problem{p.Name, l.number, "the Makefile has no target " + target})
					}
				}
			}
		}
		for _, l := range slices.Concat(p.prose, p.code) {
			for _, match := range goNamed.FindAllStringSubmatch(l.text, -1) {
				if match[1] != version {
					problems = append(problems, Problem{p.Name, l.number, fmt.Sprintf("it says Go %s, go.mod says %s; better say neither", match[1], version)})
				}
			}
		}
	}
	return problems, nil
}

// CheckCommands reports command lines in pages whose first word after "keyturn"
// is no command.
func CheckCommands(pages []*Page, exists func(words []string) bool) []Problem {
	var problems []Problem
	for _, p := range pages {
		for _, l := range p.code {
			words := command(strings.TrimPrefix(l.text, "$ "))
			if len(words) > 0 && !exists(words[:1]) {
				problems = append(problems, Problem{p.Name, l.number, "there is no command keyturn " + words[0]})
			}
		}
	}
	return problems
}
