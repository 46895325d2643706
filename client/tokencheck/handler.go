package tokencheck

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/keyturn/keyturn/internal/dpop"
)

// claimsKey is where Handler puts the claims.
type claimsKey struct{}

// From returns the claims of the token that Handler has verified.
func From(ctx context.Context) (*Claims, bool) {
	claims, ok := ctx.Value(claimsKey{}).(*Claims)
	return claims, ok
}

// Handler lets requests with a valid token that has all scopes through to next, where
// From has the claims, and answers the others as the standards say (RFC 6750, section
// 3; RFC 9449, section 7): 401, 403 for a scope that is missing, 503 when it cannot
// be told.
func (c *Checker) Handler(next http.Handler, scopes ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, err := c.Request(r)
		header := w.Header()
		if c.config.Nonces {
			header.Set("DPoP-Nonce", c.Nonce())
		}
		challenge := `Bearer realm="keyturn"`
		if len(c.config.Origins) > 0 && (c.config.Bound || len(r.Header.Values("DPoP")) > 0) {
			challenge = `DPoP algs="` + proofAlgorithms() + `"`
		}
		switch {
		case errors.Is(err, ErrUnsure):
			header.Set("Retry-After", "2")
			http.Error(w, "access tokens cannot be verified now; ask again", http.StatusServiceUnavailable)
		case errors.Is(err, ErrNonce):
			header.Set("WWW-Authenticate", challenge+`, error="use_dpop_nonce"`)
			http.Error(w, "make the proof with the nonce of the header DPoP-Nonce", http.StatusUnauthorized)
		case err != nil && len(r.Header.Values("Authorization")) == 0:
			header.Set("WWW-Authenticate", challenge)
			http.Error(w, "an access token is needed", http.StatusUnauthorized)
		case err != nil:
			header.Set("WWW-Authenticate", challenge+`, error="invalid_token"`)
			http.Error(w, "the access token is not valid here", http.StatusUnauthorized)
		default:
			for _, scope := range scopes {
				if !claims.Has(scope) {
					header.Set("WWW-Authenticate", challenge+`, error="insufficient_scope", scope="`+strings.Join(scopes, " ")+`"`)
					http.Error(w, "the access token lacks a scope", http.StatusForbidden)
					return
				}
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), claimsKey{}, &claims)))
		}
	})
}

// proofAlgorithms are those of proofs, as a challenge names them.
func proofAlgorithms() string {
	var names []string
	for _, a := range dpop.Algorithms() {
		names = append(names, string(a))
	}
	return strings.Join(names, " ")
}
