package scan

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/keyturn/keyturn/secret"
)

// Limits bound a scan. Zero fields take the default.
type Limits struct {
	// File is the largest file, and entry of an archive, in bytes. Default: 256 MiB.
	File int64
	// Unpacked is how much one archive may hold, with what is packed in it, in bytes.
	// Default: 1 GiB.
	Unpacked int64
	// Depth is how deep archives may lie in one another. Default: 4.
	Depth int
	// Entries is how many files one archive may hold. Default: 100,000.
	Entries int
	// Findings is how many are reported. Default: 10,000.
	Findings int
	// Candidates is how many are kept. Default: 20,000.
	Candidates int
	// Gaps is how many are told one by one; the others are counted. Default: 1,000.
	Gaps int
}

func (l *Limits) fill() {
	l.File = cmp.Or(l.File, 256<<20)
	l.Unpacked = cmp.Or(l.Unpacked, 1<<30)
	l.Depth = cmp.Or(l.Depth, 4)
	l.Entries = cmp.Or(l.Entries, 100_000)
	l.Findings = cmp.Or(l.Findings, 10_000)
	l.Candidates = cmp.Or(l.Candidates, 20_000)
	l.Gaps = cmp.Or(l.Gaps, 1_000)
}

// Config says how to scan.
type Config struct {
	Limits Limits
	// FingerprintKey makes fingerprints comparable between runs. Default: one that is
	// drawn for the scanner, so that they compare within a run only.
	FingerprintKey []byte
	// Candidates: collect every text that could be a secret as Keyturn mints them,
	// beside the findings.
	Candidates bool
	// Workers is how many pieces of text are searched at once. Default: GOMAXPROCS.
	Workers int
}

// Place is where something was found.
type Place struct {
	// Path is that of a file; what lies in an archive follows a "!". It is empty for
	// standard input.
	Path string `json:"path"`
	// Line and Column count from 1.
	Line   int `json:"line"`
	Column int `json:"column,omitempty"`
	// Commit, Author and Date say which commit of a git repository brought it in.
	Commit string `json:"commit,omitempty"`
	Author string `json:"author,omitempty"`
	Date   string `json:"date,omitempty"`
}

// String is PATH:LINE, with the commit before it.
func (p Place) String() string {
	s := fmt.Sprintf("%s:%d", cmp.Or(p.Path, "(standard input)"), p.Line)
	if p.Commit != "" {
		s = p.Commit[:min(12, len(p.Commit))] + " " + s
	}
	return s
}

// Finding is a secret that was found.
type Finding struct {
	// Rule is the rule's name, Description what it finds.
	Rule        string `json:"rule"`
	Description string `json:"description"`
	// Also are the other rules that found the same secret in the same place.
	Also []string `json:"also,omitempty"`
	Place
	// Length is that of the secret, in bytes.
	Length int `json:"length"`
	// Fingerprint is the first half of the secret's HMAC-SHA-256, in hexadecimal.
	Fingerprint string `json:"fingerprint"`
	// Managed is the version that the secret belongs to, if a server said so.
	Managed *Managed `json:"managed,omitempty"`
	// Secret is what was found.
	Secret secret.Value `json:"-"`
}

// Managed is a version of a key that a server manages.
type Managed struct {
	Key     string `json:"key"`
	Version uint64 `json:"version"`
	State   string `json:"state"`
	// Live: something may accept it.
	Live  bool   `json:"live"`
	Owner string `json:"owner,omitempty"`
	// Action is what its policy had done, Rotation what replaces it.
	Action   string `json:"action,omitempty"`
	Rotation string `json:"rotation,omitempty"`
}

// Candidate is a text that could be a secret of Keyturn's.
type Candidate struct {
	Place
	Fingerprint string
	Secret      secret.Value
}

// Gap is something that was not scanned.
type Gap struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// Report is what came of a scan. Lists are in the order of places.
type Report struct {
	Findings   []Finding
	Candidates []Candidate
	Gaps       []Gap
	// GapCount counts those too that Gaps has no room for.
	GapCount int
	Bytes    int64
	Files    int
}

