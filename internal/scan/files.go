package scan

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Paths yields files and, with all that is below them, folders. Symbolic links in
// folders are not followed, ".git" folders left to Git, and what is no regular file
// left out.
func (s *Scanner) Paths(paths ...string) Source {
	return func(ctx context.Context, out *Sink) error {
		for _, path := range paths {
			if err := s.path(ctx, out, path); err != nil {
				return err
			}
		}
		return nil
	}
}

func (s *Scanner) path(ctx context.Context, out *Sink, root string) error {
	info, err := os.Stat(root)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return s.file(ctx, out, root)
	}
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			out.gap(path, "it cannot be read: %v", errors.Unwrap(err))
			return nil
		case entry.IsDir() && entry.Name() == ".git":
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		return s.file(ctx, out, path)
	})
}

// file yields one file. That it cannot be read is a gap.
func (s *Scanner) file(ctx context.Context, out *Sink, path string) error {
	f, err := os.Open(path)
	if err != nil {
		out.gap(path, "it cannot be read: %v", errors.Unwrap(err))
		return nil
	}
	defer f.Close()
	return s.stream(ctx, out, Place{Path: filepath.ToSlash(path)}, f)
}

// Reader yields what r holds, under a name; it may be an archive.
func (s *Scanner) Reader(name string, r io.Reader) Source {
	return func(ctx context.Context, out *Sink) error { return s.stream(ctx, out, Place{Path: name}, r) }
}

func (s *Scanner) stream(ctx context.Context, out *Sink, at Place, r io.Reader) error {
	budget := &budget{bytes: s.config.Limits.Unpacked, entries: s.config.Limits.Entries}
	return s.item(ctx, out, at, r, 0, budget)
}

// text yields one plain text; what is wrong with it is a gap, and only the end of
// the scan an error.
func (s *Scanner) text(ctx context.Context, out *Sink, at Place, r io.Reader, limit int64) error {
	out.file()
	err := out.text(ctx, at, r, limit)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errLong):
		out.gap(at.Path, "only its first %d bytes were scanned", limit)
	default:
		out.gap(at.Path, "it cannot be read to its end: %v", err)
	}
	return nil
}
