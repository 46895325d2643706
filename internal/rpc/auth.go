package rpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

type (
	callerKey  struct{}
	refusedKey struct{}
)

// Gate bounds what callers can ask for. Its methods may be called concurrently.
type Gate interface {
	// Blocked reports whether the caller's address showed too many bad tokens.
	Blocked(r *http.Request) bool
	// Refused is told of every bad token.
	Refused(r *http.Request)
	// Admit reports whether a token, by its ID, may make another call now.
	Admit(token string) bool
}

// tooMany says that the caller should come back later.
func tooMany(after time.Duration, what string) error {
	err := connect.NewError(connect.CodeResourceExhausted, errors.New(what))
	err.Meta().Set("Retry-After", strconv.Itoa(int(after.Seconds())))
	return err
}

func errBlocked() error {
	return tooMany(10*time.Second, "too many bad tokens from this address; wait ten seconds")
}

// Authenticate wraps a handler so that it runs for authenticated callers only. An
// address that showed too many bad tokens is still served when its token was
// good lately: one misconfigured agent does not shut out its neighbours.
func (s *Service) Authenticate(next http.Handler, gate Gate) http.Handler {
	writer := connect.NewErrorWriter()
	identify := func(r *http.Request) (identity.Caller, error) {
		text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			return identity.Caller{}, connect.NewError(connect.CodeUnauthenticated, errors.New("a bearer token is needed; set KEYTURN_TOKEN, or run keyturn login"))
		}
		token := secret.NewString(text)
		if gate.Blocked(r) && !s.config.Identity.Recent(token) {
			return identity.Caller{}, errBlocked()
		}
		caller, err := s.config.Identity.Authenticate(r.Context(), token)
		if errors.Is(err, identity.ErrUnauthenticated) {
			gate.Refused(r)
		}
		if err == nil && !gate.Admit(caller.ID) {
			err = tooMany(time.Second, "too many calls with this token; wait a second")
		}
		return caller, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := identify(r)
		if err != nil {
			_ = writer.Write(w, r, wire(err)) // the caller is gone if this fails
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
	})
}

// Public wraps a handler of calls that carry their proof in the request: bad
// ones count like bad tokens.
func (s *Service) Public(next http.Handler, gate Gate) http.Handler {
	writer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gate.Blocked(r) {
			_ = writer.Write(w, r, errBlocked()) // the caller is gone if this fails
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), refusedKey{}, func() { gate.Refused(r) })))
	})
}

// Everything wraps a handler, inside Authenticate, of what concerns all keys: it
// needs a role that reads, and a token that covers every key.
func (s *Service) Everything(next http.Handler) http.Handler {
	writer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.allowEverything(r.Context(), authz.Read); err != nil {
			_ = writer.Write(w, r, err) // the caller is gone if this fails
			return
		}
		next.ServeHTTP(w, r)
	})
}

// caller returns who calls; Authenticate put it there.
func caller(ctx context.Context) (identity.Caller, error) {
	c, ok := ctx.Value(callerKey{}).(identity.Caller)
	if !ok {
		return c, connect.NewError(connect.CodeUnauthenticated, errors.New("the call carries no identity"))
	}
	return c, nil
}

// coversAll reports whether a token covers every key there may ever be.
func coversAll(p authz.Principal) bool { return slices.Contains(p.Keys, "**") }

// allowEverything returns the caller if it may do a to all keys there may ever be.
func (s *Service) allowEverything(ctx context.Context, a authz.Action) (authz.Principal, error) {
	principal, err := s.allow(ctx, a, "")
	if err != nil {
		return principal, err
	}
	if !coversAll(principal) {
		err := fmt.Errorf("%w: it tells of all keys, and the token of %s covers only %s; use one that covers **", authz.ErrDenied, principal.Name, strings.Join(principal.Keys, ", "))
		return principal, s.deny(ctx, principal, a, "", err)
	}
	return principal, nil
}

// actorOf is the caller as audit entries name it.
func actorOf(p authz.Principal) audit.Actor {
	kind := "user"
	if p.Role == authz.Agent || p.Role == authz.Gateway {
		kind = p.Role.String()
	}
	return audit.Actor{ID: p.Name, Kind: kind}
}

// allow returns the caller if it may do a to the key; an empty name stands for
// what concerns no single key. A denial is entered into the audit log.
func (s *Service) allow(ctx context.Context, a authz.Action, name key.Name) (authz.Principal, error) {
	c, err := caller(ctx)
	principal := c.Principal
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
func parseKey(field, s string) (key.Name, error) {
	name, err := key.ParseName(s)
	if err != nil {
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s: %w", field, err))
	}
	return name, nil
}

// maySpeakFor authorises the caller for a party: by its name, and, because a
// party may be changed by those only who are trusted with all that it presents,
// for every key that it is registered for.
func (s *Service) maySpeakFor(ctx context.Context, principal authz.Principal, id string) error {
	if err := authz.MaySpeakFor(principal, id); err != nil {
		return s.deny(ctx, principal, authz.Present, "", err)
	}
	err := s.coveredParty(ctx, principal, authz.Present, id)
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil // it is new
	}
	return err
}

// coveredParty reports whether the caller's token covers every key that a party
// is registered for.
func (s *Service) coveredParty(ctx context.Context, principal authz.Principal, a authz.Action, id string) error {
	party, err := s.config.Engine.Party(ctx, id)
	if err != nil {
		return wire(err)
	}
	for _, name := range party.Keys {
		if !authz.Covers(principal.Keys, name) {
			err := fmt.Errorf("%w: party %q presents keys that the token of %s does not cover; use one that covers them all", authz.ErrDenied, id, principal.Name)
			return s.deny(ctx, principal, a, name, err)
		}
	}
	return nil
}