// Scanner searches by compiled rules. Its methods may be called concurrently.
type Scanner struct {
	config Config
	rules  *rules
}

// New compiles the rules.
func New(c Config) (*Scanner, error) {
	c.Limits.fill()
	c.Workers = cmp.Or(c.Workers, runtime.GOMAXPROCS(0))
	if c.FingerprintKey == nil {
		c.FingerprintKey = make([]byte, sha256.Size)
		_, _ = rand.Read(c.FingerprintKey) // it never fails
	}
	rules, err := loadRules()
	if err != nil {
		return nil, fmt.Errorf("the rules: %w", err)
	}
	return &Scanner{config: c, rules: rules}, nil
}

// Rules returns the names and descriptions of all rules.
func (s *Scanner) Rules() map[string]string { return maps.Clone(s.rules.names) }

// Source yields text. It returns an error only when the scan cannot go on.
type Source func(ctx context.Context, out *Sink) error

// errEnough ends a scan that has reached a bound.
var errEnough = errors.New("enough")

// Run scans what the sources yield, one after the other. It fails when ctx ends or
// a source does.
func (s *Scanner) Run(ctx context.Context, sources ...Source) (Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &Sink{scanner: s, pieces: make(chan piece), cancel: cancel, seen: map[finger]int{}, candidates: map[string]bool{}}
	var working sync.WaitGroup
	for range s.config.Workers {
		working.Go(func() {
			scratch := s.rules.newScratch()
			for p := range out.pieces {
				if ctx.Err() == nil {
					out.search(&p, scratch)
				}
			}
		})
	}
	var err error
	for _, source := range sources {
		if err = source(ctx, out); err != nil {
			break
		}
	}
	close(out.pieces)
	working.Wait()
	if errors.Is(context.Cause(ctx), errEnough) {
		err = nil
	}
	out.report.Sort()
	return out.report, err
}

// finger tells findings apart: by the secret and its place.
type finger struct {
	fingerprint, path, commit string
	line, column              int
}

// Sink takes what sources yield.
type Sink struct {
	scanner *Scanner
	pieces  chan piece
	cancel  context.CancelCauseFunc

	mu         sync.Mutex
	report     Report
	seen       map[finger]int // their numbers
	candidates map[string]bool
	full       bool
}

// piece is a part of a text.
type piece struct {
	place  Place
	text   string
	binary bool
}

