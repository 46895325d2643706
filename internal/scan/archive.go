package scan

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"path"
	"strings"
)

// budget is what is left of what one outermost archive may hold.
type budget struct {
	bytes   int64
	entries int
}

// errBudget: an archive holds more than it may.
var errBudget = errors.New("the archive unpacks to more than is allowed")

// meter reads an unpacked stream at the expense of a budget.
type meter struct {
	r      io.Reader
	budget *budget
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	if m.budget.bytes <= 0 {
		return 0, errBudget
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.budget.bytes)])
	m.budget.bytes -= int64(n)
	return n, err
}

// What streams begin with.
const (
	magicGzip  = "\x1f\x8b"
	magicBzip2 = "BZh"
	magicZip   = "PK\x03\x04"
	magicTar   = "ustar"
	tarAt      = 257
)

// item yields a stream, unpacked if it is an archive. Its content says what it is,
// not its name.
func (s *Scanner) item(ctx context.Context, out *Sink, at Place, r io.Reader, depth int, left *budget) error {
	buffered := bufio.NewReaderSize(r, 4<<10)
	head, err := buffered.Peek(tarAt + len(magicTar))
	if err != nil && !errors.Is(err, io.EOF) {
		out.gap(at.Path, "it cannot be read: %v", err)
		return nil
	}
	packed := bytes.HasPrefix(head, []byte(magicGzip)) || bytes.HasPrefix(head, []byte(magicBzip2)) ||
		bytes.HasPrefix(head, []byte(magicZip)) || isTar(head)
	if !packed {
		return s.text(ctx, out, at, buffered, s.config.Limits.File)
	}
	if depth == s.config.Limits.Depth {
		out.gap(at.Path, "archives lie more than %d deep in one another", depth)
		return nil
	}
	switch {
	case isTar(head):
		return s.tar(ctx, out, at, buffered, depth, left)
	case bytes.HasPrefix(head, []byte(magicZip)):
		return s.zip(ctx, out, at, buffered, depth, left)
	case bytes.HasPrefix(head, []byte(magicBzip2)):
		return s.item(ctx, out, at.in(inner(at.Path, ".bz2")), &meter{bzip2.NewReader(buffered), left}, depth+1, left)
	}
	unpacked, err := gzip.NewReader(buffered)
	if err != nil {
		out.gap(at.Path, "it is a damaged gzip file: %v", err)
		return nil
	}
	return s.item(ctx, out, at.in(inner(at.Path, ".gz")), &meter{unpacked, left}, depth+1, left)
}

// in is the place of something inside of it.
func (p Place) in(path string) Place {
	p.Path = path
	return p
}

func isTar(head []byte) bool {
	return len(head) >= tarAt+len(magicTar) && string(head[tarAt:tarAt+len(magicTar)]) == magicTar
}

// inner is the name of what a compressed file holds.
func inner(name, ext string) string {
	base := path.Base(name[strings.LastIndexByte(name, '!')+1:])
	if trimmed := strings.TrimSuffix(base, ext); trimmed != base && trimmed != "" {
		return name + "!" + trimmed
	}
	if trimmed := strings.TrimSuffix(base, ".tgz"); trimmed != base {
		return name + "!" + trimmed + ".tar"
	}
	return name + "!"
}

func (s *Scanner) tar(ctx context.Context, out *Sink, at Place, r io.Reader, depth int, left *budget) error {
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			out.gap(at.Path, "the archive cannot be read to its end: %v", err)
			return nil
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if left.entries--; left.entries < 0 {
			out.gap(at.Path, "it holds more than %d files", s.config.Limits.Entries)
			return nil
		}
		if err := s.item(ctx, out, at.in(at.Path+"!"+cleanEntry(header.Name)), &meter{archive, left}, depth+1, left); err != nil {
			return err
		}
		if left.bytes <= 0 {
			out.gap(at.Path, "%v", errBudget)
			return nil
		}
	}
}

// maxZip is the largest zip archive that is read: its index stands at its end, so it
// has to be kept whole.
const maxZip = 256 << 20

func (s *Scanner) zip(ctx context.Context, out *Sink, at Place, r io.Reader, depth int, left *budget) error {
	whole, err := io.ReadAll(io.LimitReader(r, maxZip+1))
	if err != nil || len(whole) > maxZip {
		if err == nil {
			err = errLong
		}
		out.gap(at.Path, "the zip archive cannot be read: %v", err)
		return nil
	}
	archive, err := zip.NewReader(bytes.NewReader(whole), int64(len(whole)))
	if err != nil {
		out.gap(at.Path, "the zip archive is damaged: %v", err)
		return nil
	}
	for _, file := range archive.File {
		if file.FileInfo().IsDir() {
			continue
		}
		if left.entries--; left.entries < 0 {
			out.gap(at.Path, "it holds more than %d files", s.config.Limits.Entries)
			return nil
		}
		content, err := file.Open()
		if err != nil {
			out.gap(at.Path+"!"+cleanEntry(file.Name), "it cannot be unpacked: %v", err)
			continue
		}
		err = s.item(ctx, out, at.in(at.Path+"!"+cleanEntry(file.Name)), &meter{content, left}, depth+1, left)
		if closed := content.Close(); err == nil && closed != nil && !errors.Is(closed, zip.ErrChecksum) {
			out.gap(at.Path+"!"+cleanEntry(file.Name), "it cannot be unpacked: %v", closed)
		}
		if err != nil {
			return err
		}
		if left.bytes <= 0 {
			out.gap(at.Path, "%v", errBudget)
			return nil
		}
	}
	return nil
}

// maxEntryName bounds the names that archives give.
const maxEntryName = 1 << 10

func cleanEntry(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name[:min(len(name), maxEntryName)]), "/")
}
