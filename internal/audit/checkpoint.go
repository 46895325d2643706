package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var (
	// ErrCheckpoint: a signed checkpoint is not well-formed.
	ErrCheckpoint = errors.New("malformed audit checkpoint")
	// ErrSignature: the signature of a checkpoint or statement does not verify.
	ErrSignature = errors.New("invalid signature of an audit checkpoint")
	// ErrUntrusted: a checkpoint or statement is signed by a key that is not among those
	// given.
	ErrUntrusted = errors.New("audit checkpoint signed by an unknown key")
)

// maxNote bounds a signed checkpoint, in bytes.
const maxNote = 4 << 10

// Checkpoint states what a log looked like when it had Size entries.
type Checkpoint struct {
	// Origin is the name of the log. The keys that sign for it carry the same name.
	Origin string
	// Size is the number of entries, Root the root of the tree over them.
	Size uint64
	Root Hash
}

// CheckpointAt returns the checkpoint, not signed yet, of the first size entries
// of a log. It asks hashes once, for at most 1+log₂(size) of them.
func CheckpointAt(origin string, size uint64, hashes tlog.HashReader) (Checkpoint, error) {
	_, root, err := loadFrontier(size, hashes)
	if err != nil {
		return Checkpoint{}, err
	}
	return Checkpoint{Origin: origin, Size: size, Root: root}, nil
}

// text returns the checkpoint as C2SP tlog-checkpoint writes it.
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
}

// parseCheckpoint reads what text wrote, and nothing else.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, fmt.Errorf("%w: it does not have the three lines origin, size and root", ErrCheckpoint)
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > maxSize {
		return Checkpoint{}, fmt.Errorf("%w: the second line is not a number of entries", ErrCheckpoint)
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: the third line is not a hash", ErrCheckpoint)
	}
	c := Checkpoint{Origin: lines[0], Size: size, Root: root}
	if c.text() != text {
		return Checkpoint{}, fmt.Errorf("%w: the size or the root is not in its only form", ErrCheckpoint)
	}
	return c, nil
}

// SignCheckpoint returns c as a signed note with one signature. The signer's
// name must be c.Origin; it may sign in hardware.
func SignCheckpoint(c Checkpoint, signer note.Signer) ([]byte, error) {
	if err := checkOrigin(c.Origin); err != nil {
		return nil, err
	}
	if signer.Name() != c.Origin {
		return nil, fmt.Errorf("the key of %q cannot sign for the audit log %q", signer.Name(), c.Origin)
	}
	if c.Size > maxSize {
		return nil, fmt.Errorf("%w: size %d is beyond the limit of %d", ErrCheckpoint, c.Size, uint64(maxSize))
	}
	signed, err := note.Sign(&note.Note{Text: c.text()}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign the checkpoint of audit log %q at %d: %w", c.Origin, c.Size, err)
	}
	return signed, nil
}

// OpenCheckpoint reads a signed note that carries exactly one signature, by one
// of the verifiers. The error wraps ErrCheckpoint, ErrSignature or ErrUntrusted.
func OpenCheckpoint(signed []byte, verifiers ...note.Verifier) (Checkpoint, error) {
	c, _, err := openCheckpoint(signed, note.VerifierList(verifiers...))
	return c, err
}

// openCheckpoint is OpenCheckpoint; it also returns the ID of the key that signed.
func openCheckpoint(signed []byte, verifiers note.Verifiers) (Checkpoint, string, error) {
	text, signature, err := openNote(signed, verifiers, ErrCheckpoint)
	if err != nil {
		return Checkpoint{}, "", err
	}
	c, err := parseCheckpoint(text)
	if err != nil {
		return Checkpoint{}, "", err
	}
	if c.Origin != signature.Name {
		return Checkpoint{}, "", fmt.Errorf("%w: the key of %q signed for log %q", ErrUntrusted, signature.Name, c.Origin)
	}
	return c, keyID(signature.Name, signature.Hash), nil
}

// openNote returns the text of a signed note that carries exactly one signature, by one
// of the verifiers, in its only form. The error wraps malformed, ErrSignature or
// ErrUntrusted.
func openNote(signed []byte, verifiers note.Verifiers, malformed error) (text string, by note.Signature, err error) {
	if len(signed) > maxNote {
		return "", by, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", malformed, len(signed), maxNote)
	}
	n, err := note.Open(signed, verifiers)
	if unverified := new(note.UnverifiedNoteError); errors.As(err, &unverified) {
		signer := unverified.Note.UnverifiedSigs[0]
		return "", by, fmt.Errorf("%w, %q; give its verifier key, if you trust it", ErrUntrusted, keyID(signer.Name, signer.Hash))
	}
	if invalid := new(note.InvalidSignatureError); errors.As(err, &invalid) {
		return "", by, fmt.Errorf("%w: key %s did not sign this text", ErrSignature, keyID(invalid.Name, invalid.Hash))
	}
	if err != nil {
		return "", by, fmt.Errorf("%w: %w", malformed, err)
	}
	// note.Open skips what it does not know and repetitions, and takes several
	// forms of base64; here only one form is accepted.
	signature := n.Sigs[0]
	raw, err := base64.StdEncoding.Strict().DecodeString(signature.Base64)
	only := n.Text + "\n— " + signature.Name + " " + base64.StdEncoding.EncodeToString(raw) + "\n"
	if err != nil || only != string(signed) {
		return "", by, fmt.Errorf("%w: it does not carry exactly one signature in its only form", malformed)
	}
	return n.Text, signature, nil
}

// sizeOf returns the size in a signed checkpoint without checking its signature.
func sizeOf(signed []byte) (uint64, error) {
	text, _, found := strings.Cut(string(signed), "\n\n")
	if !found {
		return 0, fmt.Errorf("%w: it has no signature", ErrCheckpoint)
	}
	c, err := parseCheckpoint(text + "\n")
	return c.Size, err
}