func (o *Sink) put(ctx context.Context, p piece) error {
	select {
	case o.pieces <- p:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gap notes what was not scanned.
func (o *Sink) gap(path, format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.report.GapCount++
	if len(o.report.Gaps) < o.scanner.config.Limits.Gaps {
		o.report.Gaps = append(o.report.Gaps, Gap{path, fmt.Sprintf(format, args...)})
	}
}

func (o *Sink) file() {
	o.mu.Lock()
	o.report.Files++
	o.mu.Unlock()
}

// search runs all rules over a piece.
func (o *Sink) search(p *piece, scratch *scratch) {
	s := o.scanner
	if !p.binary {
		found := s.rules.search(p.place.Path, p.text, scratch)
		for i := range found {
			m := &found[i]
			o.found(m.rule.RuleID, m.rule.Description, p.at(m.secretAt.from), m.secret)
		}
	}
	for start, end := range apiKeys(p.text) {
		o.found(ruleKeyturn, describeKeyturn, p.at(start), p.text[start:end])
	}
	if s.config.Candidates {
		for start, end := range candidates(p.text) {
			o.candidate(p, start, p.text[start:end])
		}
	}
	o.mu.Lock()
	o.report.Bytes += int64(len(p.text))
	o.mu.Unlock()
}

// at is the place of an offset.
func (p *piece) at(offset int) Place {
	place := p.place
	before := p.text[:offset]
	if last := strings.LastIndexByte(before, '\n'); last >= 0 {
		place.Line += strings.Count(before, "\n")
		place.Column = offset - last
	} else {
		place.Column += offset + 1
	}
	return place
}

func (o *Sink) fingerprint(text string) string {
	mac := hmac.New(sha256.New, o.scanner.config.FingerprintKey)
	_, _ = mac.Write([]byte(text)) // a hash never fails
	return hex.EncodeToString(mac.Sum(nil)[:sha256.Size/2])
}

func (o *Sink) found(rule, description string, place Place, text string) {
	f := Finding{Rule: rule, Description: description, Place: place, Length: len(text), Fingerprint: o.fingerprint(text), Secret: secret.NewString(text)}
	id := finger{f.Fingerprint, place.Path, place.Commit, place.Line, place.Column}
	o.mu.Lock()
	defer o.mu.Unlock()
	if at, seen := o.seen[id]; seen {
		o.report.Findings[at].merge(&f)
		return
	}
	if len(o.report.Findings) == o.scanner.config.Limits.Findings {
		if !o.full {
			o.full = true
			o.report.GapCount++
			o.report.Gaps = append(o.report.Gaps, Gap{place.Path, fmt.Sprintf("the scan ended after %d findings", len(o.report.Findings))})
			o.cancel(errEnough)
		}
		return
	}
	o.seen[id] = len(o.report.Findings)
	o.report.Findings = append(o.report.Findings, f)
}

func (o *Sink) candidate(p *piece, offset int, text string) {
	o.mu.Lock()
	known := o.candidates[text]
	room := len(o.candidates) < o.scanner.config.Limits.Candidates
	if !known && room {
		text = strings.Clone(text)
		o.candidates[text] = true
	}
	o.mu.Unlock()
	if known {
		return
	}
	if !room {
		o.mu.Lock()
		defer o.mu.Unlock()
		if !o.full {
			o.full = true
			o.report.GapCount++
			o.report.Gaps = append(o.report.Gaps, Gap{p.place.Path, fmt.Sprintf("more than %d texts could be secrets of this server; the others are not compared: scan smaller parts", len(o.candidates))})
		}
		return
	}
	c := Candidate{Place: p.at(offset), Fingerprint: o.fingerprint(text), Secret: secret.NewString(text)}
	o.mu.Lock()
	o.report.Candidates = append(o.report.Candidates, c)
	o.mu.Unlock()
}

// merge adds what another rule found in the same place. The rule that knows best is
// the finding's: Keyturn's own, and a generic one last.
func (f *Finding) merge(other *Finding) {
	if f.Rule == other.Rule || slices.Contains(f.Also, other.Rule) {
		return
	}
	rank := func(rule string) int {
		switch {
		case rule == ruleKeyturn:
			return 0
		case isGeneric(rule):
			return 2
		}
		return 1
	}
	also := other.Rule
	if cmp.Or(cmp.Compare(rank(other.Rule), rank(f.Rule)), strings.Compare(other.Rule, f.Rule)) < 0 {
		also, f.Rule, f.Description = f.Rule, other.Rule, other.Description
	}
	f.Also = append(f.Also, also)
	slices.Sort(f.Also)
}

// MergeManaged leaves one of the findings of a managed version on a line: rules may
// take more or less of it for the secret.
func (r *Report) MergeManaged() {
	type id struct {
		path, commit, key string
		line              int
		version           uint64
	}
	seen := map[id]bool{}
	r.Findings = slices.DeleteFunc(r.Findings, func(f Finding) bool {
		if f.Managed == nil {
			return false
		}
		one := id{f.Path, f.Commit, f.Managed.Key, f.Line, f.Managed.Version}
		again := seen[one]
		seen[one] = true
		return again
	})
}

// Sort puts lists into the order of places.
func (r *Report) Sort() {
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(comparePlaces(&a.Place, &b.Place), strings.Compare(a.Rule, b.Rule))
	})
	slices.SortStableFunc(r.Candidates, func(a, b Candidate) int { return comparePlaces(&a.Place, &b.Place) })
	slices.SortStableFunc(r.Gaps, func(a, b Gap) int { return strings.Compare(a.Path, b.Path) })
}

func comparePlaces(a, b *Place) int {
	return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), strings.Compare(a.Commit, b.Commit))
}
