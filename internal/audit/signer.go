package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/secret"
)

// ErrKey is wrapped by every error about a signing or verifier key, or about the
// name of a log. It never contains the key.
var ErrKey = errors.New("invalid audit key")

const signingPrefix = "PRIVATE+KEY+"

// maxOrigin bounds the name of a log, in bytes.
const maxOrigin = 255

// checkOrigin checks the name of a log: printable ASCII without space and "+",
// and without what JSON or HTML would escape.
func checkOrigin(origin string) error {
	if origin == "" || len(origin) > maxOrigin {
		return fmt.Errorf("%w: the name of a log has 1 to %d characters, for example keyturn.example.org/audit", ErrKey, maxOrigin)
	}
	for i := range len(origin) {
		if c := origin[i]; c <= ' ' || c > '~' || strings.IndexByte(`+"\<>&`, c) >= 0 {
			return fmt.Errorf("%w: character %q in the name of a log; use letters, digits, '.', '-', '_', ':' and '/'", ErrKey, c)
		}
	}
	return nil
}

// GenerateKey returns a new Ed25519 key for the log named origin, which signs its
// checkpoints, and the verifier key to hand to auditors. random must be
// cryptographically secure.
func GenerateKey(random io.Reader, origin string) (signing secret.Value, verifier string, err error) {
	if err := checkOrigin(origin); err != nil {
		return secret.Value{}, "", err
	}
	private, public, err := note.GenerateKey(random, origin)
	if err != nil {
		return secret.Value{}, "", fmt.Errorf("generate the key of audit log %q: %w", origin, err)
	}
	return secret.NewString(private), public, nil
}

// Signer signs the checkpoints of one log. It implements note.Signer and may be
// used concurrently.
type Signer struct {
	note.Signer
	verifierKey string
}

// VerifierKey returns the public half, as ParseVerifier reads it.
func (s *Signer) VerifierKey() string { return s.verifierKey }

// ParseSigner reads a signing key that GenerateKey returned. The error wraps
// ErrKey.
func ParseSigner(signing secret.Value) (*Signer, error) {
	text := signing.RevealString()
	signer, err := note.NewSigner(text)
	if err != nil {
		// The error of note.NewSigner is one of three fixed texts, which speak of a
		// verifier; it never contains the key.
		hint := "it is damaged, or not complete; restore it from the backup"
		if !strings.HasPrefix(text, signingPrefix) {
			hint = "a signing key begins with " + signingPrefix + "; this may be the verifier key"
		}
		return nil, fmt.Errorf("%w: it does not parse as a signing key: %s", ErrKey, hint)
	}
	if err := checkOrigin(signer.Name()); err != nil {
		return nil, err
	}
	// The text is PRIVATE+KEY+name+hash+base64, and the name contains no "+".
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(text, "+", 5)[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, fmt.Errorf("%w: the signing key is not an Ed25519 key", ErrKey)
	}
	public := ed25519.PublicKey(ed25519.NewKeyFromSeed(raw[1:])[ed25519.SeedSize:])
	verifier, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Signer{Signer: signer, verifierKey: verifier}, nil
}

// ParseVerifier reads a verifier key in its only form. The error wraps ErrKey.
func ParseVerifier(verifier string) (note.Verifier, error) {
	if strings.HasPrefix(verifier, signingPrefix) {
		return nil, fmt.Errorf("%w: this is the signing key, which nobody but the server may have; give the verifier key, and replace the signing key if it left the server", ErrKey)
	}
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; a verifier key looks like keyturn.example.org/audit+1a2b3c4d+AbCd…; copy all of it", ErrKey, err)
	}
	if err := checkOrigin(v.Name()); err != nil {
		return nil, err
	}
	parts := strings.SplitN(verifier, "+", 3)
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	only, err := note.NewEd25519VerifierKey(v.Name(), raw[1:])
	if err != nil || only != verifier {
		return nil, fmt.Errorf("%w: the verifier key of %q is not in its only form; copy it anew", ErrKey, v.Name())
	}
	return v, nil
}

// keyID names a key in reports, as package note does.
func keyID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }
