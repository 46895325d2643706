package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
)

// maxBundleLine bounds a line of a bundle, in bytes; see audit-bundle.md.
const maxBundleLine = 40 << 10

// verification checks one log.
type verification struct {
	a *app
	// given are the keys of the command line.
	given []string
	trust trust
}

func (a *app) newVerification(keys []string) (*verification, error) {
	if _, err := parseVerifiers(keys); err != nil {
		return nil, usage("it looks like NAME+HASH+KEY, as the server prints it", "--key: %w", err)
	}
	known, err := a.readTrust()
	return &verification{a: a, given: keys, trust: known}, err
}

func parseVerifiers(keys []string) ([]note.Verifier, error) {
	var list []note.Verifier
	for _, k := range keys {
		verifier, err := audit.ParseVerifier(k)
		if err != nil {
			return nil, err
		}
		list = append(list, verifier)
	}
	return list, nil
}

// verified is the outcome in JSON.
type verified struct {
	Verified    bool         `json:"verified"`
	Log         string       `json:"log"`
	Entries     uint64       `json:"entries"`
	Proven      uint64       `json:"proven"`
	Checkpoints int          `json:"checkpoints"`
	First       *time.Time   `json:"first"`
	Last        *time.Time   `json:"last"`
	ClockSteps  uint64       `json:"clockSteps"`
	Root        string       `json:"root"`
	Keys        []string     `json:"keys"`
	Trust       string       `json:"trust"`
	Fault       *audit.Fault `json:"fault,omitempty"`
}

// The values of verified.Trust.
const (
	trustGiven    = "given"
	trustStored   = "stored"
	trustFirstUse = "first-use"
)

// online verifies the log of the server.
func (v *verification) online(ctx context.Context) error {
	api, err := v.a.control()
	if err != nil {
		return err
	}
	bundle := exported(ctx, api)
	defer bundle.Close()
	read := newBundleReader(bundle)
	header := read.header()
	log := trustedLog{Server: v.a.connection().address, Keys: header.Keys}
	how := trustFirstUse
	if known, ok := v.trust.server(log.Server, header); ok {
		how, log.Keys, log.Checkpoint = trustStored, known.Keys, known.Checkpoint
	}
	if len(v.given) > 0 {
		how, log.Keys, log.Checkpoint = trustGiven, v.given, v.keptFor(v.given, log)
	}
	report, err := v.check(read, how, log.Keys, log.Checkpoint)
	if err != nil {
		return v.failed(report, how, err)
	}
	log.Log, log.Checkpoint = report.Origin, read.checkpoint()
	return v.passed(report, how, log)
}

// keptFor returns the kept checkpoint of a log if it is by one of the keys: with
// other keys it is another log.
func (v *verification) keptFor(keys []string, log trustedLog) string {
	if verifiers, err := parseVerifiers(keys); err == nil {
		if _, err := audit.OpenCheckpoint([]byte(log.Checkpoint), verifiers...); err == nil {
			return log.Checkpoint
		}
	}
	return ""
}

// file verifies a bundle.
func (v *verification) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	read := newBundleReader(f)
	header := read.header()
	log := trustedLog{Keys: header.Keys}
	how := trustFirstUse
	if keys := v.trust.named(header.Origin); len(keys) > 0 {
		how, log.Keys = trustStored, keys
	}
	if len(v.given) > 0 {
		how, log.Keys = trustGiven, v.given
	}
	report, err := v.check(read, how, log.Keys, "")
	if err != nil {
		return v.failed(report, how, err)
	}
	log.Log, log.Checkpoint = report.Origin, read.checkpoint()
	// A bundle may be older than what was seen of the log since, but where both
	// speak of the same entries they must agree.
	known, _ := v.trust.same(header)
	if kept := v.keptFor(log.Keys, known); kept != "" {
		verifiers, err := parseVerifiers(log.Keys)
		if err != nil {
			return err
		}
		if seen, err := audit.OpenCheckpoint([]byte(kept), verifiers...); err != nil {
			return err
		} else if seen.Size > report.Proven {
			v.a.note("this bundle is older than what was seen of the log before: it has %d of %d entries", report.Proven, seen.Size)
			log.Checkpoint = kept
		} else if report, err = v.again(f, how, log.Keys, kept); err != nil {
			return v.failed(report, how, err)
		}
	}
	return v.passed(report, how, log)
}

// again verifies a file once more, against a kept checkpoint.
func (v *verification) again(f *os.File, how string, keys []string, kept string) (audit.Report, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return audit.Report{}, err
	}
	return v.check(f, how, keys, kept)
}

