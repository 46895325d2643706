package identity

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/secret"
)

// FuzzSplitToken: what is accepted is of exactly one form, so that a token has
// one spelling only.
func FuzzSplitToken(f *testing.F) {
	_, token, _, err := mintToken(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token.RevealString())
	f.Add("kt_0123456789abcdef_AAAA")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		id, hash, err := splitToken(secret.NewString(text))
		if err != nil {
			if id != "" {
				t.Errorf("%q: an ID beside an error", text)
			}
			return
		}
		if len(id) != 16 || !strings.HasPrefix(text, "kt_"+id+"_") || len(text) != 3+16+1+48 {
			t.Errorf("%q is accepted as %q", text, id)
		}
		if _, again, _ := splitToken(secret.NewString(text)); again != hash {
			t.Error("two hashes of one token")
		}
		for i := range text {
			changed := []byte(text)
			changed[i] ^= 1
			if other, _, err := splitToken(secret.New(changed)); err == nil && other != id && bytes.HasPrefix(changed, []byte("kt_")) {
				t.Errorf("the checksum does not cover the ID: %q", changed)
			}
		}
	})
}

func TestMintToken(t *testing.T) {
	id, token, hash, err := mintToken(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	gotID, gotHash, err := splitToken(token)
	if err != nil || gotID != id || gotHash != hash {
		t.Errorf("%q %v", gotID, err)
	}
	if _, _, _, err := mintToken(bytes.NewReader(make([]byte, 10))); err == nil {
		t.Error("a token of too little randomness")
	}
}
