package policy_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/keyturn/keyturn/internal/policy"
)

var update = flag.Bool("update", false, "write golden files and the JSON Schema anew")

// TestDesignExample parses and lints the example of the documentation.
func TestDesignExample(t *testing.T) {
	resources := load(t, "testdata/good/design.yaml")
	if len(resources) != 2 || resources[0].String() != "Policy database" || resources[1].String() != "Key prod/orders/db" {
		t.Fatalf("got %v", resources)
	}
	if problems := policy.Lint(resources, lintOptions()); len(problems) > 0 {
		t.Error(problems)
	}
	spec := resources[0].Policy.Spec
	if spec.Rotate.Every != 30*policy.Day || spec.Rotate.Windows[0].Timezone != "Europe/Berlin" || spec.Drain.Quiet.Std() != 5*time.Minute {
		t.Errorf("got %+v", spec)
	}
	if spec.Stages[0].OnEmpty != policy.EmptyHold || spec.Stages[1].OnEmpty != policy.EmptySkip || spec.Judge[0].MinSamples != 1 {
		t.Errorf("defaults are missing: %+v", spec)
	}
	k := resources[1].Key
	if users, ok := k.Spec.Config["users"].([]any); !ok || len(users) != 2 || users[1] != "orders_b" {
		t.Errorf("got config %v", k.Spec.Config)
	}
	at := resources[1].Source.Locate("spec.config.users[1]")
	if at.Line != 22 || at.Col != 110 {
		t.Errorf("users[1] is at %v", at)
	}
	if near := resources[1].Source.Locate("spec.config.users[7].name"); near.Line != 22 || near.Col != 99 {
		t.Errorf("users[7].name is near %v", near)
	}
}

// TestGood round-trips every good file: through YAML, through JSON, and onto its golden canonical form.
func TestGood(t *testing.T) {
	for _, file := range glob(t, "testdata/good/*.yaml") {
		resources := load(t, file)
		if problems := policy.Lint(resources, lintOptions()); len(problems) > 0 {
			t.Errorf("%s:\n%v", file, problems)
		}
		checkRoundTrip(t, resources)
		canonical, err := policy.Marshal(resources...)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, strings.TrimSuffix(file, ".yaml")+".golden", canonical)
	}
}

// TestBad compares all problems of each bad file with a golden file.
func TestBad(t *testing.T) {
	files := append(glob(t, "testdata/bad/*.yaml"), glob(t, "testdata/bad/*.json")...)
	if len(files) < 25 {
		t.Fatalf("only %d bad files", len(files))
	}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		resources, err := policy.Parse(name, src)
		var problems policy.Problems
		if err != nil && (!errors.Is(err, policy.ErrInvalid) || !errors.As(err, &problems)) {
			t.Errorf("%s: the error is not Problems: %v", name, err)
		}
		problems = append(problems, policy.Lint(resources, lintOptions())...)
		if len(problems) == 0 {
			t.Errorf("%s: nothing was reported", name)
		}
		var out strings.Builder
		for _, p := range problems {
			checkProblem(t, p)
			fmt.Fprintf(&out, "%s [%s]\n", p.Error(), p.Code)
		}
		golden(t, file+".golden", []byte(out.String()))
	}
}

// TestProblemsNeverQuoteConfig guards credentials that somebody wrote into a config block.
func TestProblemsNeverQuoteConfig(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, config := range []string{
		"{admin: \"postgres://u:" + secret + "@h\", admin: " + secret + "}",
		"{admin: \"" + secret + "\", x: ~}",
		"{admin: \"" + secret,
		"[" + secret + "]",
		secret,
	} {
		_, err := policy.Parse("k.yaml", []byte("apiVersion: keyturn/v1\nkind: Key\nmetadata: {name: a}\nspec:\n  provider: p\n  config: "+config+"\n"))
		if err == nil {
			t.Errorf("%s was accepted", config)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error quotes the config: %v", err)
		}
	}
}

// TestParseKeepsTheGoodDocuments: one bad document must not hide another one, nor its problems.
func TestParseKeepsTheGoodDocuments(t *testing.T) {
	const good = "apiVersion: keyturn/v1\nkind: Policy\nmetadata: {name: %s}\nspec: {}\n---\n"
	src := fmt.Sprintf(good, "a") + "x: [\n---\n" + fmt.Sprintf(good, "b") + "y: 1\n"
	resources, err := policy.Parse("p.yaml", []byte(src))
	if len(resources) != 2 || resources[0].Name() != "a" || resources[1].Name() != "b" {
		t.Errorf("got %v", resources)
	}
	if err == nil || !strings.Contains(err.Error(), "p.yaml:6:4:") || !strings.Contains(err.Error(), "p.yaml:13:1:") {
		t.Errorf("got %v", err)
	}
}

