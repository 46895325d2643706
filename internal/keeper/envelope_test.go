package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

var place = keeper.Place{Key: "prod/orders/db", Version: 7}

func newKeeper(t testing.TB) keeper.Keeper {
	t.Helper()
	k, err := file.Open(file.Config{Path: filepath.Join(t.TempDir(), "kek.json")})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealAndOpen(t *testing.T) {
	k := newKeeper(t)
	for _, plaintext := range [][]byte{nil, []byte("hunter2, a plaintext"), make([]byte, keeper.MaxPlaintext)} {
		sealed, err := keeper.Seal(t.Context(), k, place, plaintext)
		if err != nil {
			t.Fatal(err)
		}
		if len(plaintext) > 0 && bytes.Contains(sealed, plaintext[:min(8, len(plaintext))]) && plaintext[0] != 0 {
			t.Error("the envelope contains the plaintext")
		}
		got, err := keeper.Open(t.Context(), k, place, sealed)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%d bytes came back as %d, %v", len(plaintext), len(got), err)
		}
		again, err := keeper.Seal(t.Context(), k, place, plaintext)
		if err != nil || bytes.Equal(again, sealed) {
			t.Errorf("the same envelope twice, %v", err)
		}
	}
	if _, err := keeper.Seal(t.Context(), k, place, make([]byte, keeper.MaxPlaintext+1)); err == nil {
		t.Error("a plaintext that is too long was sealed")
	}
	for _, bad := range []keeper.Place{{}, {Key: "prod/db"}, {Version: 1}, {Key: "Not A Name", Version: 1}} {
		if _, err := keeper.Seal(t.Context(), k, bad, nil); err == nil {
			t.Errorf("sealed for place %+v", bad)
		}
	}
}

