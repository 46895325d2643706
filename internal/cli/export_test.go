package cli

import (
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// What the tests of behaviour may see.
var (
	ParseAddress = parseAddress
	Clean        = clean
	EditDistance = editDistance
	QuoteShell   = quoteShell
	Short        = short
	Headline     = headline
)

// Root returns the tree of commands.
func Root(config Config) *cobra.Command { return newApp(config).root() }

// MessageJSON returns a message as --output json prints it, in one line.
func MessageJSON(m proto.Message) []byte { return mustJSON(m) }

// ReadBundle reads r in pieces, and returns what a verification learns from it.
func ReadBundle(read func(p []byte) (int, error), size int) (origin, checkpoint string) {
	b := newBundleReader(readFunc(read))
	origin = b.header().Origin
	for p := make([]byte, size); ; {
		if _, err := b.Read(p); err != nil {
			return origin, b.checkpoint()
		}
	}
}

// LiveProgress shows states of rotations as on a terminal.
func LiveProgress(w io.Writer, now func() time.Time, columns int) (update func(*keyturnv1.Rotation), end func()) {
	p := &progress{w: w, now: now, live: true, columns: columns, stop: make(chan struct{}), done: make(chan struct{})}
	go p.tick()
	return p.update, p.end
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
