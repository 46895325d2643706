package doccheck_test

import (
	"os"
	"testing"
	"testing/fstest"

	"github.com/keyturn/keyturn/internal/doccheck"
)

func TestSnippets(t *testing.T) {
	compared, problems, err := doccheck.CheckSnippets(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if compared < 5 {
		t.Errorf("only %d blocks name their file; docs/write-a-provider.md has more", compared)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

func TestSnippetsAreChecked(t *testing.T) {
	for name, test := range map[string]struct{ page, want string }{
		"same":      {"x\n<!-- from a.go -->\n```go\nb()\nc()\n```\n", ""},
		"gap":       {"<!-- from a.go -->\n\n```go\na()\n```\n", ""},
		"unmarked":  {"```go\nz()\n```\n", ""},
		"two":       {"<!-- from a.go -->\n```go\na()\n```\n<!-- from a.go -->\n```go\nz()\n```\n", "p.md:5: the block does not stand in a.go"},
		"different": {"<!-- from a.go -->\n```go\nb()\nd()\n```\n", "p.md:1: the block does not stand in a.go"},
		"cut":       {"<!-- from a.go -->\n```go\n()\nc()\n```\n", "p.md:1: the block does not stand in a.go"},
		"no file":   {"<!-- from gone.go -->\n```go\nb()\n```\n", "gone.go, which cannot be read"},
		"no block":  {"<!-- from a.go -->\ntext\n```go\nb()\n```\n", "no fenced block follows"},
		"empty":     {"<!-- from a.go -->\n```go\n```\n", "no fenced block follows"},
		"open":      {"<!-- from a.go -->\n```go\nb()\n", "no fenced block follows"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems, err := doccheck.CheckSnippets(fstest.MapFS{
				"a.go": {Data: []byte("a()\nb()\nc()\n")},
				"p.md": {Data: []byte(test.page)},
			})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, problems, test.want)
		})
	}
}
