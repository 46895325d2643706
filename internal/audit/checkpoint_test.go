package audit_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/secret"
)

func TestCheckpointRoundTrip(t *testing.T) {
	signer, verifier := newKey(t, origin)
	other, otherVerifier := newKey(t, origin)
	want := audit.Checkpoint{Origin: origin, Size: 42, Root: audit.Hash{1, 2, 3}}
	signed, err := audit.SignCheckpoint(want, signer)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := audit.OpenCheckpoint(signed, otherVerifier, verifier); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := audit.OpenCheckpoint(signed, otherVerifier); !errors.Is(err, audit.ErrUntrusted) {
		t.Errorf("another key: got %v, want ErrUntrusted", err)
	}
	if _, err := audit.OpenCheckpoint(signed); !errors.Is(err, audit.ErrUntrusted) {
		t.Errorf("no key: got %v, want ErrUntrusted", err)
	}
	forged := bytes.Replace(signed, []byte("\n42\n"), []byte("\n43\n"), 1)
	if _, err := audit.OpenCheckpoint(forged, verifier); !errors.Is(err, audit.ErrSignature) {
		t.Errorf("a forged size: got %v, want ErrSignature", err)
	}
	both, err := note.Sign(&note.Note{Text: strings.SplitAfter(string(signed), "\n\n")[0][:len(origin)+1+3+45]}, signer, other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenCheckpoint(both, verifier, otherVerifier); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("two signatures: got %v, want ErrCheckpoint", err)
	}
	want.Origin = "somewhere.else"
	if _, err := audit.SignCheckpoint(want, signer); err == nil {
		t.Error("a key signed for the log of another name")
	}
}

// TestSignedTextIsStrict signs texts that are no checkpoints in their only form.
func TestSignedTextIsStrict(t *testing.T) {
	signer, verifier := newKey(t, origin)
	root := audit.Hash{}.String()
	for _, text := range []string{
		"\n", origin + "\n", origin + "\n1\n", origin + "\n01\n" + root + "\n", origin + "\n-1\n" + root + "\n",
		origin + "\n1\n" + root + "\nextension\n", origin + "\n1\n" + root[:40] + "\n", origin + "\n9007199254740993\n" + root + "\n",
		origin + "\n1\n" + strings.Replace(root, "AAA=", "AAB=", 1) + "\n",
	} {
		signed, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.OpenCheckpoint(signed, verifier); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("%q: got %v, want ErrCheckpoint", text, err)
		}
	}
	signed, err := note.Sign(&note.Note{Text: "another.log\n1\n" + root + "\n"}, signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenCheckpoint(signed, verifier); !errors.Is(err, audit.ErrUntrusted) {
		t.Errorf("another log: got %v, want ErrUntrusted", err)
	}
}

func TestKeys(t *testing.T) {
	signer, _ := newKey(t, origin)
	public := signer.VerifierKey()
	name, rest, _ := strings.Cut(public, "+")
	hash, key64, _ := strings.Cut(rest, "+")
	for what, text := range map[string]string{
		"empty":            "",
		"no hash":          name + "+" + key64,
		"cut":              public[:len(public)-4],
		"another hash":     name + "+00000000+" + key64,
		"upper-case hash":  name + "+" + strings.ToUpper(hash) + "+" + key64,
		"line feed":        public + "\n",
		"another name":     "x" + public,
		"line feed inside": public[:len(public)-4] + "\n" + public[len(public)-4:],
	} {
		if text == public {
			continue // the hash has no letters
		}
		if _, err := audit.ParseVerifier(text); !errors.Is(err, audit.ErrKey) {
			t.Errorf("%s: got %v, want ErrKey", what, err)
		}
	}
	for _, bad := range []string{"", "a b", "a+b", "ä", strings.Repeat("x", 300)} {
		if _, _, err := audit.GenerateKey(nil, bad); !errors.Is(err, audit.ErrKey) {
			t.Errorf("log name %q: got %v, want ErrKey", bad, err)
		}
	}
}

