package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// ErrStatement: a signed statement is not well-formed.
var ErrStatement = errors.New("malformed statement of an audit log")

// Statement says that a document was brought to the server of a log: by whom, when and
// what about. It does not say that what is in the document is true. The key that signs
// the log's checkpoints signs it; its text is never that of a checkpoint, so that
// neither can pass for the other.
type Statement struct {
	// Origin is the name of the log, Subject what the document is about, for example
	// "rotation 4f2a…", Digest its SHA-256.
	Origin  string
	Subject string
	Digest  [sha256.Size]byte
	// At is when it was brought, in UTC to the microsecond, Actor by whom.
	At    time.Time
	Actor Actor
}

// statementHeader is the first line of a statement. A log cannot have that name.
const statementHeader = "keyturn statement 1"

func (s *Statement) text() string {
	return strings.Join([]string{statementHeader, s.Origin, s.Subject, hex.EncodeToString(s.Digest[:]), s.At.UTC().Format(time.RFC3339Nano), s.Actor.Kind, s.Actor.ID, ""}, "\n")
}

// parseStatement reads what text wrote, and nothing else.
func parseStatement(text string) (Statement, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 8 || lines[0] != statementHeader {
		return Statement{}, fmt.Errorf("%w: it does not have its seven lines", ErrStatement)
	}
	s := Statement{Origin: lines[1], Subject: lines[2], Actor: Actor{Kind: lines[5], ID: lines[6]}}
	sum, err := hex.DecodeString(lines[3])
	if err != nil || len(sum) != len(s.Digest) {
		return Statement{}, fmt.Errorf("%w: the fourth line is no SHA-256", ErrStatement)
	}
	s.Digest = [sha256.Size]byte(sum)
	if s.At, err = time.Parse(time.RFC3339Nano, lines[4]); err != nil {
		return Statement{}, fmt.Errorf("%w: the fifth line is no time", ErrStatement)
	}
	if s.text() != text {
		return Statement{}, fmt.Errorf("%w: it is not in its only form", ErrStatement)
	}
	return s, nil
}

// SignStatement returns s as a signed note with one signature. The signer's name must
// be s.Origin.
func SignStatement(s *Statement, signer note.Signer) ([]byte, error) {
	if err := checkOrigin(s.Origin); err != nil {
		return nil, err
	}
	if signer.Name() != s.Origin {
		return nil, fmt.Errorf("the key of %q cannot sign for the audit log %q", signer.Name(), s.Origin)
	}
	if _, err := parseStatement(s.text()); err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: s.text()}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign a statement of audit log %q: %w", s.Origin, err)
	}
	return signed, nil
}

// OpenStatement reads a signed note that carries exactly one signature, by one of the
// verifiers. The error wraps ErrStatement, ErrSignature or ErrUntrusted.
func OpenStatement(signed []byte, verifiers ...note.Verifier) (Statement, error) {
	text, signature, err := openNote(signed, note.VerifierList(verifiers...), ErrStatement)
	if err != nil {
		return Statement{}, err
	}
	s, err := parseStatement(text)
	if err == nil && s.Origin != signature.Name {
		err = fmt.Errorf("%w: the key of %q signed for log %q", ErrUntrusted, signature.Name, s.Origin)
	}
	return s, err
}
