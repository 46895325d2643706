package cli

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// What the tests of behaviour may see.
var (
	ParseAddress   = parseAddress
	ParseAddresses = parseAddresses
	ReadToken      = readToken
	ParsePairs     = parsePairs
	Clean          = clean
	QuoteShell     = quoteShell
	Short          = short
	Headline       = headline
)

// ReadLogin and ReadTrust read the files of a configuration folder.
func ReadLogin(dir string) (address, token string, err error) {
	l, err := (&app{env: map[string]string{"XDG_CONFIG_HOME": dir}}).readLogin()
	return l.Address, l.Token, err
}

// ReadTrust returns how many logs are known; what was read is written back.
func ReadTrust(dir string) (int, error) {
	t, err := (&app{env: map[string]string{"XDG_CONFIG_HOME": dir}}).readTrust()
	if err == nil && len(t.logs) > 0 {
		err = t.remember(t.logs[0])
	}
	return len(t.logs), err
}

// Addressed returns where requests for a path go, when no server can be reached.
func Addressed(addresses, path string) (first string, went []string, err error) {
	next := tripper(func(r *http.Request) (*http.Response, error) {
		went = append(went, r.URL.String())
		return nil, errors.New("cannot be reached")
	})
	s, err := newServers(addresses, next)
	if err != nil {
		return "", nil, err
	}
	r, err := http.NewRequest(http.MethodGet, s.first.String()+path, nil)
	if err != nil {
		return "", nil, err
	}
	_, _ = s.RoundTrip(r) //nolint:bodyclose // there is none
	return s.first.String(), went, nil
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

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
