package broker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/internal/sealed"
)

const (
	// nonceSpan is how long one nonce is given out; it counts for twice as long.
	nonceSpan = 2 * time.Minute
	// kindNonces holds the sealed secret that nonces are made with.
	kindNonces = "token-nonces"
)

// Nonces is what nonces are made with.
func Nonces() sealed.Secret {
	return sealed.Secret{Purpose: "keyturn/tokens/nonces", Kind: kindNonces, Size: 32, Called: "the secret of nonces"}
}

// nonceOf says where a nonce is good. The zero value is invalid.
type nonceOf uint8

const (
	// ofNobody: it is none of now.
	ofNobody nonceOf = iota + 1
	// ofThis and ofAnother: this process gave it out, or another one. A proof with it
	// counts at that process only, which remembers it in memory.
	ofThis
	ofAnother
	// ofAll: it is good at all nodes. A proof with it is noted in the store. ofRoaming is
	// the same, for a client whose requests reach now this node and now that.
	ofAll
	ofRoaming
)

// nonceNode is what a nonce begins with: who gave it out.
type nonceNode [6]byte

// nonces are made with one secret at all nodes that share a store, so that each knows
// those of the others.
type nonces struct {
	secret []byte
	// node names this process; alone: there is no other one.
	node  nonceNode
	alone bool
	// skew is how far the clock of another node may be ahead.
	skew time.Duration
}

func newNonces(secret []byte, alone bool, skew time.Duration) nonces {
	n := nonces{secret: secret, alone: alone, skew: skew}
	_, _ = rand.Read(n.node[:]) // it never fails
	n.node[0] |= 0x80           // no name of a process stands for all
	return n
}

func (n nonces) at(span int64, of nonceNode) string {
	mac := hmac.New(sha256.New, n.secret)
	_, _ = mac.Write(strconv.AppendInt(of[:], span, 10)) // a hash does not fail
	return base64.RawURLEncoding.EncodeToString(append(of[:], mac.Sum(nil)[:18]...))
}

func spanOf(now time.Time) int64 { return now.UnixNano() / int64(nonceSpan) }

// first is the nonce for a client that has shown one of the given kind, which is not
// good here: it must be good wherever the next request arrives.
func (n nonces) first(now time.Time, shown nonceOf) string {
	switch {
	case n.alone:
		return n.at(spanOf(now), n.node)
	case shown == ofAnother:
		return n.at(spanOf(now), roaming())
	}
	return n.at(spanOf(now), nonceNode{})
}

// next is the nonce for a client after one of the given kind was good: that of this
// process, which costs nothing, unless the client roams.
func (n nonces) next(now time.Time, shown nonceOf) string {
	if shown == ofRoaming {
		return n.at(spanOf(now), roaming())
	}
	return n.at(spanOf(now), n.node)
}

func roaming() nonceNode { return nonceNode{5: 1} }

// read says whose a nonce is: one of this span, of the one before, or of the next
// one, if a node whose clock is ahead is there already.
func (n nonces) read(nonce string, now time.Time) nonceOf {
	var of nonceNode
	raw, err := base64.RawURLEncoding.Strict().DecodeString(nonce)
	if err != nil || copy(of[:], raw) < len(of) {
		return ofNobody
	}
	good := false
	for span, last := spanOf(now)-1, spanOf(now.Add(n.skew)); span <= last; span++ {
		good = good || hmac.Equal([]byte(nonce), []byte(n.at(span, of)))
	}
	switch {
	case !good:
		return ofNobody
	case of == n.node:
		return ofThis
	case n.alone:
		return ofNobody // it is of before a restart
	case of == nonceNode{}:
		return ofAll
	case of == roaming():
		return ofRoaming
	}
	return ofAnother
}
