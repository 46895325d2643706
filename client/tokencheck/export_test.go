package tokencheck

import "crypto"

// ReadSet returns the public keys of a set, by kid.
func ReadSet(body []byte) (map[string]crypto.PublicKey, error) {
	var names []string
	for _, a := range asymmetric() {
		names = append(names, string(a))
	}
	keys, err := readSet(body, names)
	out := map[string]crypto.PublicKey{}
	for kid, k := range keys {
		out[kid] = k.public
	}
	return out, err
}
