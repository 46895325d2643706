package broker

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

// nonces are those of this process: a proof made for another node, or before a
// restart, is none here. So what this node remembers of proofs is enough.
type nonces struct{ secret []byte }

func newNonces() nonces { return nonces{[]byte(rand.Text())} }

func (n nonces) at(span int64) string {
	mac := hmac.New(sha256.New, n.secret)
	_, _ = mac.Write(strconv.AppendInt(nil, span, 10)) // a hash does not fail
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:18])
}

func (n nonces) make(now time.Time) string { return n.at(now.UnixNano() / int64(nonceSpan)) }

func (n nonces) check(now time.Time) func(string) bool {
	span := now.UnixNano() / int64(nonceSpan)
	return func(nonce string) bool {
		return hmac.Equal([]byte(nonce), []byte(n.at(span))) || hmac.Equal([]byte(nonce), []byte(n.at(span-1)))
	}
}
