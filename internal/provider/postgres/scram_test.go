package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/secret"
)

// TestVerifierOfRFC7677 checks the keys against the exchange in RFC 7677,
// section 3: the client's proof must lead to StoredKey, and ServerKey must give
// the server's signature.
func TestVerifierOfRFC7677(t *testing.T) {
	const (
		salt        = "W22ZaJ0SNY7soEsUEjb6gQ=="
		authMessage = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
		proof       = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
		signature   = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
	)
	got, err := verifier(secret.NewString("pencil"), decode(t, salt), 4096)
	if err != nil {
		t.Fatal(err)
	}
	keys, found := strings.CutPrefix(got, "SCRAM-SHA-256$4096:"+salt+"$")
	stored, server, ok := strings.Cut(keys, ":")
	if !found || !ok {
		t.Fatalf("the verifier has another form: %s", got)
	}
	mac := func(key []byte) []byte { return hmacSHA256(key, authMessage) }
	if base64.StdEncoding.EncodeToString(mac(decode(t, server))) != signature {
		t.Error("ServerKey does not give the server's signature")
	}
	clientKey := make([]byte, sha256.Size)
	subtle.XORBytes(clientKey, decode(t, proof), mac(decode(t, stored)))
	if hash := sha256.Sum256(clientKey); !hmac.Equal(hash[:], decode(t, stored)) {
		t.Error("the client's proof does not lead to StoredKey")
	}
	salted, err := pbkdf2.Key(sha256.New, "pencil", decode(t, salt), 4096, sha256.Size)
	if err != nil || !hmac.Equal(hmacSHA256(salted, "Client Key"), clientKey) {
		t.Error("the test's own reading of RFC 5802 differs")
	}
}

func TestVerifiersDiffer(t *testing.T) {
	password := newPassword()
	a, errA := newVerifier(password)
	b, errB := newVerifier(password)
	if errA != nil || errB != nil || a == b {
		t.Errorf("two verifiers of a password share their salt: %v, %v", errA, errB)
	}
	if strings.Contains(a, password.RevealString()) {
		t.Error("the verifier contains the password")
	}
}

// TestVerifierRefusesWhatSASLprepWouldChange keeps a password out that the
// server's own SASLprep would turn into another one.
func TestVerifierRefusesWhatSASLprepWouldChange(t *testing.T) {
	for _, bad := range []string{"", "pässword", "a\u00a0b", "tab\t", "\x7f", "nul\x00"} {
		if _, err := newVerifier(secret.NewString(bad)); !errors.Is(err, errNotASCII) {
			t.Errorf("%q: got %v, want errNotASCII", bad, err)
		}
	}
	if _, err := newVerifier(secret.NewString(` !"#$%&'()~`)); err != nil {
		t.Errorf("printable ASCII: %v", err)
	}
}

func TestPasswords(t *testing.T) {
	count := map[byte]int{}
	seen := map[string]bool{}
	const rounds = 2000
	for range rounds {
		p := newPassword().Reveal()
		if len(p) != passwordLength || seen[string(p)] {
			t.Fatalf("a password has %d bytes or came twice", len(p))
		}
		seen[string(p)] = true
		for _, b := range p {
			count[b]++
		}
	}
	mean := float64(rounds*passwordLength) / float64(len(passwordAlphabet))
	for _, letter := range []byte(passwordAlphabet) {
		// Six standard deviations: a fair source fails once in millions of runs, a
		// modulo without rejection (a quarter more for some letters) always.
		if got := float64(count[letter]); got < mean*0.83 || got > mean*1.17 {
			t.Errorf("%q came %v times, %v expected", letter, got, mean)
		}
		delete(count, letter)
	}
	if len(count) > 0 {
		t.Errorf("letters beyond the alphabet: %v", count)
	}
}

func decode(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
