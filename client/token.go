package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/keyturn/keyturn/secret"
)

// ErrToken is wrapped by every error about a bearer token that cannot be had.
var ErrToken = errors.New("no usable token")

// maxTokenBytes bounds what is read as a token.
const maxTokenBytes = 16 << 10

// TokenSource supplies the bearer token. Token is called for every request, so
// that a replaced token is picked up without a restart; it must be quick and
// may be called concurrently.
type TokenSource interface {
	Token(ctx context.Context) (secret.Value, error)
}

// StaticToken returns a source that always supplies token.
func StaticToken(token secret.Value) TokenSource { return staticToken{token} }

// TokenFile returns a source that reads the token from a file at every use, so
// that a change of the file counts from the next request on. White space around
// the token is ignored; the file may have at most 16 KiB.
func TokenFile(path string) TokenSource { return tokenFile(path) }

// TokenEnv returns a source that reads the token from an environment variable.
func TokenEnv(name string) TokenSource { return tokenEnv(name) }

type staticToken struct{ token secret.Value }

func (s staticToken) Token(context.Context) (secret.Value, error) {
	return checkToken(s.token.Reveal(), "the configured token")
}

type tokenFile string

func (path tokenFile) Token(context.Context) (secret.Value, error) {
	f, err := os.Open(string(path))
	if err != nil {
		return secret.Value{}, fmt.Errorf("%w: %w; write the party's token to that file, mode 0600", ErrToken, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return secret.Value{}, fmt.Errorf("%w: read token file %s: %w", ErrToken, string(path), err)
	}
	defer clear(raw)
	return checkToken(raw, "token file "+string(path))
}

type tokenEnv string

func (name tokenEnv) Token(context.Context) (secret.Value, error) {
	text, found := os.LookupEnv(string(name))
	if !found {
		return secret.Value{}, fmt.Errorf("%w: environment variable %s is not set", ErrToken, string(name))
	}
	return checkToken([]byte(text), "environment variable "+string(name))
}

// checkToken trims raw and refuses what cannot stand in a header field
// (RFC 6750, section 2.1: visible ASCII only). The error never quotes it.
func checkToken(raw []byte, where string) (secret.Value, error) {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0:
		return secret.Value{}, fmt.Errorf("%w: %s is empty", ErrToken, where)
	case len(raw) > maxTokenBytes:
		return secret.Value{}, fmt.Errorf("%w: %s is longer than %d bytes", ErrToken, where, maxTokenBytes)
	}
	for i, b := range raw {
		if b <= ' ' || b > '~' {
			return secret.Value{}, fmt.Errorf("%w: %s has a character at position %d that a token never has; it must hold the token alone", ErrToken, where, i+1)
		}
	}
	return secret.New(raw), nil
}
