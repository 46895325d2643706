package tokencheck

import (
	"crypto"

	"github.com/keyturn/keyturn/internal/webtoken"
)

// ReadSet returns the public keys of a set, by kid.
func ReadSet(body []byte) (map[string]crypto.PublicKey, error) {
	var names []string
	for _, a := range webtoken.Algorithms() {
		names = append(names, string(a))
	}
	keys, err := readSet(body, names)
	out := map[string]crypto.PublicKey{}
	for kid, k := range keys {
		out[kid] = k.Public
	}
	return out, err
}
