package scan

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// maxBlobs is how many files of a history that are no text are remembered, so that
// each is scanned once.
const maxBlobs = 100_000

// blobs reads files of a repository by their identifiers, by one git that begins with
// the first of them. It fetches nothing that the repository does not have.
type blobs struct {
	repository string
	seen       map[string]bool
	git        *exec.Cmd
	ask        io.WriteCloser
	answers    *bufio.Reader
}

// start begins git if it has not begun.
func (b *blobs) start(ctx context.Context) error {
	if b.git != nil {
		return nil
	}
	git := exec.CommandContext(ctx, "git", "-C", b.repository, "--no-optional-locks", "cat-file", "--batch")
	git.Env = append(os.Environ(), "GIT_NO_LAZY_FETCH=1")
	ask, err := git.StdinPipe()
	if err != nil {
		return err
	}
	answers, err := git.StdoutPipe()
	if err != nil {
		return err
	}
	if err := git.Start(); err != nil {
		return err
	}
	b.git, b.ask, b.answers = git, ask, bufio.NewReader(answers)
	return nil
}

// open returns what a file holds; nil if the repository does not have it.
func (b *blobs) open(ctx context.Context, oid string) (*io.LimitedReader, error) {
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(b.ask, oid+"\n"); err != nil {
		return nil, err
	}
	header, err := b.answers.ReadString('\n')
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(header)
	if len(fields) != 3 || fields[1] != "blob" {
		return nil, nil
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return nil, err
	}
	return &io.LimitedReader{R: b.answers, N: size}, nil
}

// rest leaves what was not read of a file behind.
func (b *blobs) rest(r *io.LimitedReader) error {
	r.N++ // the end of the line behind it
	_, err := io.Copy(io.Discard, r)
	if err == nil && r.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (b *blobs) close() error {
	if b.git == nil {
		return nil
	}
	err := b.ask.Close()
	_, _ = io.Copy(io.Discard, b.answers) // git ends when all is read
	return errors.Join(err, b.git.Wait())
}

// blob yields a file of a history that is no text: once, for the first commit that
// has it.
func (s *Scanner) blob(ctx context.Context, out *Sink, place Place, files *blobs, oid string) error {
	if files.seen[oid] || strings.Trim(oid, "0") == "" {
		return nil
	}
	if len(files.seen) < maxBlobs {
		files.seen[oid] = true
	}
	r, err := files.open(ctx, oid)
	if err == nil && r == nil {
		out.gap(place.Path, "the repository does not hold the content that commit %s names", place.Commit)
		return nil
	}
	if err == nil {
		err = s.stream(ctx, out, place, r)
	}
	if err == nil {
		err = files.rest(r)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("git cat-file in %s: %w", files.repository, err)
	}
	return nil
}
