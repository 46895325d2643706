package broker

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/store"
)

const (
	// nonceSpan is how long one nonce is given out; it counts for twice as long.
	nonceSpan = 2 * time.Minute
	// kindNonces holds the sealed secret that nonces are made with.
	kindNonces = "token-nonces"
	nonceSize  = 32
)

// noncePlace is what the sealed secret is bound to.
func noncePlace() keeper.Place { return keeper.Place{Key: "keyturn/tokens/nonces", Version: 1} }

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

// openNonces reads the secret, and draws one if there is none.
func openNonces(ctx context.Context, config *Config) ([]byte, error) {
	sealed, err := readNonces(ctx, config)
	if errors.Is(err, store.ErrNotFound) {
		sealed, err = makeNonces(ctx, config)
	}
	var opened []byte
	if err == nil {
		opened, err = keeper.Open(ctx, config.Keeper, noncePlace(), sealed)
	}
	if err == nil && len(opened) != nonceSize {
		err = keeper.ErrCorrupt
	}
	if err != nil {
		return nil, fmt.Errorf("the secret of nonces: %w", err)
	}
	return opened, nil
}

func readNonces(ctx context.Context, config *Config) (sealed []byte, err error) {
	err = config.Store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindNonces, "1")
		sealed = doc.Body
		return err
	})
	return sealed, err
}

// makeNonces stores a new secret, and returns that of another node if one was faster.
func makeNonces(ctx context.Context, config *Config) ([]byte, error) {
	drawn := make([]byte, nonceSize)
	defer clear(drawn)
	_, _ = rand.Read(drawn) // it never fails
	sealed, err := keeper.Seal(ctx, config.Keeper, noncePlace(), drawn)
	if err != nil {
		return nil, err
	}
	err = config.Store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: kindNonces, Name: "1", Body: sealed})
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return readNonces(ctx, config)
	}
	return sealed, err
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