// TestLimits: each of these is refused, and quickly.
func TestLimits(t *testing.T) {
	const head = "apiVersion: keyturn/v1\nkind: Key\nmetadata: {name: a}\nspec:\n  provider: p\n  config:\n"
	lines := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for name, src := range map[string]string{
		"file":       strings.Repeat("#\n", policy.MaxSource/2+1),
		"document":   head + "    a: \"" + strings.Repeat("x", policy.MaxDocument) + "\"\n",
		"nodes":      head + lines("    a%d: {b: c}\n", 2000),
		"same field": head + "    a: {" + strings.Repeat("a: 1,", 5000) + "}\n",
		"documents":  strings.Repeat("apiVersion: keyturn/v1\nkind: Policy\nmetadata: {name: a}\nspec: {}\n---\n", policy.MaxDocuments+1),
		"brackets":   head + "    a: " + strings.Repeat("[", 30_000),
		"dashes":     head + "    " + strings.Repeat("- ", 30_000),
		"questions":  head + "    " + strings.Repeat("? ", 30_000),
		"indented":   head + lines("%[1]*[1]d:\n", 1000),
	} {
		for _, file := range []string{"a.yaml", "a.json"} {
			begin := time.Now()
			if _, err := policy.Parse(file, []byte(src)); !errors.Is(err, policy.ErrInvalid) {
				t.Errorf("%s: %s: got %v", name, file, err)
			} else if name == "file" && !strings.Contains(err.Error(), "the file has") {
				t.Errorf("%s: %s: got %v", name, file, err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s: %s took %v", name, file, took)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*", "testdata/bad/*"} {
		for _, file := range glob(f, pattern) {
			src, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(src, strings.HasSuffix(file, ".json"))
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, json bool) {
		name := "f.yaml"
		if json {
			name = "f.json"
		}
		resources, err := policy.Parse(name, src)
		if err != nil {
			var problems policy.Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("the error is not Problems: %v", err)
			}
			for _, p := range problems {
				checkProblem(t, p)
			}
		}
		checkRoundTrip(t, resources)
		for _, p := range policy.Lint(resources, lintOptions()) {
			checkProblem(t, p)
		}
	})
}

// checkProblem checks that a problem tells place, kind and message.
func checkProblem(t *testing.T, p policy.Problem) {
	t.Helper()
	if p.File == "" || p.Line < 1 || p.Col < 1 || p.Code == "" || p.Message == "" || p.Severity == 0 {
		t.Errorf("the problem is incomplete: %#v", p)
	}
	if strings.ContainsAny(p.Error(), "\n\r") {
		t.Errorf("the message has several lines: %q", p.Error())
	}
}

// checkRoundTrip checks that what is printed is read back to equal resources.
func checkRoundTrip(t *testing.T, resources []policy.Resource) {
	t.Helper()
	if len(resources) == 0 {
		return
	}
	text, err := policy.Marshal(resources...)
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string][]byte{"canonical.yaml": text}
	var stream bytes.Buffer
	for _, r := range resources {
		one, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		stream.Write(append(one, '\n'))
	}
	forms["canonical.json"] = stream.Bytes()
	for name, src := range forms {
		if len(src) > policy.MaxDocument {
			continue // printing may lengthen a document
		}
		back, err := policy.Parse(name, src)
		if err != nil {
			t.Fatalf("what was printed is refused: %v\n%s", err, src)
		}
		if !reflect.DeepEqual(bare(back), bare(resources)) {
			t.Fatalf("%s changed the resources:\n%+v\n%+v\n%s", name, bare(back), bare(resources), src)
		}
	}
}

// bare returns the resources without their sources.
func bare(resources []policy.Resource) []any {
	var out []any
	for _, r := range resources {
		switch r.Kind() {
		case policy.KindPolicy:
			out = append(out, *r.Policy)
		case policy.KindFreeze:
			out = append(out, *r.Freeze)
		case policy.KindRule:
			out = append(out, *r.Rule)
		case policy.KindKey:
			out = append(out, *r.Key)
		}
	}
	return out
}

func load(t testing.TB, file string) []policy.Resource {
	t.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	resources, err := policy.Parse(filepath.Base(file), src)
	if err != nil {
		t.Fatal(err)
	}
	return resources
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 && !strings.HasSuffix(pattern, ".golden") {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return files
}

// golden compares with a file, or writes it with -update.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Errorf("%v; run go test -update", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

// lintOptions has two providers; the strategy of a config decides what its check says.
func lintOptions() policy.LintOptions {
	return policy.LintOptions{
		Providers: []string{"postgres", "redis"},
		Now:       time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC),
		CheckConfig: func(_ string, config map[string]any) (policy.Topology, []policy.ConfigProblem) {
			switch config["strategy"] {
			case "single":
				return policy.Topology{}, []policy.ConfigProblem{
					{Path: "users[1]", Problem: "not a role name", Hint: "use lower-case letters"},
					{Path: "admin.port", Problem: "the port is missing"},
					{Problem: "no replicas are listed"},
				}
			case "gap":
				return policy.Topology{Gap: true}, nil
			}
			return policy.Topology{Endpoints: []policy.Endpoint{{Name: "primary"}}, Capacity: 2}, nil
		},
	}
}

func TestLimitsOfJSON(t *testing.T) {
	const head = `{"apiVersion": "keyturn/v1", "kind": "Key", "metadata": {"name": "a"}, "spec": {"provider": "p", "config": {"a": `
	for want, value := range map[string]string{
		"values and keys": "[" + strings.Repeat("1,", policy.MaxNodes) + "1]",
		"nested more":     strings.Repeat("[", 40) + strings.Repeat("]", 40),
	} {
		if _, err := policy.Parse("a.json", []byte(head+value+"}}}")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}