func TestEnvelopeIsBound(t *testing.T) {
	k := newKeeper(t)
	sealed, err := keeper.Seal(t.Context(), k, place, []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []keeper.Place{
		{Key: place.Key, Version: 8},
		{Key: "prod/orders/d", Version: 7},
		{Key: "prod/orders/db2", Version: 7},
		{Key: place.Key, Version: 7 << 8},
		{},
	} {
		if plaintext, err := keeper.Open(t.Context(), k, other, sealed); !errors.Is(err, keeper.ErrCorrupt) || plaintext != nil {
			t.Errorf("opened in place %+v: %v", other, err)
		}
		if _, err := keeper.Rewrap(t.Context(), k, other, sealed); !errors.Is(err, keeper.ErrCorrupt) {
			t.Errorf("rewrapped for place %+v: %v", other, err)
		}
	}
	for i := range sealed {
		spoilt := bytes.Clone(sealed)
		spoilt[i] ^= 1 << (i % 8)
		if plaintext, err := keeper.Open(t.Context(), k, place, spoilt); plaintext != nil || !errors.Is(err, keeper.ErrCorrupt) && !errors.Is(err, keeper.ErrUnknownKEK) {
			t.Errorf("byte %d altered: %v", i, err)
		}
		if _, err := keeper.Open(t.Context(), k, place, sealed[:i]); !errors.Is(err, keeper.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := keeper.Open(t.Context(), k, place, append(bytes.Clone(sealed), 0)); !errors.Is(err, keeper.ErrCorrupt) {
		t.Errorf("a byte added: %v", err)
	}
	// Parts of two envelopes of one place do not go together.
	other, err := keeper.Seal(t.Context(), k, place, []byte("plaintexu"))
	if err != nil {
		t.Fatal(err)
	}
	tail := 12 + len("plaintext") + 16
	mixed := append(bytes.Clone(sealed[:len(sealed)-tail]), other[len(other)-tail:]...)
	if _, err := keeper.Open(t.Context(), k, place, mixed); !errors.Is(err, keeper.ErrCorrupt) {
		t.Errorf("mixed: %v", err)
	}
}

// spy is a keeper that keeps the slices it was given or gave.
type spy struct {
	wrapped, unwrapped []byte
	outage             error
}

func (s *spy) Wrap(_ context.Context, dek, _ []byte) (string, []byte, error) {
	s.wrapped = dek
	return "spy", bytes.Clone(dek), s.outage
}

func (s *spy) Unwrap(_ context.Context, _ string, wrapped, _ []byte) ([]byte, error) {
	if s.outage != nil {
		return nil, s.outage
	}
	s.unwrapped = bytes.Clone(wrapped)
	return s.unwrapped, nil
}

func TestDataKeysAreCleared(t *testing.T) {
	s := &spy{}
	sealed, err := keeper.Seal(t.Context(), s, place, []byte("plaintext"))
	if err != nil || !isZero(s.wrapped) {
		t.Errorf("after Seal: cleared %v, %v", isZero(s.wrapped), err)
	}
	if _, err := keeper.Open(t.Context(), s, place, sealed); err != nil || !isZero(s.unwrapped) {
		t.Errorf("after Open: cleared %v, %v", isZero(s.unwrapped), err)
	}
	if _, err := keeper.Rewrap(t.Context(), s, place, sealed); err != nil || !isZero(s.unwrapped) || !isZero(s.wrapped) {
		t.Errorf("after Rewrap: cleared %v, %v", isZero(s.unwrapped), err)
	}
}

func isZero(b []byte) bool { return len(b) > 0 && bytes.Equal(b, make([]byte, len(b))) }

// TestOutage: a keeper that cannot be asked is not a corrupt envelope.
func TestOutage(t *testing.T) {
	s := &spy{}
	sealed, err := keeper.Seal(t.Context(), s, place, []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	s.outage = errors.New("token is unplugged")
	_, sealErr := keeper.Seal(t.Context(), s, place, nil)
	_, openErr := keeper.Open(t.Context(), s, place, sealed)
	_, rewrapErr := keeper.Rewrap(t.Context(), s, place, sealed)
	for _, err := range []error{sealErr, openErr, rewrapErr} {
		if !errors.Is(err, s.outage) || errors.Is(err, keeper.ErrCorrupt) || errors.Is(err, keeper.ErrUnknownKEK) || !strings.Contains(err.Error(), "prod/orders/db v7") {
			t.Errorf("got %v", err)
		}
	}
}

func TestMaterial(t *testing.T) {
	k := newKeeper(t)
	many := map[string]secret.Value{}
	for i := range keeper.MaxSecrets {
		many[fmt.Sprint(i)] = secret.NewString(strings.Repeat("x", i))
	}
	for _, secrets := range []map[string]secret.Value{
		nil, {"password": secret.NewString("hunter2")}, {"a": {}, "b": secret.New([]byte{0, 1, 2}), strings.Repeat("n", keeper.MaxSecretName): secret.NewString("ä")}, many,
	} {
		sealed, err := keeper.SealMaterial(t.Context(), k, place, secrets)
		if err != nil {
			t.Fatal(err)
		}
		got, err := keeper.OpenMaterial(t.Context(), k, place, sealed)
		if err != nil || got == nil || !maps.EqualFunc(got, secrets, secret.Value.Equal) {
			t.Errorf("%d secrets came back as %d, %v", len(secrets), len(got), err)
		}
	}
	many["one more"] = secret.Value{}
	for what, secrets := range map[string]map[string]secret.Value{
		"too many": many, "no name": {"": {}}, "long name": {strings.Repeat("n", keeper.MaxSecretName+1): {}},
		"too long": {"a": secret.New(make([]byte, keeper.MaxPlaintext))},
	} {
		if _, err := keeper.SealMaterial(t.Context(), k, place, secrets); err == nil {
			t.Errorf("%s: sealed", what)
		}
	}
	sealed, err := keeper.Seal(t.Context(), k, place, []byte("no material"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keeper.OpenMaterial(t.Context(), k, place, sealed); !errors.Is(err, keeper.ErrCorrupt) {
		t.Errorf("an envelope without material: %v", err)
	}
}

// FuzzOpen: whatever is not exactly what Seal returned does not open.
func FuzzOpen(f *testing.F) {
	k := newKeeper(f)
	plaintext := []byte("hunter2")
	sealed, err := keeper.Seal(f.Context(), k, place, plaintext)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed, "prod/orders/db", uint64(7))
	f.Add(sealed[:20], "prod/orders/db", uint64(7))
	f.Add(sealed, "prod/orders/db", uint64(8))
	f.Add([]byte("KTE\x01\x00\x01k\x00\x01w"), "a", uint64(1))
	f.Add([]byte("KTE\x02"), "a", uint64(1))
	f.Fuzz(func(t *testing.T, data []byte, name string, version uint64) {
		in := keeper.Place{Key: key.Name(name), Version: key.Version(version)}
		got, err := keeper.Open(t.Context(), k, in, data)
		if same := in == place && bytes.Equal(data, sealed); same != (err == nil) || same != bytes.Equal(got, plaintext) {
			t.Fatalf("opened %v: %v", in, err)
		}
		if err != nil && !errors.Is(err, keeper.ErrCorrupt) && !errors.Is(err, keeper.ErrUnknownKEK) {
			t.Fatalf("an error of another kind: %v", err)
		}
		if err != nil && bytes.Contains([]byte(err.Error()), plaintext) {
			t.Fatalf("the error shows the plaintext: %v", err)
		}
	})
}

// TestRewrapper: only what another KEK has wrapped is wrapped again, and counted.
func TestRewrapper(t *testing.T) {
	k, err := file.Open(file.Config{Path: filepath.Join(t.TempDir(), "kek.json")})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := keeper.Seal(t.Context(), k, place, []byte("plaintext"))
	if err != nil || !keeper.IsEnvelope(sealed) || keeper.IsEnvelope([]byte("plaintext")) {
		t.Fatalf("%q, %v", sealed, err)
	}
	old := k.Primary()
	kek, err := k.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := keeper.NewRewrapper(t.Context(), k)
	if err != nil || r.KEK() != kek {
		t.Fatalf("wraps by %s, %v", r.KEK(), err)
	}
	again, err := r.Again(t.Context(), place, sealed)
	if err != nil || again == nil {
		t.Fatal(err)
	}
	if twice, err := r.Again(t.Context(), place, again); twice != nil || err != nil || r.Count() != 1 {
		t.Errorf("%d bytes, %v, count %d", len(twice), err, r.Count())
	}
	if _, err := r.Again(t.Context(), keeper.Place{Key: "prod/other", Version: 7}, sealed); !errors.Is(err, keeper.ErrCorrupt) {
		t.Errorf("for another place: %v", err)
	}
	if _, err := r.Again(t.Context(), place, []byte("KTE")); !errors.Is(err, keeper.ErrCorrupt) {
		t.Errorf("half an envelope: %v", err)
	}
	if err := k.Remove(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if plaintext, err := keeper.Open(t.Context(), k, place, again); string(plaintext) != "plaintext" || err != nil {
		t.Errorf("%q, %v", plaintext, err)
	}
	if _, err := keeper.NewRewrapper(t.Context(), &spy{outage: errors.New("away")}); err == nil {
		t.Error("a keeper that is away has a current KEK")
	}
}