// TestKeyErrorsKeepTheSecret: an error about a signing key does not contain it,
// and says what to do.
func TestKeyErrorsKeepTheSecret(t *testing.T) {
	private, public, err := audit.GenerateKey(nil, origin)
	if err != nil {
		t.Fatal(err)
	}
	text := private.RevealString()
	seed := strings.SplitN(text, "+", 5)[4]
	if len(seed) < 8 {
		t.Fatalf("the seed has %d characters", len(seed))
	}
	_, asVerifier := audit.ParseVerifier(text)
	_, cut := audit.ParseSigner(secret.NewString(text[:len(text)-5]))
	_, swapped := audit.ParseSigner(secret.NewString(public))
	_, empty := audit.ParseSigner(secret.Value{})
	for name, row := range map[string]struct {
		err  error
		hint string
	}{
		"signing key given as verifier key": {asVerifier, "give the verifier key"},
		"cut":                               {cut, "backup"},
		"verifier key given as signing key": {swapped, "PRIVATE+KEY+"},
		"empty":                             {empty, "PRIVATE+KEY+"},
	} {
		if !errors.Is(row.err, audit.ErrKey) || !strings.Contains(row.err.Error(), row.hint) {
			t.Errorf("%s: got %v, want ErrKey that says %q", name, row.err, row.hint)
		}
		if row.err != nil && strings.Contains(row.err.Error(), seed[:8]) {
			t.Errorf("%s: the error contains the key", name)
		}
	}
}

func TestProofsRefuse(t *testing.T) {
	signer, _ := newKey(t, origin)
	l := newLog(t, signer)
	reader := hashReader(t, l)
	if _, err := audit.ProveInclusion(20, 20, reader); !errors.Is(err, audit.ErrProof) {
		t.Errorf("an entry behind the end: got %v", err)
	}
	if _, err := audit.ProveConsistency(7, 6, reader); !errors.Is(err, audit.ErrProof) {
		t.Errorf("a shrinking log: got %v", err)
	}
	if err := audit.CheckInclusion(nil, audit.Checkpoint{Size: 1}, 1, nil); !errors.Is(err, audit.ErrProof) {
		t.Errorf("an entry that is not covered: got %v", err)
	}
	a, b := audit.Checkpoint{Origin: "a", Size: 1}, audit.Checkpoint{Origin: "b", Size: 2}
	if err := audit.CheckConsistency(nil, a, b); !errors.Is(err, audit.ErrProof) {
		t.Errorf("two logs: got %v", err)
	}
	if err := audit.CheckConsistency(nil, b, audit.Checkpoint{Origin: "b", Size: 1}); !errors.Is(err, audit.ErrProof) {
		t.Errorf("a shrinking log: got %v", err)
	}
}

func TestWriteBundleRefuses(t *testing.T) {
	signer, _ := newKey(t, origin)
	other, _ := newKey(t, origin)
	l := newLog(t, signer)
	var b bytes.Buffer
	if _, err := audit.WriteBundle(t.Context(), &b, &memLog{}, signer.VerifierKey()); !errors.Is(err, audit.ErrNoCheckpoint) {
		t.Errorf("no checkpoint: got %v", err)
	}
	if _, err := audit.WriteBundle(t.Context(), &b, l, other.VerifierKey()); !errors.Is(err, audit.ErrUntrusted) {
		t.Errorf("another key: got %v", err)
	}
	if _, err := audit.WriteBundle(t.Context(), &b, l, signer.VerifierKey(), signer.VerifierKey()); !errors.Is(err, audit.ErrKey) {
		t.Errorf("a key twice: got %v", err)
	}
	if _, err := audit.WriteBundle(t.Context(), fullDisk{}, l, signer.VerifierKey()); !errors.Is(err, errDisk) {
		t.Errorf("a full disk: got %v", err)
	}
}

var errDisk = errors.New("disk is full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errDisk }
