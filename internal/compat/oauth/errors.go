package oauth

import (
	"errors"
	"net/http"

	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/token"
)

// fail answers a request that is refused.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	header := w.Header()
	if wanted := new(broker.NonceError); errors.As(err, &wanted) {
		header.Set("DPoP-Nonce", wanted.Nonce)
	}
	switch {
	case p.code == "invalid_client":
		header.Set("WWW-Authenticate", `Basic realm="keyturn"`)
		h.config.Refused(r)
	case p.status == http.StatusServiceUnavailable:
		header.Set("Retry-After", "1")
	case errors.Is(err, broker.ErrRequest):
		h.config.Refused(r) // a subject token that is none
	}
	refuse(w, p)
}

// problemOf is what a caller is told of an error. What a token, a key or a rule lacks
// stands in the server's log and audit log.
func problemOf(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	bad := func(code, text string) *problem { return &problem{http.StatusBadRequest, code, text} }
	switch {
	case errors.Is(err, broker.ErrAway), errors.Is(err, token.ErrNotReady), errors.Is(err, broker.ErrProofs):
		return &problem{http.StatusServiceUnavailable, "temporarily_unavailable", "this cannot be answered now; ask again, with pauses that grow"}
	case errors.Is(err, broker.ErrNonce):
		return bad("use_dpop_nonce", "make the proof with the nonce of the header DPoP-Nonce")
	case errors.Is(err, broker.ErrProof):
		return bad("invalid_dpop_proof", "make a new proof for each request (RFC 9449)")
	case errors.Is(err, broker.ErrClient):
		return &problem{http.StatusUnauthorized, "invalid_client", "the client is not authenticated"}
	case errors.Is(err, broker.ErrTarget):
		return bad("invalid_target", "ask for an audience that a rule grants you")
	case errors.Is(err, broker.ErrScope):
		return bad("invalid_scope", "ask for scopes that a rule grants you, by name")
	case errors.Is(err, broker.ErrBinding):
		return bad("invalid_request", "a proof of possession is demanded: send the header DPoP (RFC 9449) or show a client certificate (RFC 8705), as the rule says")
	case errors.Is(err, broker.ErrGrant):
		return bad("unauthorized_client", "no rule grants this to what was proven; the server's audit log counts it")
	case errors.Is(err, broker.ErrReplay):
		return bad("invalid_request", "the subject token was exchanged before; ask your platform for another one")
	case errors.Is(err, broker.ErrRequest):
		return bad("invalid_request", "the subject token is not accepted")
	case errors.Is(err, broker.ErrRevokedFull):
		return &problem{http.StatusServiceUnavailable, "temporarily_unavailable", err.Error()}
	}
	return &problem{http.StatusInternalServerError, "server_error", "something is wrong with the server; its log says what"}
}
