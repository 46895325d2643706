package identity

import (
	"bytes"
	"encoding/hex"

	"github.com/keyturn/keyturn/secret"
)

// Forge returns a well-formed text with the ID of a token and another secret.
func Forge(id string) secret.Value {
	raw, err := hex.DecodeString(id)
	if err != nil {
		panic(err)
	}
	_, text, _, err := mintToken(bytes.NewReader(append(raw, bytes.Repeat([]byte{7}, secretBytes)...)))
	if err != nil {
		panic(err)
	}
	return text
}
