// Package keepertest is the suite that every implementation of keeper.Keeper
// runs. Each sentence of that interface's contract has a test here.
package keepertest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Suite says how to make what is tested.
type Suite struct {
	// New returns a keeper with KEKs of its own, different from those of every
	// other one. Required.
	New func(t *testing.T) keeper.Keeper
	// Rotate makes another KEK of the keeper the current one and keeps the one
	// before. Nil when the keeper cannot.
	Rotate func(t *testing.T, k keeper.Keeper)
	// Reopen returns another keeper with the same KEKs. Nil when there is no such.
	Reopen func(t *testing.T, k keeper.Keeper) keeper.Keeper
}

// Run runs the suite.
func Run(t *testing.T, suite Suite) {
	t.Run("round-trip", func(t *testing.T) { roundTrip(t, suite.New(t)) })
	t.Run("altered", func(t *testing.T) { altered(t, suite.New(t)) })
	t.Run("unknown", func(t *testing.T) { unknown(t, suite.New(t), suite.New(t)) })
	t.Run("concurrent", func(t *testing.T) { concurrent(t, suite.New(t)) })
	t.Run("envelope", func(t *testing.T) { envelope(t, suite.New(t)) })
	if suite.Rotate != nil {
		t.Run("rotate", func(t *testing.T) { rotate(t, suite.New(t), suite.Rotate) })
	}
	if suite.Reopen != nil {
		t.Run("reopen", func(t *testing.T) {
			k := suite.New(t)
			w := wrap(t, k, "aad")
			w.opensIn(t, suite.Reopen(t, k), "another keeper with the same KEKs")
		})
	}
}

// wrapped is a data key with all that is needed to unwrap it.
type wrapped struct {
	dek, bytes, aad []byte
	kek             string
}

func wrap(t *testing.T, k keeper.Keeper, aad string) wrapped {
	t.Helper()
	w := wrapped{dek: make([]byte, 32), aad: []byte(aad)}
	_, _ = rand.Read(w.dek)
	given, givenAAD := bytes.Clone(w.dek), bytes.Clone(w.aad)
	var err error
	if w.kek, w.bytes, err = k.Wrap(t.Context(), given, givenAAD); err != nil {
		t.Fatalf("Wrap: %v", err)
	}
	if w.kek == "" || !bytes.Equal(given, w.dek) || !bytes.Equal(givenAAD, w.aad) {
		t.Errorf("Wrap returned KEK %q, or changed its arguments", w.kek)
	}
	if bytes.Contains(w.bytes, w.dek[:8]) {
		t.Error("the wrapped key contains the plain one")
	}
	return w
}

func (w wrapped) opensIn(t *testing.T, k keeper.Keeper, what string) {
	t.Helper()
	given := bytes.Clone(w.bytes)
	dek, err := k.Unwrap(t.Context(), w.kek, given, w.aad)
	if err != nil || !bytes.Equal(dek, w.dek) {
		t.Errorf("%s: Unwrap: %v, the right key: %v", what, err, bytes.Equal(dek, w.dek))
	}
	if !bytes.Equal(given, w.bytes) {
		t.Errorf("%s: Unwrap changed its argument", what)
	}
}

func (w wrapped) fails(t *testing.T, k keeper.Keeper, what string, want ...error) {
	t.Helper()
	dek, err := k.Unwrap(t.Context(), w.kek, w.bytes, w.aad)
	if err == nil || dek != nil {
		t.Errorf("%s: Unwrap returned %d bytes and error %v", what, len(dek), err)
		return
	}
	for _, one := range want {
		if errors.Is(err, one) {
			return
		}
	}
	t.Errorf("%s: got %v, want one of %q", what, err, want)
}

func roundTrip(t *testing.T, k keeper.Keeper) {
	for _, aad := range []string{"", "aad", string(make([]byte, 1000))} {
		w := wrap(t, k, aad)
		w.opensIn(t, k, fmt.Sprintf("with %d bytes of aad", len(aad)))
		w.opensIn(t, k, "a second time")
		again := wrap(t, k, aad)
		if bytes.Equal(w.bytes, again.bytes) {
			t.Error("two wrapped keys are the same")
		}
	}
}

