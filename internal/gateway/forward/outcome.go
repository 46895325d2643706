package forward

import "net/http"

// Kind is what kind of credential was shown. The zero value is none that could be read.
type Kind uint8

// The kinds.
const (
	APIKey Kind = iota + 1
	AccessToken
)

// String returns the name that answers and metrics have.
func (k Kind) String() string {
	switch k {
	case APIKey:
		return "apikey"
	case AccessToken:
		return "token"
	}
	return "none"
}

// Outcome is what became of a request. The zero value is invalid.
type Outcome uint8

// The outcomes.
const (
	// Admitted: the credential is good and does what the gate needs.
	Admitted Outcome = iota + 1
	// Missing: there is no credential.
	Missing
	// Malformed: there are several, or what is there is none.
	Malformed
	// Refused: it is not valid, or of a kind that the gate does not accept.
	Refused
	// Unproven: it came with a proof of possession, and the gate is not told what for.
	Unproven
	// WantsNonce: its proof of possession needs a nonce, which the answer has.
	WantsNonce
	// Outside: it is good, and of a key or client that the gate does not name.
	Outside
	// Lacking: it is good, and lacks a scope.
	Lacking
	// Limited: it is good, and used more often than it may be.
	Limited
	// Unsure: it cannot be told now.
	Unsure
	// TooLarge: the headers of the request are too large.
	TooLarge
	// NoGate: the proxy has asked for a gate that there is not.
	NoGate
	// BadCaller: whoever asked may not ask.
	BadCaller

	lastOutcome = BadCaller
)

// String returns the name that answers and metrics have.
func (o Outcome) String() string {
	if o == 0 || o > lastOutcome {
		return "invalid"
	}
	return [...]string{
		"", "ok", "missing", "malformed", "refused", "unproven", "nonce", "outside", "scope", "limited", "unsure", "large", "no-gate", "caller",
	}[o]
}

// status is the HTTP status of an answer; with few one of 200, 401, 403 and, for a gate
// that there is not, 404.
func (o Outcome) status(few bool) int {
	pick := func(right, otherwise int) int {
		if few {
			return otherwise
		}
		return right
	}
	switch o {
	case Admitted:
		return http.StatusOK
	case Missing, Refused, Unproven, WantsNonce:
		return http.StatusUnauthorized
	case Malformed:
		return pick(http.StatusBadRequest, http.StatusUnauthorized)
	case Outside, Lacking, BadCaller:
		return http.StatusForbidden
	case Limited:
		return pick(http.StatusTooManyRequests, http.StatusForbidden)
	case Unsure:
		return pick(http.StatusServiceUnavailable, http.StatusForbidden)
	case TooLarge:
		return pick(http.StatusRequestHeaderFieldsTooLarge, http.StatusForbidden)
	case NoGate:
		return http.StatusNotFound
	}
	return http.StatusForbidden
}

// text is what the client is told.
func (o Outcome) text() string {
	switch o {
	case Admitted:
		return ""
	case Missing:
		return "an API key or access token is needed: Authorization: Bearer …"
	case Malformed:
		return "show one credential, once, in the header Authorization or X-API-Key"
	case Refused, Unproven:
		return "the credential is not valid here"
	case WantsNonce:
		return "make the proof with the nonce of the header DPoP-Nonce"
	case Outside:
		return "the credential is good, and not for this"
	case Lacking:
		return "the credential lacks a scope"
	case Limited:
		return "the credential is used too often; try again later"
	case Unsure:
		return "credentials cannot be verified now; try again later"
	case TooLarge:
		return "the headers of the request are too large"
	case NoGate:
		return "there is no gate of this name"
	case BadCaller:
		return "this may not be asked by everybody"
	}
	return "no"
}
