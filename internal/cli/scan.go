package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/internal/scan"
)

// outputSARIF is a value of scan's --format.
const outputSARIF = "sarif"

// scanFlags are those of "scan".
type scanFlags struct {
	git, staged                bool
	history                    scan.History
	format, fingerprintKeyFile string
	match                      bool
	limits                     scan.Limits
}

func (a *app) scanCommand() *cobra.Command {
	var f scanFlags
	c := a.action("scan [PATH...]", "Look for leaked secrets in files, archives, logs and git repositories", func(cmd *cobra.Command, args []string) error {
		return a.scan(cmd.Context(), &f, args)
	})
	c.Long = `Searches files and folders by the rules of gitleaks and for API keys that Keyturn issued.
Archives (zip, tar, gzip, bzip2) are unpacked, whatever they are called. The path "-" is
standard input. With --git the paths are repositories, and all that their commits added is
searched; with --staged what the next commit would add.

No secret is printed: a finding tells its rule, its place and a fingerprint, which is the
same for the same secret. Between runs it is so only with --fingerprint-key-file.

Exit code 0 means that everything was scanned and nothing was found; 7 that something was
found. With 1 not everything could be scanned.

With --match the server compares everything that could be a secret of a key with the
secrets of all versions that the token covers. It is sent to the server for that, and kept
nowhere. What matches is reported with its key, version and owner, whatever the rules say
of it, and the server does what the key's policy says under leaks. With exit code 8 a
secret in use was found. The token needs the role scanner.

As a hook before every commit: printf '#!/bin/sh\nexec keyturn scan --staged\n' >
.git/hooks/pre-commit && chmod +x .git/hooks/pre-commit`
	c.Example = "  keyturn scan .\n  keyturn scan --git . --since 2026-01-01 --format sarif >found.sarif\n  journalctl -u orders | keyturn scan -"
	c.Flags().BoolVar(&f.git, "git", false, "scan the history of the git repositories at PATH; default: the current folder")
	c.Flags().BoolVar(&f.staged, "staged", false, "scan what is staged for the next commit")
	c.Flags().StringVar(&f.history.Since, "since", "", "with --git: only commits since this `DATE`, as git reads it")
	c.Flags().StringVar(&f.history.Until, "until", "", "with --git: only commits until this `DATE`")
	c.Flags().StringVar(&f.history.Range, "range", "", "with --git: only this `RANGE` of commits, for example main..HEAD")
	c.Flags().StringVar(&f.format, "format", "", "write the findings as text, json or sarif; default: as --output says")
	c.Flags().StringVar(&f.fingerprintKeyFile, "fingerprint-key-file", "", "a `FILE` with at least 16 random bytes that fingerprints are made with")
	c.Flags().Int64Var(&f.limits.File, "max-file", 256<<20, "the largest file that is scanned to its end, in `BYTES`")
	c.Flags().Int64Var(&f.limits.Unpacked, "max-unpacked", 1<<30, "how much one archive may unpack to, in `BYTES`")
	c.Flags().IntVar(&f.limits.Depth, "max-depth", 4, "how deep archives may lie in one another")
	c.Flags().IntVar(&f.limits.Findings, "max-findings", 10_000, "how many findings end the scan")
	c.Flags().BoolVar(&f.match, "match", false, "compare what is found with the secrets of the server's keys: sends it there")
	c.MarkFlagsMutuallyExclusive("git", "staged")
	a.choices(c, "format", outputText, outputJSON, outputSARIF)
	return c
}

// check reads what the flags say.
func (f *scanFlags) check() error {
	switch {
	case f.format != "" && f.format != outputText && f.format != outputJSON && f.format != outputSARIF:
		return usage("use text, json or sarif", "--format: %q is unknown", f.format)
	case !f.git && f.history != (scan.History{}):
		return usage("add --git", "--since, --until and --range belong to --git")
	case f.limits.File < 1 || f.limits.Unpacked < 1 || f.limits.Depth < 1 || f.limits.Findings < 1:
		return usage("write a number above 0", "a limit of 0 leaves nothing to scan")
	}
	return nil
}

// fingerprintKey reads the key of fingerprints; nil without one.
func (f *scanFlags) fingerprintKey() ([]byte, error) {
	if f.fingerprintKeyFile == "" {
		return nil, nil
	}
	file, err := os.Open(f.fingerprintKeyFile)
	if err != nil {
		return nil, usage("make one: head -c 32 /dev/urandom >FILE", "--fingerprint-key-file: %w", err)
	}
	defer file.Close()
	key, err := io.ReadAll(io.LimitReader(file, 4<<10))
	if err != nil {
		return nil, err
	}
	if len(key) < 16 {
		return nil, usage("make one: head -c 32 /dev/urandom >FILE", "--fingerprint-key-file: %s has %d bytes, 16 are needed", f.fingerprintKeyFile, len(key))
	}
	return key, nil
}

