package tokencheck

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"time"
)

// nonceSpan is how long one nonce is given out; it counts for twice as long.
const nonceSpan = 2 * time.Minute

// nonces are those of this process.
type nonces struct{ secret []byte }

func newNonces() nonces { return nonces{[]byte(rand.Text())} }

func (n nonces) at(span int64) string {
	mac := hmac.New(sha256.New, n.secret)
	_, _ = mac.Write(strconv.AppendInt(nil, span, 10)) // a hash does not fail
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:18])
}

func (n nonces) make(now time.Time) string { return n.at(now.UnixNano() / int64(nonceSpan)) }

func (n nonces) good(nonce string, now time.Time) bool {
	span := now.UnixNano() / int64(nonceSpan)
	return hmac.Equal([]byte(nonce), []byte(n.at(span))) || hmac.Equal([]byte(nonce), []byte(n.at(span-1)))
}
