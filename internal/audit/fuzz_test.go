package audit_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/secret"
)

// FuzzOpenCheckpoint: nothing but what the key signed is accepted, in the bytes in
// which SignCheckpoint wrote it.
func FuzzOpenCheckpoint(f *testing.F) {
	signing, text, err := audit.GenerateKey(rand.Reader, origin)
	if err != nil {
		f.Fatal(err)
	}
	signer, err := audit.ParseSigner(signing)
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := audit.ParseVerifier(text)
	if err != nil {
		f.Fatal(err)
	}
	signed, err := audit.SignCheckpoint(audit.Checkpoint{Origin: origin, Size: 12, Root: audit.Hash{1}}, signer)
	if err != nil {
		f.Fatal(err)
	}
	// What is fuzzed is how to damage it: the key is another in every process.
	f.Add(0, 0, []byte(nil))
	f.Add(len(signed), 0, []byte("— other+1 AAAA\n"))
	f.Add(len(signed), 0, signed[bytes.Index(signed, []byte("\n— "))+1:])
	f.Add(bytes.Index(signed, []byte("\n12\n"))+1, 2, []byte("012"))
	f.Add(bytes.Index(signed, []byte("\n12\n"))+1, 2, []byte("13"))
	f.Add(len(signed)-2, 1, []byte("B"))
	f.Add(0, len(signed), bytes.Repeat([]byte("x"), 5<<10))
	f.Fuzz(func(t *testing.T, at, drop int, put []byte) {
		at = min(max(at, 0), len(signed))
		drop = min(max(drop, 0), len(signed)-at)
		damaged := append(append(bytes.Clone(signed[:at]), put...), signed[at+drop:]...)
		c, err := audit.OpenCheckpoint(damaged, verifier)
		if err != nil {
			if !errors.Is(err, audit.ErrCheckpoint) && !errors.Is(err, audit.ErrSignature) && !errors.Is(err, audit.ErrUntrusted) || c != (audit.Checkpoint{}) {
				t.Fatalf("%q: %+v %v", damaged, c, err)
			}
			if bytes.Equal(damaged, signed) {
				t.Fatal(err)
			}
			return
		}
		again, err := audit.SignCheckpoint(c, signer)
		if err != nil || !bytes.Equal(again, damaged) {
			t.Fatalf("%q is accepted, and the signer writes %q (%v)", damaged, again, err)
		}
	})
}

// FuzzParseKeys: keys are accepted in one form only, and no error repeats what may
// be the secret half.
func FuzzParseKeys(f *testing.F) {
	signing, verifier, err := audit.GenerateKey(rand.Reader, origin)
	if err != nil {
		f.Fatal(err)
	}
	private := signing.RevealString()
	for _, s := range []string{
		private, verifier, private + "\n", private[:len(private)-3], verifier + "=", strings.ToUpper(verifier), strings.Replace(private, "example", "exbmple", 1),
		"", "+", "++", "a+00000000+", "PRIVATE+KEY+", "PRIVATE+KEY+a+00000000+AQ==", "PRIVATE+KEY+a+1+2+3+4",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		signer, err := audit.ParseSigner(secret.NewString(text))
		if err != nil {
			quotes(t, text, err)
		} else if v, err := audit.ParseVerifier(signer.VerifierKey()); err != nil || v.Name() != signer.Name() || v.KeyHash() != signer.KeyHash() {
			t.Fatalf("the signer of %q has the verifier key %q: %v", signer.Name(), signer.VerifierKey(), err)
		} else if message := []byte("message"); true {
			if sig, err := signer.Sign(message); err != nil || !v.Verify(message, sig) {
				t.Fatalf("the verifier does not verify what the signer signs (%v)", err)
			}
		}
		v, err := audit.ParseVerifier(text)
		if err != nil {
			if v != nil || !errors.Is(err, audit.ErrKey) {
				t.Fatalf("%v", err)
			}
			quotes(t, text, err)
		} else if strings.Contains(text, "PRIVATE+KEY+") || strings.TrimSpace(text) != text {
			t.Fatalf("%q is accepted as a verifier key", text)
		}
	})
}

// quotes fails if an error about a signing key repeats its last part.
func quotes(t *testing.T, text string, err error) {
	t.Helper()
	if !errors.Is(err, audit.ErrKey) {
		t.Fatalf("%v does not wrap ErrKey", err)
	}
	if parts := strings.Split(text, "+"); strings.HasPrefix(text, "PRIVATE+KEY+") && len(parts) >= 5 && len(parts[4]) > 8 && strings.Contains(err.Error(), parts[4]) {
		t.Fatalf("the error repeats the key: %v", err)
	}
}
