package configfile_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/configfile"
)

var errConfig = errors.New("invalid configuration of a test")

type block struct {
	Age time.Duration `yaml:"age"`
}

type config struct {
	Name string           `yaml:"name"`
	Wait time.Duration    `yaml:"wait"`
	Some []string         `yaml:"some"`
	More map[string]block `yaml:"more"`
}

func (c *config) check() []configfile.Problem {
	p := configfile.Problems{}
	configfile.Fill(&c.Name, "nobody")
	for i, one := range c.Some {
		if one == "bad" {
			p.Add(fmt.Sprintf("some[%d]", i), "%q is bad", one)
		}
	}
	if c.Wait < 0 {
		p.Add("wait", "%v is negative", c.Wait)
	}
	return p.List()
}

func decode(source string) (config, error) {
	var c config
	err := configfile.Form{Err: errConfig, Page: "docs/page.md"}.Decode("a.yaml", []byte(source), &c, c.check)
	return c, err
}

// TestProblemsHaveTheirLines: whatever is wrong is told with its line, all at once.
func TestProblemsHaveTheirLines(t *testing.T) {
	for source, want := range map[string][]string{
		"name: x\nwaits: 1s\n":                     {`a.yaml:2:1: unknown field "waits"; see docs/page.md for all fields`},
		"name: x\nname: y\n":                       {"a.yaml:2:1: "},
		"some: [a,\n  bad]\nwait: -1s\n":           {`a.yaml:2: some[1]: "bad" is bad`, "a.yaml:3: wait: -1s is negative"},
		"wait: 1s\nmore:\n  a:\n    age: soon\n":   {`a.yaml:4: more.a.age: "soon" is not a duration`},
		"wait: later\nmore: {a: {age: \"tea\"}}\n": {`a.yaml:1: wait: "later" is not`, `a.yaml:2: more.a.age: "tea" is not`},
		"name: {\n": {"a.yaml:1:"},
	} {
		_, err := decode(source)
		for _, text := range want {
			if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), text) {
				t.Errorf("%q: %v, want %s", source, err, text)
			}
		}
	}
	if c, err := decode(""); err != nil || c.Name != "nobody" {
		t.Errorf("an empty file: %+v, %v", c, err)
	}
}

// TestRead: a file that is missing or too large is an error that says so.
func TestRead(t *testing.T) {
	form := configfile.Form{Err: errConfig, Page: "docs/page.md"}
	path := filepath.Join(t.TempDir(), "a.yaml")
	if _, err := form.Read(path); !errors.Is(err, errConfig) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "docs/page.md") {
		t.Errorf("missing: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := form.Read(path); !errors.Is(err, errConfig) {
		t.Errorf("too large: %v", err)
	}
}

// FuzzDecode: nothing makes it panic, and every error is one of the configuration, with
// the file's name.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{"", "name: x\nwait: 5m\n", "wait: soon", "some: [bad]", "more: {a: {age: 1}}", "&a [*a]", "{", "- a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		if _, err := decode(source); err != nil && (!errors.Is(err, errConfig) || !strings.Contains(err.Error(), "a.yaml")) {
			t.Errorf("%q: %v", source, err)
		}
	})
}