func (a *app) scan(ctx context.Context, f *scanFlags, paths []string) error {
	if err := f.check(); err != nil {
		return err
	}
	key, err := f.fingerprintKey()
	if err != nil {
		return err
	}
	scanner, err := scan.New(scan.Config{Limits: f.limits, FingerprintKey: key, Candidates: f.match})
	if err != nil {
		return err
	}
	report, err := scanner.Run(ctx, a.sources(scanner, f, paths)...)
	if err != nil {
		return err
	}
	if f.match {
		if err := a.matchLeaks(ctx, &report); err != nil {
			return err
		}
	}
	if err := a.printScan(f, &report); err != nil {
		return err
	}
	return scanOutcome(&report)
}

// sources are what to scan: the current folder if nothing is named.
func (a *app) sources(scanner *scan.Scanner, f *scanFlags, paths []string) []scan.Source {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	var sources []scan.Source
	for _, path := range paths {
		switch {
		case f.staged:
			sources = append(sources, scanner.Staged(path))
		case f.git:
			sources = append(sources, scanner.Git(path, f.history))
		case path == "-":
			sources = append(sources, scanner.Reader("", a.config.Stdin))
		default:
			sources = append(sources, scanner.Paths(path))
		}
	}
	return sources
}

// scanOutcome is the exit code of a scan: findings weigh more than what is missing.
func scanOutcome(report *scan.Report) error {
	type version struct {
		key    string
		number uint64
	}
	live := map[version]bool{}
	prints := map[string]bool{}
	for i := range report.Findings {
		f := &report.Findings[i]
		prints[f.Fingerprint] = true
		if m := f.Managed; m != nil && m.Live {
			live[version{m.Key, m.Version}] = true
		}
	}
	switch {
	case len(live) > 0:
		return fail(ExitLiveKey, "rotate what policy has not: keyturn rotate NAME --emergency", "secrets of %s in use", plural(len(live), "version"))
	case len(report.Findings) > 0:
		return fail(ExitFound, "revoke and replace each: who has read it once keeps it; removing it from the place does not help", "%s found", plural(len(prints), "secret"))
	case report.GapCount > 0:
		return fail(ExitFailed, "scan what is left out by itself, or raise the limit", "%s not scanned to the end", plural(report.GapCount, "place"))
	}
	return nil
}

func (a *app) printScan(f *scanFlags, report *scan.Report) error {
	format := f.format
	if format == "" {
		format = a.flags.output
	}
	switch format {
	case outputSARIF:
		return scan.WriteSARIF(a.config.Stdout, a.config.Version, report)
	case outputJSON:
		a.writeJSON(a.config.Stdout, struct {
			Findings []scan.Finding `json:"findings"`
			Gaps     []scan.Gap     `json:"gaps"`
			GapCount int            `json:"gapCount"`
			Files    int            `json:"files"`
			Bytes    int64          `json:"bytes"`
		}{append([]scan.Finding{}, report.Findings...), append([]scan.Gap{}, report.Gaps...), report.GapCount, report.Files, report.Bytes})
		return nil
	}
	var b strings.Builder
	for i := range report.Findings {
		writeFinding(&b, &report.Findings[i])
	}
	for _, gap := range report.Gaps {
		fmt.Fprintf(&b, "%s  not scanned: %s\n", clean(gap.Path), clean(gap.Reason))
	}
	if more := report.GapCount - len(report.Gaps); more > 0 {
		fmt.Fprintf(&b, "%s more not scanned\n", plural(more, "place"))
	}
	fmt.Fprintf(&b, "%s, %d bytes: %s\n", plural(report.Files, "text"), report.Bytes, plural(len(report.Findings), "finding"))
	if _, err := io.WriteString(a.config.Stdout, b.String()); err != nil {
		return errors.Join(errors.New("write the result"), err)
	}
	return nil
}

func writeFinding(b *strings.Builder, f *scan.Finding) {
	fmt.Fprintf(b, "%s  %s  %d bytes  %s\n", clean(f.Place.String()), clean(f.Rule), f.Length, f.Fingerprint)
	if len(f.Also) > 0 {
		fmt.Fprintf(b, "  also by %s\n", clean(strings.Join(f.Also, ", ")))
	}
	if f.Author != "" {
		fmt.Fprintf(b, "  by %s, %s\n", clean(f.Author), clean(f.Date))
	}
	if m := f.Managed; m != nil {
		fmt.Fprintf(b, "  this is %s %s, %s", clean(m.Key), version(m.Version), clean(m.State))
		if m.Owner != "" {
			fmt.Fprintf(b, ", owned by %s", clean(m.Owner))
		}
		if m.Action != "" {
			fmt.Fprintf(b, "; %s", clean(m.Action))
		}
		if m.Rotation != "" {
			fmt.Fprintf(b, ": rotation %s", clean(m.Rotation))
		}
		b.WriteByte('\n')
	}
}