func altered(t *testing.T, k keeper.Keeper) {
	w := wrap(t, k, "aad")
	for i := range w.bytes {
		spoilt := w
		spoilt.bytes = bytes.Clone(w.bytes)
		spoilt.bytes[i] ^= 1 << (i % 8)
		spoilt.fails(t, k, fmt.Sprintf("byte %d altered", i), keeper.ErrCorrupt)
	}
	for _, n := range []int{0, 1, 4, 5, len(w.bytes) / 2, len(w.bytes) - 1} {
		spoilt := w
		spoilt.bytes = w.bytes[:n]
		spoilt.fails(t, k, fmt.Sprintf("cut to %d bytes", n), keeper.ErrCorrupt)
	}
	spoilt := w
	spoilt.bytes = append(bytes.Clone(w.bytes), 0)
	spoilt.fails(t, k, "a byte added", keeper.ErrCorrupt)
	for _, aad := range []string{"", "aae", "aad\x00", "aa"} {
		spoilt := w
		spoilt.aad = []byte(aad)
		spoilt.fails(t, k, fmt.Sprintf("aad %q", aad), keeper.ErrCorrupt)
	}
}

func unknown(t *testing.T, k, other keeper.Keeper) {
	w := wrap(t, k, "aad")
	for _, kek := range []string{"", "unknown", w.kek + "0", w.kek + " ", "0" + w.kek} {
		spoilt := w
		spoilt.kek = kek
		spoilt.fails(t, k, fmt.Sprintf("KEK %q", kek), keeper.ErrUnknownKEK)
	}
	// IDs of different keepers may be equal: then the key is the wrong one.
	w.fails(t, other, "another keeper", keeper.ErrUnknownKEK, keeper.ErrCorrupt)
	w.opensIn(t, k, "after the failures")
}

func rotate(t *testing.T, k keeper.Keeper, rotate func(*testing.T, keeper.Keeper)) {
	before := wrap(t, k, "aad")
	rotate(t, k)
	after := wrap(t, k, "aad")
	if before.kek == after.kek {
		t.Fatalf("KEK %q is current before and after", before.kek)
	}
	before.opensIn(t, k, "wrapped before the rotation")
	after.opensIn(t, k, "wrapped after the rotation")
	swapped := before
	swapped.kek = after.kek
	swapped.fails(t, k, "the ID of another KEK", keeper.ErrCorrupt)

	place := keeper.Place{Key: "prod/db", Version: 1}
	sealed, err := keeper.Seal(t.Context(), k, place, []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	rotate(t, k)
	rewrapped, err := keeper.Rewrap(t.Context(), k, place, sealed)
	if err != nil {
		t.Fatal(err)
	}
	kek, err := keeper.KEK(rewrapped)
	if current := wrap(t, k, "").kek; kek != current || err != nil {
		t.Errorf("the rewrapped envelope names KEK %q, the current one is %q (%v)", kek, current, err)
	}
	for what, envelope := range map[string][]byte{"old": sealed, "rewrapped": rewrapped} {
		if plaintext, err := keeper.Open(t.Context(), k, place, envelope); string(plaintext) != "plaintext" || err != nil {
			t.Errorf("%s envelope: %q, %v", what, plaintext, err)
		}
	}
}

func concurrent(t *testing.T, k keeper.Keeper) {
	const workers, rounds = 8, 20
	failed := make(chan error, workers)
	for i := range workers {
		go func() {
			dek, aad := bytes.Repeat([]byte{byte(i)}, 32), []byte{byte(i)}
			for range rounds {
				kek, wrapped, err := k.Wrap(t.Context(), dek, aad)
				if err != nil {
					failed <- err
					return
				}
				got, err := k.Unwrap(t.Context(), kek, wrapped, aad)
				if err != nil || !bytes.Equal(got, dek) {
					failed <- fmt.Errorf("unwrapped a wrong key: %w", err)
					return
				}
			}
			failed <- nil
		}()
	}
	for range workers {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

func envelope(t *testing.T, k keeper.Keeper) {
	place := keeper.Place{Key: key.Name("prod/db"), Version: 3}
	sealed, err := keeper.SealMaterial(t.Context(), k, place, map[string]secret.Value{"password": secret.NewString("hunter2")})
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := keeper.OpenMaterial(t.Context(), k, place, sealed)
	if err != nil || len(secrets) != 1 || secrets["password"].RevealString() != "hunter2" {
		t.Errorf("OpenMaterial: %d secrets, %v", len(secrets), err)
	}
	place.Version++
	if _, err := keeper.OpenMaterial(t.Context(), k, place, sealed); !errors.Is(err, keeper.ErrCorrupt) {
		t.Errorf("in the place of another version: %v", err)
	}
}
