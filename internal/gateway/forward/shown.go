package forward

import (
	"strings"

	"github.com/keyturn/keyturn/client/tokencheck"
)

// The headers of clients that are read.
const (
	headerAuthorization = "Authorization"
	headerAPIKey        = "X-Api-Key" //nolint:gosec // the name of a header
	headerProof         = "Dpop"
)

// maxProof bounds a proof of possession, in bytes; it is checked in full elsewhere.
const maxProof = 4 << 10

// headers returns the values of a header by its canonical name, one for each time that it
// is there.
type headers func(name string) []string

// shown is the credential of a request.
type shown struct {
	text string
	// dpop: it was shown with the scheme DPoP; header: in X-API-Key.
	dpop, header bool
	proofs       []string
}

// readShown finds the credential. The outcome is zero if there is one, Missing or
// Malformed else. Two credentials are as bad as none that can be read: which of them the
// origin would go by is not known here. A proxy may have joined two of a name by a comma,
// which no credential contains.
func readShown(values headers) (shown, Outcome) {
	keys, authorizations := values(headerAPIKey), values(headerAuthorization)
	switch {
	case len(keys)+len(authorizations) == 0:
		return shown{}, Missing
	case len(keys)+len(authorizations) > 1:
		return shown{}, Malformed
	case len(keys) == 1:
		if !isCredential(keys[0]) {
			return shown{}, Malformed
		}
		return shown{text: keys[0], header: true}, 0
	}
	scheme, text, _ := strings.Cut(authorizations[0], " ")
	s := shown{text: strings.TrimLeft(text, " ")}
	switch {
	case strings.EqualFold(scheme, "Bearer"):
	case strings.EqualFold(scheme, "DPoP"):
		s.dpop = true
		s.proofs = values(headerProof)
		if len(s.proofs) > 1 || len(s.proofs) == 1 && len(s.proofs[0]) > maxProof {
			return shown{}, Malformed
		}
	case isCredential(scheme):
		return shown{}, Missing // it is for somebody else
	default:
		return shown{}, Malformed
	}
	if !isCredential(s.text) {
		return shown{}, Malformed
	}
	return s, 0
}

// isCredential reports whether text is a token68 (RFC 9110, section 11.2), as API keys and
// access tokens are, of a size that is read.
func isCredential(text string) bool {
	if text == "" || len(text) > tokencheck.MaxToken {
		return false
	}
	for i := range len(text) {
		switch c := text[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~+/=", c) >= 0:
		default:
			return false
		}
	}
	return true
}
