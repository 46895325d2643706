package rpc

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

type principalKey struct{}

// Authenticate wraps a handler so that it runs for authenticated callers only.
// refused is told of every refused token; admit says whether a token, by its ID,
// may make another call now.
func (s *Service) Authenticate(next http.Handler, refused func(*http.Request), admit func(token string) bool) http.Handler {
	writer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			err := connect.NewError(connect.CodeUnauthenticated, errors.New("a bearer token is needed; set KEYTURN_TOKEN, or run keyturn login"))
			_ = writer.Write(w, r, err) // the caller is gone if this fails
			return
		}
		principal, err := s.config.Identity.Authenticate(r.Context(), secret.NewString(token))
		if err != nil {
			refused(r)
			_ = writer.Write(w, r, wire(err)) // the caller is gone if this fails
			return
		}
		if !admit(principal.ID) {
			err := connect.NewError(connect.CodeResourceExhausted, errors.New("too many calls with this token; wait a second"))
			_ = writer.Write(w, r, err) // the caller is gone if this fails
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), principalKey{}, principal)))
	})
}

// caller returns who calls; Authenticate put it there.
func caller(ctx context.Context) (authz.Principal, error) {
	principal, ok := ctx.Value(principalKey{}).(authz.Principal)
	if !ok {
		return principal, connect.NewError(connect.CodeUnauthenticated, errors.New("the call carries no identity"))
	}
	return principal, nil
}

// actorOf is the caller as audit entries name it.
func actorOf(p authz.Principal) audit.Actor {
	kind := "user"
	if p.Role == authz.Agent {
		kind = "agent"
	}
	return audit.Actor{ID: p.Name, Kind: kind}
}

// allow returns the caller if it may do a to the key; an empty name stands for
// what concerns no single key. A denial is entered into the audit log.
func (s *Service) allow(ctx context.Context, a authz.Action, name key.Name) (authz.Principal, error) {
	principal, err := caller(ctx)
	if err != nil {
		return principal, err
	}
	if err := authz.Allow(principal, a, name); err != nil {
		return principal, s.deny(ctx, principal, a, name, err)
	}
	return principal, nil
}

func (s *Service) deny(ctx context.Context, principal authz.Principal, a authz.Action, name key.Name, denial error) error {
	entry := audit.Entry{
		Action: "access.denied", Key: name, Outcome: audit.OutcomeDenied, Reason: denial.Error(),
		Detail: map[string]string{"action": a.String(), "token": principal.ID},
	}
	if s.denials.Allow() {
		if err := s.config.Engine.Record(ctx, actorOf(principal), entry); err != nil {
			return wire(err)
		}
	}
	return wire(denial)
}

// parseKey reads a key name of a request.
func parseKey(s string) (key.Name, error) {
	name, err := key.ParseName(s)
	if err != nil {
		return "", connect.NewError(connect.CodeInvalidArgument, err)
	}
	return name, nil
}
