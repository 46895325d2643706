package tokensource

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/dpop"
)

// prover makes proofs of possession (RFC 9449) with a key that nobody else has.
type prover struct {
	signer jose.Signer
	// ahead is how far the broker's clock is ahead of ours, in nanoseconds; fresh says
	// that it was found just now.
	ahead atomic.Int64
	fresh atomic.Bool
}

func newProver() (*prover, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: private},
		(&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"),
	)
	if err != nil {
		return nil, fmt.Errorf("make a signer: %w", err)
	}
	return &prover{signer: signer}, nil
}

// proof is for one request; token is what goes with it, empty when one is asked for.
func (p *prover) proof(method, url, token, nonce string, now time.Time) (string, error) {
	claims := map[string]any{
		"jti": rand.Text(), "htm": method, "htu": url, "iat": now.Add(time.Duration(p.ahead.Load())).Unix(),
	}
	if token != "" {
		claims["ath"] = dpop.HashOf(token)
	}
	if nonce != "" {
		claims["nonce"] = nonce
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode a proof: %w", err)
	}
	signed, err := p.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign a proof: %w", err)
	}
	return signed.CompactSerialize()
}

const (
	// minWrong is how wrong a clock must be to be corrected: proofs count for a minute
	// either way.
	minWrong = 20 * time.Second
	// maxWrong is more than any clock is wrong by that still runs.
	maxWrong = 10 * 365 * 24 * time.Hour
)

// learn takes the broker's clock from the header Date of an answer: a proof by a
// clock that is wrong by more than a minute never counts.
func (p *prover) learn(date string, now time.Time) {
	at, err := http.ParseTime(date)
	if err != nil {
		return
	}
	// Round takes the monotonic reading away.
	ahead := at.Sub(now.Round(0))
	if ahead.Abs() > maxWrong {
		return
	}
	if ahead.Abs() < minWrong {
		ahead = 0
	}
	before := time.Duration(p.ahead.Swap(int64(ahead)))
	p.fresh.Store((ahead - before).Abs() >= minWrong)
}

// corrected reports whether the last answer has changed what the time is.
func (p *prover) corrected() bool { return p.fresh.Load() }
