package forward

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/compat/apikeys"
)

// verifyHandler answers POST /v1/apikeys/verify as the server does.
func (s *Service) verifyHandler() http.Handler {
	writer := connect.NewErrorWriter()
	handlers := apikeys.New(apikeys.Config{
		Keys: verifier{s.config.Keys},
		// Which keys there are to be known here the token of the gateway has decided.
		Principal: func(context.Context) (authz.Principal, error) {
			return authz.Principal{Role: authz.Verifier, Keys: []string{"**"}}, nil
		},
		Refuse: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusForbidden) },
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.allowed(r) {
			err := connect.NewError(connect.CodeUnauthenticated, errors.New("show a token of a proxy or service of this gateway"))
			_ = writer.Write(w, r, err) // the caller is gone if this fails
			return
		}
		handlers.Verify(w, r)
	})
}

// verifier is a Keys as the server's handlers want it.
type verifier struct{ keys Keys }

// Verify implements apikeys.Keys. The application is not told on: uses are reported under
// the name of the gateway.
func (v verifier) Verify(text string, caller apikey.Caller) (apikey.Verdict, error) {
	address := ""
	if addr, err := netip.ParseAddr(caller.Address); err == nil {
		address = addr.Unmap().WithZone("").String()
	}
	return verdictOf(v.keys.Check(text, address))
}

// Identify implements apikeys.Keys.
func (v verifier) Identify(text string) (apikey.Verdict, error) {
	return verdictOf(v.keys.Identify(text))
}

func verdictOf(r apikeycheck.Result, err error) (apikey.Verdict, error) {
	verdict := apikey.Verdict{Key: r.Key, Version: r.Version, Client: r.Client, Scopes: r.Scopes, Expires: r.Expires, Left: r.Left, Retry: r.Retry}
	switch {
	case err == nil:
		return verdict, nil
	case errors.Is(err, apikeycheck.ErrLimited):
		return verdict, apikey.ErrLimited
	case errors.Is(err, apikeycheck.ErrRefused):
		return apikey.Verdict{}, apikey.ErrRefused
	}
	return apikey.Verdict{}, apikey.ErrUnsure
}