// check verifies a bundle; at the first use by the keys in it.
func (v *verification) check(r io.Reader, how string, keys []string, kept string) (audit.Report, error) {
	if how == trustFirstUse {
		return audit.VerifyBundle(r, audit.Options{})
	}
	verifiers, err := parseVerifiers(keys)
	if err != nil {
		return audit.Report{}, err
	}
	options := audit.Options{Verifiers: verifiers}
	if kept != "" {
		options.Kept = [][]byte{[]byte(kept)}
	}
	return audit.VerifyBundle(r, options)
}

// passed remembers what is trusted from now on, and prints the outcome.
func (v *verification) passed(report audit.Report, how string, log trustedLog) error {
	if err := v.trust.remember(log); err != nil {
		return fmt.Errorf("the log is in order, but that cannot be remembered: %w", err)
	}
	result := outcomeOf(report, how)
	result.Verified = true
	return v.a.result(result, func(w io.Writer) {
		fmt.Fprintf(w, "verified: %s of log %s, %s\n", entries(report.Entries), clean(report.Origin), plural(report.Checkpoints, "signed checkpoint"))
		pairs := []string{"root", result.Root}
		if result.First != nil {
			pairs = append(pairs, "from", stampTime(report.First), "to", stampTime(report.Last))
		}
		fields(w, append(pairs, "trust", trustText(how, v.trust.path))...)
	})
}

func entries(n uint64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

func trustText(how, path string) string {
	switch how {
	case trustGiven:
		return "the keys given with --key"
	case trustStored:
		return "the keys trusted before, in " + path
	}
	return "first use: the log's own keys are trusted from now on; compare them with --key to be sure"
}

func outcomeOf(report audit.Report, how string) verified {
	o := verified{
		Log: report.Origin, Entries: report.Entries, Proven: report.Proven, Checkpoints: report.Checkpoints, ClockSteps: report.ClockSteps,
		Keys: slices.Clone(report.Keys), Trust: how, Root: report.Root.String(),
	}
	if o.Keys == nil {
		o.Keys = []string{}
	}
	if !report.First.IsZero() {
		o.First, o.Last = &report.First, &report.Last
	}
	return o
}

// failed reports what is wrong with a log.
func (v *verification) failed(report audit.Report, how string, err error) error {
	var fault *audit.Fault
	if !errors.As(err, &fault) {
		return err
	}
	result := outcomeOf(report, how)
	result.Fault = fault
	if v.a.wantsJSON() {
		if err := v.a.result(result, nil); err != nil {
			return err
		}
	}
	f := &failure{exit: ExitFailed, message: "the " + fault.Error(), err: err}
	if fault.Kind == audit.Untrusted && how == trustStored {
		f.hint = "if the server was set up anew, give its new key with --key, or remove its entry from " + v.trust.path
	}
	return f
}

// bundleReader reads a bundle, and remembers its last checkpoint.
type bundleReader struct {
	r    *bufio.Reader
	line []byte
	last []byte
}

func newBundleReader(r io.Reader) *bundleReader {
	return &bundleReader{r: bufio.NewReaderSize(r, maxBundleLine)}
}

// bundleHeader is the first line of a bundle.
type bundleHeader struct {
	Origin string   `json:"origin"`
	Keys   []string `json:"keys"`
}

// header returns the first line without consuming it; it is empty when there is
// none, which is for the verification to say.
func (b *bundleReader) header() bundleHeader {
	var h bundleHeader
	for n := 512; ; n *= 2 {
		peeked, err := b.r.Peek(min(n, maxBundleLine))
		line, _, found := bytes.Cut(peeked, []byte("\n"))
		if found && json.Unmarshal(line, &h) == nil {
			return h
		}
		if found || err != nil || n >= maxBundleLine {
			return bundleHeader{}
		}
	}
}

// Read implements io.Reader.
func (b *bundleReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		part, after, complete := bytes.Cut(rest, []byte("\n"))
		if len(b.line) <= maxBundleLine {
			b.line = append(b.line, part...)
		}
		if complete {
			if bytes.HasPrefix(b.line, []byte(`{"checkpoint":`)) {
				b.last = append(b.last[:0], b.line...)
			}
			b.line = b.line[:0]
		}
		rest = after
	}
	return n, err
}

// checkpoint returns the last signed checkpoint that was read.
func (b *bundleReader) checkpoint() string {
	var line struct {
		Checkpoint string `json:"checkpoint"`
	}
	if json.Unmarshal(b.last, &line) != nil {
		return ""
	}
	return line.Checkpoint
}
