package audit_test

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
)

// statement signs one, and returns it with the verifier of its log.
func statement(t testing.TB) (audit.Statement, []byte, *audit.Signer, note.Verifier) {
	t.Helper()
	signing, public, err := audit.GenerateKey(rand.Reader, "example.org/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.ParseSigner(signing)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := audit.ParseVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	s := audit.Statement{
		Origin: "example.org/log", Subject: "rotation 1", Digest: sha256.Sum256([]byte("a document")),
		At: time.Date(2026, 11, 26, 12, 0, 0, 1000, time.UTC), Actor: audit.Actor{ID: "alice", Kind: "user"},
	}
	signed, err := audit.SignStatement(&s, signer)
	if err != nil {
		t.Fatal(err)
	}
	return s, signed, signer, verifier
}

// TestStatement: what was signed is read, whichever byte is altered is found, and
// neither does a statement pass for a checkpoint nor the other way round.
func TestStatement(t *testing.T) {
	s, signed, signer, verifier := statement(t)
	if read, err := audit.OpenStatement(signed, verifier); err != nil || read != s {
		t.Errorf("%+v, %v", read, err)
	}
	for at := range signed {
		altered := append([]byte{}, signed...)
		altered[at] ^= 1
		if _, err := audit.OpenStatement(altered, verifier); err == nil {
			t.Errorf("byte %d was altered unseen", at)
		}
	}
	_, _, _, stranger := statement(t)
	if _, err := audit.OpenStatement(signed, stranger); !errors.Is(err, audit.ErrUntrusted) && !errors.Is(err, audit.ErrSignature) {
		t.Errorf("a stranger's key: %v", err)
	}
	if _, err := audit.OpenCheckpoint(signed, verifier); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("as a checkpoint: %v", err)
	}
	checkpoint, err := audit.SignCheckpoint(audit.Checkpoint{Origin: signer.Name()}, signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenStatement(checkpoint, verifier); !errors.Is(err, audit.ErrStatement) {
		t.Errorf("a checkpoint: %v", err)
	}
	for name, bad := range map[string]func(*audit.Statement){
		"a line more":   func(s *audit.Statement) { s.Actor.ID = "alice\nbob" },
		"another log":   func(s *audit.Statement) { s.Origin = "example.org/other" },
		"no name":       func(s *audit.Statement) { s.Origin = "" },
		"another place": func(s *audit.Statement) { s.Subject = "a\nb" },
	} {
		wrong := s
		bad(&wrong)
		if _, err := audit.SignStatement(&wrong, signer); err == nil {
			t.Errorf("%s: it was signed", name)
		}
	}
}

// FuzzStatement: what is read is in its only form.
func FuzzStatement(f *testing.F) {
	_, signed, signer, verifier := statement(f)
	f.Add(signed)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := audit.OpenStatement(b, verifier)
		if err != nil {
			return
		}
		if again, err := audit.SignStatement(&s, signer); err != nil || string(again) != string(b) {
			t.Errorf("%q was read, which is %q, %v", b, again, err)
		}
	})
}
