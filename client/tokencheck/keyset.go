package tokencheck

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/webtoken"
)

const (
	// maxSet bounds a set in bytes, maxKeys its keys.
	maxSet  = 1 << 20
	maxKeys = 1000
	// minRSA and maxRSA bound the size of an RSA key, in bits: more costs more than it is worth.
	minRSA, maxRSA = 2048, 8192
	// defaultLife is how long a set may be kept that does not say; mostLife bounds what
	// one may say.
	defaultLife = 5 * time.Minute
	mostLife    = 24 * time.Hour
)

// keySet is a set as it was fetched; it is not changed.
type keySet struct {
	keys map[string]webtoken.Key
	etag string
	// life is for how long it may be kept, fetched when it was asked for.
	life    time.Duration
	fetched time.Time
}

// age is by the monotonic and by the wall clock: who was frozen holds no old set for a
// new one.
func (s *keySet) age(now time.Time) time.Duration {
	return max(now.Sub(s.fetched), now.Round(0).Sub(s.fetched.Round(0)))
}

// readSet takes from a set the keys by which tokens may be signed. What else is in it
// does not count: private and symmetric keys, those for other uses, without a kid or
// an algorithm of the list. A set with two keys of one kid is refused.
func readSet(body []byte, algorithms []string) (map[string]webtoken.Key, error) {
	if len(body) > maxSet {
		return nil, errors.New("the set of keys is too large")
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(body, &set) != nil || set.Keys == nil {
		return nil, errors.New("it is no set of keys")
	}
	if len(set.Keys) > maxKeys {
		return nil, errors.New("the set has too many keys")
	}
	keys := map[string]webtoken.Key{}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) != nil || !k.IsPublic() || !k.Valid() || k.KeyID == "" || k.Use != "" && k.Use != "sig" ||
			!slices.Contains(algorithms, k.Algorithm) || !fits(k.Key, jose.SignatureAlgorithm(k.Algorithm)) {
			continue
		}
		if _, twice := keys[k.KeyID]; twice {
			return nil, errors.New("the set has two keys of one kid")
		}
		keys[k.KeyID] = webtoken.Key{Public: k.Key, Algorithm: jose.SignatureAlgorithm(k.Algorithm)}
	}
	return keys, nil
}

// fits reports whether a key is one for an algorithm (RFC 7518, section 3; RFC 8037).
func fits(k any, algorithm jose.SignatureAlgorithm) bool {
	switch k := k.(type) {
	case ed25519.PublicKey:
		return algorithm == jose.EdDSA
	case *ecdsa.PublicKey:
		bits := map[jose.SignatureAlgorithm]int{jose.ES256: 256, jose.ES384: 384, jose.ES512: 521}[algorithm]
		return bits != 0 && k.Curve.Params().BitSize == bits
	case *rsa.PublicKey:
		rs := strings.HasPrefix(string(algorithm), "RS") || strings.HasPrefix(string(algorithm), "PS")
		return rs && k.N.BitLen() >= minRSA && k.N.BitLen() <= maxRSA
	}
	return false
}

// lifeOf is how long an answer may be kept (RFC 9111, section 5.2.2), less the time it
// spent in caches.
func lifeOf(header http.Header) time.Duration {
	life, said := defaultLife, false
	for _, value := range header.Values("Cache-Control") {
		for directive := range strings.SplitSeq(value, ",") {
			name, text, _ := strings.Cut(strings.ToLower(strings.TrimSpace(directive)), "=")
			switch name {
			case "no-store", "no-cache":
				return 0
			case "max-age":
				seconds, err := strconv.ParseUint(strings.Trim(text, `"`), 10, 31)
				if err != nil {
					return 0
				}
				// Of two the shorter counts.
				if d := time.Duration(seconds) * time.Second; !said || d < life {
					life, said = d, true
				}
			}
		}
	}
	if age, err := strconv.ParseUint(header.Get("Age"), 10, 31); err == nil {
		life -= time.Duration(age) * time.Second
	}
	return min(max(life, 0), mostLife)
}
