package ingress

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
)

// errInflated ends the reading of a request that is compressed and too large.
var errInflated = errors.New("the rest of a request that is too large is not decompressed")

// ReadAtMost makes handlers read no more than so many bytes of a request, and
// decompress no more. By itself the library decompresses what is too large to its
// end, only to tell how large: 4 MiB could cost minutes of a processor.
func ReadAtMost(most int64) connect.HandlerOption {
	return connect.WithHandlerOptions(connect.WithReadMaxBytes(int(most)), connect.WithCompression("gzip",
		func() connect.Decompressor { return &inflater{most: most} },
		func() connect.Compressor { return gzip.NewWriter(io.Discard) },
	))
}

// inflater decompresses one request after another.
type inflater struct {
	gzip.Reader
	most, done int64
}

// Reset implements connect.Decompressor.
func (r *inflater) Reset(from io.Reader) error {
	r.done = 0
	return r.Reader.Reset(from)
}

// Read implements io.Reader.
func (r *inflater) Read(p []byte) (int, error) {
	if r.done > r.most {
		return 0, fmt.Errorf("%w: %d bytes are allowed", errInflated, r.most)
	}
	n, err := r.Reader.Read(p[:min(int64(len(p)), r.most+1-r.done)])
	r.done += int64(n)
	return n, err
}
