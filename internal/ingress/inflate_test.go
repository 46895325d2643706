package ingress

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"
)

// What is too large is not decompressed to its end.
func TestBombsAreNotInflated(t *testing.T) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	for range 64 {
		_, _ = w.Write(make([]byte, 1<<20)) // a buffer takes everything
	}
	_ = w.Close() // the same
	r := &inflater{most: 1 << 20}
	for range 2 {
		if err := r.Reset(bytes.NewReader(bomb.Bytes())); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if n != 1<<20+1 || !errors.Is(err, errInflated) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}
