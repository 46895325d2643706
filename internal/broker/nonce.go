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

// nonces are those of all nodes that share a store: a proof made with the nonce of
// one is good at the others.
type nonces struct {
	secret []byte
	// skew is how far the clock of another node may be ahead.
	skew time.Duration
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

func (n nonces) at(span int64) string {
	mac := hmac.New(sha256.New, n.secret)
	_, _ = mac.Write(strconv.AppendInt(nil, span, 10)) // a hash does not fail
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:18])
}

func spanOf(now time.Time) int64 { return now.UnixNano() / int64(nonceSpan) }

func (n nonces) make(now time.Time) string { return n.at(spanOf(now)) }

// check returns what tells whether a nonce is one of this span, of the one before,
// or of the next one, if a node whose clock is ahead is there already.
func (n nonces) check(now time.Time) func(string) bool {
	first, last := spanOf(now)-1, spanOf(now.Add(n.skew))
	return func(nonce string) bool {
		good := false
		for span := first; span <= last; span++ {
			good = good || hmac.Equal([]byte(nonce), []byte(n.at(span)))
		}
		return good
	}
}
