package ingress

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// streamWriter ends a stream whose client does not read. It answers pings, so the
// connection looks well.
type streamWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	within  time.Duration
}

// Unwrap lets http.ResponseController find what is beneath.
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write implements io.Writer.
func (w *streamWriter) Write(p []byte) (int, error) {
	defer w.limit().Stop()
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (w *streamWriter) Flush() { _ = w.FlushError() } // the next write tells

// FlushError implements what http.ResponseController looks for.
func (w *streamWriter) FlushError() error {
	defer w.limit().Stop()
	return w.control.Flush()
}

func (w *streamWriter) limit() *time.Timer {
	return time.AfterFunc(w.within, func() {
		_ = w.control.SetWriteDeadline(time.Now()) // the connection is gone if this fails
	})
}

// body is a request's body that must arrive in time. The deadline ends with it:
// it must not cut off the answer.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	once    sync.Once
}

func boundBody(control *http.ResponseController, r io.ReadCloser, within time.Duration) io.ReadCloser {
	if err := control.SetReadDeadline(time.Now().Add(within)); err != nil {
		return r // the connection is gone, or knows no deadlines
	}
	return &body{ReadCloser: r, control: control}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.once.Do(func() { _ = b.control.SetReadDeadline(time.Time{}) }) // the connection is gone if this fails
	}
	return n, err
}
