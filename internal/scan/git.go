package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/gitleaks/go-gitdiff/gitdiff"
)

// History says which commits to scan.
type History struct {
	// Since and Until bound them by their dates, as git reads them; empty: all.
	Since, Until string
	// Range is a range of commits, for example main..HEAD; empty: all that any branch
	// or tag holds.
	Range string
}

// Git yields what commits of a repository added. It needs git.
func (s *Scanner) Git(repository string, h History) Source {
	args := []string{
		"log", "-p", "-U0", "--full-index", "--full-history", "--diff-filter=tuxdb", "--no-ext-diff", "--no-textconv", "--no-color",
	}
	if h.Since != "" {
		args = append(args, "--since="+h.Since)
	}
	if h.Until != "" {
		args = append(args, "--until="+h.Until)
	}
	if h.Range == "" {
		args = append(args, "--all", "--")
	} else {
		args = append(args, "--end-of-options", h.Range, "--")
	}
	return s.diffs(repository, args)
}

// Staged yields what is staged in a repository for the next commit. It needs git.
func (s *Scanner) Staged(repository string) Source {
	return s.diffs(repository, []string{"diff", "--cached", "-U0", "--full-index", "--no-ext-diff", "--no-textconv", "--no-color"})
}

// diffs yields the added lines of what git prints. Settings of the repository run no
// program, and files above the bound count as binary: git leaves them out.
func (s *Scanner) diffs(repository string, args []string) Source {
	return func(ctx context.Context, out *Sink) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		all := append([]string{
			"-C", repository, "--no-optional-locks", "--no-pager", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false",
			"-c", fmt.Sprintf("core.bigFileThreshold=%d", s.config.Limits.File), "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false",
		}, args...)
		git := exec.CommandContext(ctx, "git", all...)
		problems := &tail{}
		git.Stderr = problems
		stdout, err := git.StdoutPipe()
		if err == nil {
			err = git.Start()
		}
		if err != nil {
			return fmt.Errorf("git cannot be run: %w; install it, or scan folders", err)
		}
		files, err := gitdiff.Parse(stdout)
		if err == nil {
			err = s.changes(ctx, out, files, &blobs{repository: repository, seen: map[string]bool{}})
		}
		if err != nil {
			cancel()
		}
		for range files { // the parser ends with its input
		}
		_, _ = io.Copy(io.Discard, stdout) // git ends when all is read
		if waited := git.Wait(); err == nil && waited != nil {
			err = fmt.Errorf("git %s in %s: %w: %s", args[0], repository, waited, problems)
		}
		return err
	}
}

// changes yields the added lines of changed files, and what is no text as a whole.
func (s *Scanner) changes(ctx context.Context, out *Sink, files <-chan *gitdiff.File, binary *blobs) (err error) {
	defer func() { err = errors.Join(err, binary.close()) }()
	for file := range files {
		if file == nil || file.IsDelete {
			continue
		}
		place := Place{Path: file.NewName}
		if header := file.PatchHeader; header != nil {
			place.Commit, place.Date = header.SHA, header.AuthorDate.UTC().Format(time.RFC3339)
			if header.Author != nil {
				place.Author = header.Author.Name
			}
		}
		if file.IsBinary {
			if err := s.blob(ctx, out, place, binary, file.NewOIDPrefix); err != nil {
				return err
			}
			continue
		}
		out.file()
		for _, fragment := range file.TextFragments {
			if fragment == nil {
				continue
			}
			place.Line = int(fragment.NewPosition)
			err := out.text(ctx, place, strings.NewReader(fragment.Raw(gitdiff.OpAdd)), s.config.Limits.File)
			if errors.Is(err, errLong) {
				out.gap(place.Path, "only the first %d bytes of a change were scanned", s.config.Limits.File)
				err = nil
			}
			if err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

const maxTail = 1 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-maxTail):]
	return len(p), nil
}

func (t *tail) String() string { return string(bytes.TrimSpace(t.b)) }
