package keeper

import (
	"bytes"
	"errors"
	"testing"

	"github.com/keyturn/keyturn/secret"
)

// FuzzUnmarshal: each material has exactly one encoding, and nothing else is
// accepted.
func FuzzUnmarshal(f *testing.F) {
	for _, secrets := range []map[string]secret.Value{nil, {"password": secret.NewString("hunter2")}, {"a": {}, "b": secret.NewString("x")}} {
		b, err := marshal(secrets)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(b, 0))
	}
	f.Add([]byte{1, 0, 2, 1, 'b', 0, 0, 0, 0, 1, 'a', 0, 0, 0, 0}) // not in order
	f.Add([]byte{1, 0, 2, 1, 'a', 0, 0, 0, 0, 1, 'a', 0, 0, 0, 0}) // twice
	f.Add([]byte{1, 0, 1, 0, 0, 0, 0, 0})                          // no name
	f.Add([]byte{1, 0, 1, 1, 'a', 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		secrets, err := unmarshal(b)
		if !bytes.Equal(b, given) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || secrets != nil {
				t.Fatalf("got %d secrets and %v", len(secrets), err)
			}
			return
		}
		again, err := marshal(secrets)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("encoded again it is %x, %v; it was %x", again, err, b)
		}
		clear(b) // secrets do not share memory with what is cleared after decoding
		for name, value := range secrets {
			if !bytes.Contains(given, value.Reveal()) {
				t.Fatalf("secret %q changed with the input", name)
			}
		}
	})
}
