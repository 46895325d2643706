package scan

import (
	"bytes"
	"context"
	"errors"
	"io"
)

const (
	// pieceSize is how much text is searched at a time.
	pieceSize = 256 << 10
	// overlap is what a piece repeats of the one before, so that what lies across their
	// border is found: longer than the private keys in use.
	overlap = 8 << 10
	// sniffed is how much of a file tells whether it is text, as git does it.
	sniffed = 8000
)

// errLong: a text is longer than its bound.
var errLong = errors.New("it is too large")

// text yields what r holds in pieces. It fails with errLong after limit bytes, which
// it has yielded then.
func (o *Sink) text(ctx context.Context, place Place, r io.Reader, limit int64) error {
	buffer := make([]byte, pieceSize+overlap)
	have, read := 0, int64(0)
	place.Line = max(place.Line, 1)
	binary, first := false, true
	for {
		n, err := io.ReadFull(r, buffer[have:])
		have, read = have+n, read+int64(n)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return err
		}
		if first {
			binary = bytes.IndexByte(buffer[:min(have, sniffed)], 0) >= 0
			first = false
		}
		tooLong := read > limit
		cut := have
		if !ended {
			if last := bytes.LastIndexByte(buffer[overlap:have], '\n'); last >= 0 {
				cut = overlap + last + 1
			}
		}
		if cut > 0 {
			if err := o.put(ctx, piece{place: place, text: string(buffer[:cut]), binary: binary}); err != nil {
				return err
			}
		}
		if tooLong {
			return errLong
		}
		if ended {
			return nil
		}
		next := max(cut-overlap, 0)
		if line := bytes.IndexByte(buffer[next:cut], '\n'); line >= 0 && next+line+1 < cut {
			next += line + 1
		}
		passed := buffer[:next]
		if last := bytes.LastIndexByte(passed, '\n'); last >= 0 {
			place.Line += bytes.Count(passed, []byte{'\n'})
			place.Column = next - last - 1
		} else {
			place.Column += next
		}
		have = copy(buffer, buffer[next:have])
	}
}
