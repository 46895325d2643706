package scan_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	seeded "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/scan"
)

// githubToken has the form of a token that the library knows; it is put together
// here, so that no scanner finds it in this file.
func githubToken() string { return "ghp_" + "0A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r"[:36] }

func newScanner(t testing.TB, c scan.Config) *scan.Scanner {
	t.Helper()
	s, err := scan.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func run(t testing.TB, s *scan.Scanner, sources ...scan.Source) scan.Report {
	t.Helper()
	report, err := s.Run(t.Context(), sources...)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func drawKey(t testing.TB) string {
	t.Helper()
	return drawKeyFrom(t, rand.Reader)
}

func drawKeyFrom(t testing.TB, random io.Reader) string {
	t.Helper()
	text, err := keytable.Draw("kt_live", random)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFindsWhereItIs(t *testing.T) {
	s := newScanner(t, scan.Config{})
	apiKey := drawKey(t)
	text := "first line\nuse_" + "x " + apiKey + " here\n\ntoken = \"" + githubToken() + "\"\n"
	report := run(t, s, s.Reader("notes.txt", strings.NewReader(text)))
	want := map[string]string{"keyturn-api-key": "notes.txt:2", "github-pat": "notes.txt:4"}
	for _, f := range report.Findings {
		if place, ok := want[f.Rule]; ok && f.Place.String() == place {
			delete(want, f.Rule)
		}
	}
	if len(want) > 0 {
		t.Errorf("not found: %v; found %+v", want, report.Findings)
	}
	// One character more, or another: no key.
	for _, wrong := range []string{apiKey + "0", apiKey[:len(apiKey)-1] + "-"} {
		report = run(t, s, s.Reader("x", strings.NewReader(wrong)))
		if slices.ContainsFunc(report.Findings, func(f scan.Finding) bool { return f.Rule == "keyturn-api-key" }) {
			t.Errorf("%q was found", wrong)
		}
	}
}

func TestNoFormShowsTheSecret(t *testing.T) {
	s := newScanner(t, scan.Config{FingerprintKey: []byte("0123456789abcdef")})
	token := githubToken()
	report := run(t, s, s.Reader("a", strings.NewReader("x "+token+"\ny "+token)))
	if len(report.Findings) != 2 || report.Findings[0].Fingerprint != report.Findings[1].Fingerprint {
		t.Fatalf("found %+v, want the same token twice", report.Findings)
	}
	var sarifForm bytes.Buffer
	if err := scan.WriteSARIF(&sarifForm, "v1", &report); err != nil {
		t.Fatal(err)
	}
	jsonForm, err := json.Marshal(report.Findings)
	if err != nil {
		t.Fatal(err)
	}
	for form, text := range map[string]string{"SARIF": sarifForm.String(), "JSON": string(jsonForm), "Go": fmt.Sprintf("%+v %#v", report, report)} {
		if strings.Contains(text, token) {
			t.Errorf("%s shows the secret", form)
		}
	}
	other := newScanner(t, scan.Config{})
	if again := run(t, other, other.Reader("a", strings.NewReader(token))); again.Findings[0].Fingerprint == report.Findings[0].Fingerprint {
		t.Error("two keys make one fingerprint")
	}
}

func TestSARIFFollowsTheSchema(t *testing.T) {
	s := newScanner(t, scan.Config{})
	text := "a " + githubToken() + "\nb " + drawKey(t)
	report := run(t, s, s.Reader("dir/with space/é.txt", strings.NewReader(text)), s.Reader("", strings.NewReader(text)))
	report.Findings[0].Managed = &scan.Managed{Key: "prod/db", Version: 3, State: "active", Live: true}
	report.Gaps, report.GapCount = []scan.Gap{{Path: "x", Reason: "too large"}}, 1
	var b bytes.Buffer
	if err := scan.WriteSARIF(&b, "v1", &report); err != nil {
		t.Fatal(err)
	}
	parsed, err := sarif.FromBytes(b.Bytes(), sarif.WithStrictValidation())
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.Validate(); err != nil {
		t.Errorf("%v\n%s", err, b.String())
	}
	if len(parsed.Runs) != 1 || len(parsed.Runs[0].Results) != len(report.Findings) || len(report.Findings) < 4 {
		t.Errorf("%d findings became\n%s", len(report.Findings), b.String())
	}
	parsed.Version = "1.0"
	if parsed.Validate() == nil {
		t.Error("the schema refuses nothing")
	}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func tarOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for name, content := range files {
		f, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestArchives(t *testing.T) {
	s := newScanner(t, scan.Config{})
	text := []byte("x " + githubToken() + "\n")
	nested := zipOf(t, map[string][]byte{"in/b.tar": tarOf(t, map[string][]byte{"../c.txt.gz": gzipped(t, text)})})
	report := run(t, s, s.Reader("a.zip", bytes.NewReader(nested)))
	const want = "a.zip!in/b.tar!c.txt.gz!c.txt"
	if len(report.Findings) != 1 || report.Findings[0].Path != want || report.GapCount != 0 {
		t.Errorf("got %+v, want one finding in %s", report, want)
	}
	tgz := gzipped(t, tarOf(t, map[string][]byte{"x": text}))
	if report = run(t, s, s.Reader("a.tgz", bytes.NewReader(tgz))); len(report.Findings) != 1 || report.Findings[0].Path != "a.tgz!a.tar!x" {
		t.Errorf("got %+v", report.Findings)
	}
}

func TestArchivesAreBounded(t *testing.T) {
	zeros := make([]byte, 8<<20)
	deep := []byte("x " + githubToken())
	for range 6 {
		deep = gzipped(t, deep)
	}
	many := map[string][]byte{}
	for i := range 30 {
		many[fmt.Sprint(i)] = nil
	}
	tests := map[string]struct {
		limits  scan.Limits
		archive []byte
		gap     string
	}{
		"bomb":      {scan.Limits{Unpacked: 1 << 20}, gzipped(t, zeros), "more than is allowed"},
		"zip bomb":  {scan.Limits{Unpacked: 1 << 20}, zipOf(t, map[string][]byte{"a": zeros}), "more than is allowed"},
		"depth":     {scan.Limits{}, deep, "deep"},
		"entries":   {scan.Limits{Entries: 20}, zipOf(t, many), "more than 20 files"},
		"tar":       {scan.Limits{Entries: 20}, tarOf(t, many), "more than 20 files"},
		"size":      {scan.Limits{File: 1000}, zeros[:1<<20], "first 1000 bytes"},
		"truncated": {scan.Limits{}, gzipped(t, deep)[:40], "cannot be read"},
		"no zip":    {scan.Limits{}, []byte("PK\x03\x04 and so on"), "damaged"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScanner(t, scan.Config{Limits: test.limits})
			report := run(t, s, s.Reader("a", bytes.NewReader(test.archive)))
			if report.GapCount == 0 || !slices.ContainsFunc(report.Gaps, func(g scan.Gap) bool { return strings.Contains(g.Reason, test.gap) }) {
				t.Errorf("gaps %v, want one with %q", report.Gaps, test.gap)
			}
			if report.Bytes > 3<<20 {
				t.Errorf("%d bytes were searched", report.Bytes)
			}
		})
	}
}

func TestFindingsAreBounded(t *testing.T) {
	s := newScanner(t, scan.Config{Limits: scan.Limits{Findings: 10}})
	report := run(t, s, s.Reader("a", strings.NewReader(strings.Repeat("x "+githubToken()+"\n", 100_000))))
	if len(report.Findings) != 10 || report.GapCount != 1 || report.Bytes > 4<<20 {
		t.Errorf("%d findings, %d gaps, %d bytes; want 10, 1 and an early end", len(report.Findings), report.GapCount, report.Bytes)
	}
}

// TestPiecesFitTogether: what lies across the border of two pieces is found, once,
// on its line.
func TestPiecesFitTogether(t *testing.T) {
	s := newScanner(t, scan.Config{})
	token := githubToken()
	for _, line := range []string{"some ordinary words of a log\n", ""} {
		for _, before := range []int{1000, 64 << 10, 256<<10 - 20, 264<<10 - 20, 264<<10 + 1, 600 << 10} {
			filler := strings.Repeat(line, before/max(1, len(line)))
			if line == "" {
				filler = strings.Repeat("- ", before/2)
			}
			report := run(t, s, s.Reader("a", strings.NewReader(filler+token+" "+strings.Repeat("\nx", 100<<10))))
			wantLine := strings.Count(filler, "\n") + 1
			if len(report.Findings) != 1 || report.Findings[0].Line != wantLine {
				t.Errorf("after %d bytes of %q: %+v, want line %d", before, line, report.Findings, wantLine)
			}
		}
	}
}

func git(t testing.TB, dir string, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=Ada", "-c", "user.email=ada@example.org"}, args...)...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestGit(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q")
	write(t, filepath.Join(dir, "env"), "a\nb\nTOKEN="+githubToken()+"\n")
	git(t, dir, "add", ".")
	s := newScanner(t, scan.Config{})
	staged := run(t, s, s.Staged(dir))
	if len(staged.Findings) != 1 || staged.Findings[0].Place.String() != "env:3" {
		t.Errorf("staged: %+v", staged.Findings)
	}
	git(t, dir, "commit", "-q", "-m", "add")
	write(t, filepath.Join(dir, "env"), "a\n")
	git(t, dir, "commit", "-q", "-a", "-m", "remove")
	// Programs that a repository names are not run.
	git(t, dir, "config", "core.fsmonitor", "touch ran; false")
	git(t, dir, "config", "diff.external", "touch ran; false")
	if report := run(t, s, s.Staged(dir)); len(report.Findings) != 0 {
		t.Errorf("staged after the commit: %+v", report.Findings)
	}
	history := run(t, s, s.Git(dir, scan.History{}))
	if len(history.Findings) != 1 || history.Findings[0].Author != "Ada" || len(history.Findings[0].Commit) != 40 {
		t.Errorf("history: %+v", history.Findings)
	}
	if late := run(t, s, s.Git(dir, scan.History{Until: "2000-01-01"})); len(late.Findings) != 0 {
		t.Errorf("history until 2000: %+v", late.Findings)
	}
	if report := run(t, s, s.Paths(dir)); len(report.Findings) != 0 {
		t.Errorf("files: %+v", report.Findings)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("a program of the repository was run")
	}
	if _, err := s.Run(t.Context(), s.Git(t.TempDir(), scan.History{})); err == nil || !strings.Contains(err.Error(), "not a git repository") {
		t.Errorf("no repository: %v", err)
	}
	if _, err := s.Run(t.Context(), s.Git(dir, scan.History{Range: "--output=" + filepath.Join(dir, "ran")})); err == nil {
		t.Error("an option passed as a range")
	}
}

// TestGitArchives: archives and other binary files that a history holds are scanned,
// each once, within the bounds of archives.
func TestGitArchives(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q")
	text := []byte("x " + githubToken() + "\n")
	apiKey := drawKey(t)
	write(t, filepath.Join(dir, "old.zip"), string(zipOf(t, map[string][]byte{"in/a.txt": text, "b.tgz": gzipped(t, tarOf(t, map[string][]byte{"c": text}))})))
	write(t, filepath.Join(dir, "core"), "\x00\x01"+apiKey+"\x00")
	write(t, filepath.Join(dir, ".gitattributes"), "*.hidden -diff\n")
	write(t, filepath.Join(dir, "x.hidden"), string(text))
	git(t, dir, "add", ".")
	s := newScanner(t, scan.Config{})
	found := func(report scan.Report) string {
		var list []string
		for _, f := range report.Findings {
			list = append(list, f.Rule+" "+f.Path)
		}
		slices.Sort(list)
		return strings.Join(list, ", ")
	}
	const want = "github-pat old.zip!b.tgz!b.tar!c, github-pat old.zip!in/a.txt, github-pat x.hidden, keyturn-api-key core"
	if staged := run(t, s, s.Staged(dir)); found(staged) != want {
		t.Errorf("staged: %s", found(staged))
	}
	git(t, dir, "commit", "-q", "-m", "add")
	git(t, dir, "mv", "old.zip", "new.zip")
	git(t, dir, "commit", "-q", "-m", "rename")
	git(t, dir, "rm", "-q", "new.zip", "core", "x.hidden")
	git(t, dir, "commit", "-q", "-m", "remove")
	history := run(t, s, s.Git(dir, scan.History{}))
	if got := found(history); len(history.Findings) != 4 || history.GapCount != 0 {
		t.Errorf("history: %s, %v", got, history.Gaps)
	}
	for _, f := range history.Findings {
		if f.Author != "Ada" || len(f.Commit) != 40 {
			t.Errorf("%+v", f)
		}
	}
	write(t, filepath.Join(dir, "bomb.gz"), string(gzipped(t, make([]byte, 8<<20))))
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "bomb")
	small := newScanner(t, scan.Config{Limits: scan.Limits{Unpacked: 1 << 20}})
	if report := run(t, small, small.Git(dir, scan.History{})); report.GapCount == 0 || report.Bytes > 3<<20 || len(report.Findings) != 4 {
		t.Errorf("a bomb: %d bytes, %d findings, %v", report.Bytes, len(report.Findings), report.Gaps)
	}
}

// TestOneFindingForOneSecret: several rules that find a secret in one place are one
// finding, of the rule that knows best.
func TestOneFindingForOneSecret(t *testing.T) {
	s := newScanner(t, scan.Config{})
	value := "hT9x2LmQ7vRb4NcW8sYd" + "3kJp5mZq7wEx"
	// Always the same: one in many holds a word by which a rule leaves it alone.
	apiKey := drawKeyFrom(t, seeded.NewChaCha8([32]byte{1}))
	report := run(t, s, s.Reader("a", strings.NewReader("adafruit_key = \""+value+"\"\ntoken = \""+apiKey+"\"\n")))
	if len(report.Findings) != 2 || report.Findings[0].Rule != "adafruit-api-key" || report.Findings[1].Rule != "keyturn-api-key" {
		t.Fatalf("found %+v", report.Findings)
	}
	if f := report.Findings[1]; fmt.Sprint(f.Also) != "[generic-api-key]" || f.Length != len(apiKey) || f.Column != len("token = \"")+1 {
		t.Errorf("found %+v", f)
	}
	managed := &scan.Managed{Key: "a", Version: 1, Live: true}
	report.Findings[0].Managed, report.Findings[1].Managed, report.Findings[1].Line = managed, managed, report.Findings[0].Line
	if report.MergeManaged(); len(report.Findings) != 1 {
		t.Errorf("one version on one line is found %d times", len(report.Findings))
	}
}

// endless is a log without an end, cut after some bytes; half-way and at the end it
// measures the heap.
type endless struct {
	line      string
	left      int
	heap      []uint64
	measureAt int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= e.measureAt {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		e.heap, e.measureAt = append(e.heap, stats.HeapAlloc), -1
		if e.left > 0 {
			e.measureAt = 0
		}
	}
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := 0
	for n+len(e.line) <= len(p) {
		n += copy(p[n:], e.line)
	}
	if n == 0 {
		n = copy(p, e.line)
	}
	e.left -= n
	return n, nil
}

// TestStreamsTakeNoMemory: what is kept of a stream does not grow with it.
func TestStreamsTakeNoMemory(t *testing.T) {
	s := newScanner(t, scan.Config{Candidates: true})
	const size = 24 << 20
	log := &endless{line: "2026-11-26T10:00:00Z INFO request served path=/orders status=200 key=none\n", left: size, measureAt: size / 2}
	report := run(t, s, s.Reader("", log))
	if report.Bytes < size || len(log.heap) != 2 || log.heap[1] > log.heap[0]+4<<20 {
		t.Errorf("%d bytes scanned, the heap had %v bytes half-way and at the end", report.Bytes, log.heap)
	}
}

func TestEndsWithItsContext(t *testing.T) {
	s := newScanner(t, scan.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Run(ctx, s.Reader("a", strings.NewReader(strings.Repeat("x\n", 1<<20)))); err == nil {
		t.Error("it went on")
	}
}

func TestCandidates(t *testing.T) {
	s := newScanner(t, scan.Config{Candidates: true})
	password := "Zk3vQ9xT7bLm2NcR8sWdY4hJpA6fGuE5iKoV1qXe"
	text := "postgres://orders_a:" + password + "@db/orders\nPASSWORD=" + password + "\nordinary words, a-long-identifier-of-words\n"
	report := run(t, s, s.Reader("a", strings.NewReader(text)))
	found := 0
	for _, c := range report.Candidates {
		if c.Secret.RevealString() == password {
			found++
		}
	}
	if found != 1 || len(report.Candidates) > 2 {
		t.Errorf("%d of %d candidates are the password, want 1 of few", found, len(report.Candidates))
	}
}

// FuzzStream: whatever is scanned, the scan ends, stays in its bounds and finds
// places that exist.
func FuzzStream(f *testing.F) {
	text := []byte("x " + githubToken() + "\n")
	f.Add(text)
	f.Add(gzipped(f, text))
	f.Add(zipOf(f, map[string][]byte{"a": text, "b.gz": gzipped(f, text)}))
	f.Add(tarOf(f, map[string][]byte{"a": text}))
	s := newScanner(f, scan.Config{Candidates: true, Workers: 1, Limits: scan.Limits{Unpacked: 1 << 20, File: 1 << 20, Entries: 50, Findings: 50, Candidates: 50, Gaps: 10}})
	f.Fuzz(func(t *testing.T, data []byte) {
		report, err := s.Run(context.Background(), s.Reader("a", bytes.NewReader(data)))
		if err != nil {
			t.Fatalf("scanning bytes failed: %v", err)
		}
		if len(report.Findings) > 50 || len(report.Candidates) > 50 || len(report.Gaps) > 12 || report.Bytes > 2<<20+int64(2*len(data)) {
			t.Fatalf("out of bounds: %d findings, %d candidates, %d gaps, %d bytes", len(report.Findings), len(report.Candidates), len(report.Gaps), report.Bytes)
		}
		for _, found := range report.Findings {
			if found.Line < 1 || !strings.HasPrefix(found.Path, "a") || found.Length == 0 {
				t.Fatalf("impossible place: %+v", found)
			}
		}
	})
}
