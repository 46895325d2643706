package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/keyturn/keyturn/secret"
)

// A token reads kt_ID_SECRET: ID names it in lists and audit entries, SECRET is
// 32 random bytes and a checksum, so that a scanner can tell a token from
// something that looks like one.
const (
	tokenPrefix = "kt_"
	idBytes     = 8
	secretBytes = 32
)

// errMalformed says that a text is no token of this server's form.
var errMalformed = errors.New("malformed token")

// mintToken draws a new token and returns its ID, its text and its hash.
func mintToken(random io.Reader) (id string, token secret.Value, hash [32]byte, err error) {
	raw := make([]byte, idBytes+secretBytes)
	if _, err := io.ReadFull(random, raw); err != nil {
		return "", secret.Value{}, hash, fmt.Errorf("draw a token: %w", err)
	}
	id = hex.EncodeToString(raw[:idBytes])
	body := raw[idBytes:]
	sum := crc32.ChecksumIEEE(append([]byte(tokenPrefix+id), body...))
	body = append(body, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
	token = secret.NewString(tokenPrefix + id + "_" + base64.RawURLEncoding.EncodeToString(body))
	return id, token, sha256.Sum256(token.Reveal()), nil
}

// splitToken checks the form of a token and returns its ID and its hash.
func splitToken(token secret.Value) (id string, hash [32]byte, err error) {
	hash = sha256.Sum256(token.Reveal())
	rest, ok := strings.CutPrefix(token.RevealString(), tokenPrefix)
	id, encoded, found := strings.Cut(rest, "_")
	if !ok || !found || len(id) != 2*idBytes {
		return "", hash, errMalformed
	}
	body, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(body) != secretBytes+4 {
		return "", hash, errMalformed
	}
	sum := crc32.ChecksumIEEE(append([]byte(tokenPrefix+id), body[:secretBytes]...))
	if [4]byte(body[secretBytes:]) != [4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)} {
		return "", hash, errMalformed
	}
	return id, hash, nil
}
