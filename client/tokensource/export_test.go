package tokensource

import (
	"net/http"
	"time"
)

// ReadAnswer reads an answer of a broker.
func ReadAnswer(status int, header http.Header, body []byte, bound bool) (Token, string, time.Duration, error) {
	a, err := readAnswer(status, header, body, bound, time.Unix(1_800_000_000, 0))
	return a.token, a.nonce, a.retryAfter, err
}

// The bounds of an answer.
const (
	MaxToken      = maxToken
	MaxLife       = maxLife
	MaxRetryAfter = maxRetryAfter
)
