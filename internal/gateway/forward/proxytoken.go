package forward

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// HeaderProxyToken is where proxies and services show their token. A proxy sets it itself,
// so that one of a client takes no effect, and does not pass it on to the origin.
const HeaderProxyToken = "Keyturn-Proxy-Token"

// ErrCaller is wrapped by every error about somebody who may not ask.
var ErrCaller = errors.New("no token of a proxy")

const (
	// MinProxyToken is how short a token may be, in bytes.
	MinProxyToken = 16
	// MaxProxyToken is how long it may be, in bytes.
	MaxProxyToken = 512
	// maxTokenFile bounds a file of tokens, in bytes, and maxFileTokens how many it has.
	maxTokenFile, maxFileTokens = 16 << 10, 16
	// lookEvery is how often files are looked at.
	lookEvery = time.Second
)

// ProxyTokensConfig is what ProxyTokens need; all fields are required.
type ProxyTokensConfig struct {
	// Files hold tokens, one in a line: two while one takes the other's place.
	Files  []string
	Now    func() time.Time
	Logger *slog.Logger
}

// ProxyTokens are those that proxies and services of the region share with the gateway.
// Its methods may be called concurrently.
type ProxyTokens struct {
	config ProxyTokensConfig
	// sums are the SHA-256 of all tokens.
	sums atomic.Pointer[[][sha256.Size]byte]
	said said

	mu     sync.Mutex
	looked time.Time
	files  []tokenFile
}

// tokenFile is a file as it was read.
type tokenFile struct {
	path string
	info fs.FileInfo
	sums [][sha256.Size]byte
}

// NewProxyTokens reads the files; it fails when one cannot be read. One that changes later
// is read again within a second of the next request. When that fails its tokens of before
// count on, and it is logged: to withdraw a token write another one into its file.
func NewProxyTokens(config ProxyTokensConfig) (*ProxyTokens, error) {
	p := &ProxyTokens{config: config, said: said{now: config.Now, log: config.Logger}, looked: config.Now()}
	for _, path := range config.Files {
		file := tokenFile{path: path}
		if _, err := file.look(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
		p.files = append(p.files, file)
	}
	p.gather()
	return p, nil
}

// gather puts the tokens of all files together.
func (p *ProxyTokens) gather() {
	var all [][sha256.Size]byte
	for i := range p.files {
		all = append(all, p.files[i].sums...)
	}
	p.sums.Store(&all)
}

// look reads the file if it is another than before.
func (f *tokenFile) look() (changed bool, err error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return false, err
	}
	if f.info != nil && os.SameFile(f.info, info) && f.info.Size() == info.Size() && f.info.ModTime().Equal(info.ModTime()) {
		return false, nil
	}
	file, err := os.Open(f.path)
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(file, maxTokenFile+1))
	if err != nil {
		return false, err
	}
	defer clear(text)
	if len(text) > maxTokenFile {
		return false, fmt.Errorf("%s has more than %d bytes", f.path, maxTokenFile)
	}
	var sums [][sha256.Size]byte
	number := 0
	for line := range bytes.Lines(text) {
		number++
		token := bytes.TrimSpace(line)
		if len(token) == 0 {
			continue
		}
		if len(token) < MinProxyToken || len(token) > MaxProxyToken || bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return false, fmt.Errorf("%s:%d: no token of %d to %d printable characters without spaces; make one by openssl rand -hex 32", f.path, number, MinProxyToken, MaxProxyToken)
		}
		sums = append(sums, sha256.Sum256(token))
	}
	if len(sums) == 0 || len(sums) > maxFileTokens {
		return false, fmt.Errorf("%s has %d tokens; 1 to %d are allowed, one in a line", f.path, len(sums), maxFileTokens)
	}
	f.info, f.sums = info, sums
	return true, nil
}

// refresh looks at the files, if nobody has for a while or does.
func (p *ProxyTokens) refresh(r *http.Request) {
	if !p.mu.TryLock() {
		return
	}
	defer p.mu.Unlock()
	now := p.config.Now()
	if since := now.Sub(p.looked); since >= 0 && since < lookEvery {
		return
	}
	p.looked = now
	again := false
	for i := range p.files {
		changed, err := p.files[i].look()
		if err != nil {
			p.said.warn(r.Context(), "file "+p.files[i].path, "tokens of proxies could not be read again; those of before count on", "error", err)
		}
		again = again || changed
	}
	if again {
		p.gather()
	}
}

// Caller is for Config.Caller: it returns an error unless the request shows one of the
// tokens, once, in the header Keyturn-Proxy-Token. Services that verify API keys may show
// it as they show theirs to a server: Authorization: Bearer. Of a request that a proxy
// passes on that header is the client's, and is not looked at.
func (p *ProxyTokens) Caller(r *http.Request) error {
	p.refresh(r)
	values := r.Header.Values(HeaderProxyToken)
	if len(values) == 0 && r.URL.Path == VerifyPath {
		for _, value := range r.Header.Values(headerAuthorization) {
			scheme, token, _ := strings.Cut(value, " ")
			if !strings.EqualFold(scheme, "Bearer") {
				token = ""
			}
			values = append(values, strings.TrimLeft(token, " "))
		}
	}
	if len(values) != 1 || len(values[0]) > MaxProxyToken {
		return fmt.Errorf("%w: it shows none in the header %s, or several", ErrCaller, HeaderProxyToken)
	}
	sum := sha256.Sum256([]byte(values[0]))
	found := 0
	for _, one := range *p.sums.Load() {
		found |= subtle.ConstantTimeCompare(sum[:], one[:])
	}
	if found != 1 {
		return fmt.Errorf("%w: the one that it shows is unknown", ErrCaller)
	}
	return nil
}
