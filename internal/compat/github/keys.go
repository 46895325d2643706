package github

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// DefaultKeys is where GitHub publishes the public keys.
const DefaultKeys = "https://api.github.com/meta/public_keys/secret_scanning"

const (
	// keysKept is how long keys are used without being read again.
	keysKept = time.Hour
	// keysAgain is how often an unknown identifier may have them read again.
	keysAgain = time.Minute
	// keysTime bounds one reading, maxKeysBody its size, and maxKeys their number.
	keysTime    = 10 * time.Second
	maxKeysBody = 1 << 20
	maxKeys     = 100
)

// ErrUnknownKey: there is no key of that identifier.
var ErrUnknownKey = errors.New("no key of GitHub's has that identifier")

// KeysConfig says where the keys are; Now is required.
type KeysConfig struct {
	// Source is an https:// address or a file. Default: DefaultKeys.
	Source string
	// Client fetches them. Default: one that follows no redirects.
	Client *http.Client
	Now    func() time.Time
}

// Keys are GitHub's public keys, read when they are needed and kept for an hour.
// When they cannot be read, those that were go on to be used. Its methods may be
// called concurrently.
type Keys struct {
	config KeysConfig

	mu   sync.Mutex
	keys map[string]*ecdsa.PublicKey
	// read is when they were read, tried when that was tried last.
	read, tried time.Time
}

// NewKeys returns keys that nothing was read of yet.
func NewKeys(config KeysConfig) *Keys {
	if config.Source == "" {
		config.Source = DefaultKeys
	}
	if config.Client == nil {
		config.Client = &http.Client{Timeout: keysTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &Keys{config: config}
}

// Key returns the key of an identifier. It fails with ErrUnknownKey, or because no
// keys could be read at all.
func (k *Keys) Key(ctx context.Context, id string) (*ecdsa.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.config.Now()
	found := k.keys[id]
	stale := k.read.IsZero() || now.Sub(k.read) >= keysKept || found == nil
	if stale && (k.tried.IsZero() || now.Sub(k.tried) >= keysAgain) {
		k.tried = now
		keys, err := k.load(ctx)
		switch {
		case err == nil:
			k.keys, k.read = keys, now
			found = keys[id]
		case k.keys == nil:
			return nil, fmt.Errorf("the public keys of %s: %w", k.config.Source, err)
		}
	}
	if found == nil {
		return nil, ErrUnknownKey
	}
	return found, nil
}

func (k *Keys) load(ctx context.Context) (map[string]*ecdsa.PublicKey, error) {
	var r io.ReadCloser
	if strings.Contains(k.config.Source, "://") {
		ctx, cancel := context.WithTimeout(ctx, keysTime)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.config.Source, http.NoBody)
		if err != nil {
			return nil, err
		}
		response, err := k.config.Client.Do(request)
		if err != nil {
			return nil, err
		}
		r = response.Body
		if response.StatusCode != http.StatusOK {
			return nil, errors.Join(fmt.Errorf("the answer is %s", response.Status), r.Close())
		}
	} else {
		file, err := os.Open(k.config.Source)
		if err != nil {
			return nil, err
		}
		r = file
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxKeysBody+1))
	if err != nil {
		return nil, err
	}
	return parseKeys(b)
}

// parseKeys reads what GitHub publishes.
func parseKeys(b []byte) (map[string]*ecdsa.PublicKey, error) {
	var list struct {
		PublicKeys []struct {
			ID  string `json:"key_identifier"`
			PEM string `json:"key"`
		} `json:"public_keys"`
	}
	if len(b) > maxKeysBody {
		return nil, fmt.Errorf("they have more than %d bytes", maxKeysBody)
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	if len(list.PublicKeys) == 0 || len(list.PublicKeys) > maxKeys {
		return nil, fmt.Errorf("there are %d, 1 to %d are expected", len(list.PublicKeys), maxKeys)
	}
	keys := map[string]*ecdsa.PublicKey{}
	for _, one := range list.PublicKeys {
		block, _ := pem.Decode([]byte(one.PEM))
		if block == nil {
			return nil, fmt.Errorf("key %q is no PEM", one.ID)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", one.ID, err)
		}
		public, ok := parsed.(*ecdsa.PublicKey)
		if !ok || public.Curve != elliptic.P256() || one.ID == "" {
			return nil, fmt.Errorf("key %q is no ECDSA key on P-256", one.ID)
		}
		keys[one.ID] = public
	}
	return keys, nil
}
