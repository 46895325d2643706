package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/identity"
)

const (
	// gatewaySilent is how long a gateway may be away before doctor names it.
	gatewaySilent = 10 * time.Minute
	// maxGatewaysNamed is how many are named at once.
	maxGatewaysNamed = 10
)

// gateways knows the gateways there are: the parties and verifiers of tokens of the
// role gateway.
type gateways struct {
	identity *identity.Registry
	engine   *engine.Engine
	presence func(party string) (connected bool, lastSeen time.Time)
	// verifiers are those that verify API keys by a snapshot.
	verifiers func(ctx context.Context) ([]apikey.Known, error)
	now       func() time.Time
}

// gatewayPart is a gateway as a party, or as a verifier of API keys.
type gatewayPart struct {
	// Name is the party's ID, or the token's name and that of the verifier.
	Name      string
	Verifier  bool
	Keys      int
	Connected bool
	// Seen is when it was seen last; zero if that was before this server started.
	Seen time.Time
}

// list returns what is registered for tokens of the role gateway, and the names of
// those tokens for which nothing is. whole is false when there may be more tokens.
func (g gateways) list(ctx context.Context) (parts []gatewayPart, unused []identity.Token, whole bool, err error) {
	tokens, err := g.identity.List(ctx)
	if err != nil {
		return nil, nil, false, err
	}
	whole = len(tokens) < identity.MaxListed
	tokens = slices.DeleteFunc(tokens, func(t identity.Token) bool { return t.Role != authz.Gateway.String() })
	if len(tokens) == 0 {
		return nil, nil, whole, nil
	}
	verifiers, err := g.verifiers(ctx)
	if err != nil {
		return nil, nil, whole, err
	}
	seen := map[string]bool{}
	for i := range tokens {
		t, before := &tokens[i], len(parts)
		known := false
		err := g.parties(ctx, t, func(party *engine.PartyRecord) {
			known = true
			if seen[party.ID] {
				return // it has two tokens
			}
			seen[party.ID] = true
			part := gatewayPart{Name: party.ID, Keys: len(party.Keys)}
			part.Connected, part.Seen = g.presence(party.ID)
			parts = append(parts, part)
		})
		if err != nil {
			return nil, nil, whole, err
		}
		for _, v := range verifiers {
			if name, is := strings.CutPrefix(v.ID, t.ID+"/"); is && !v.Left {
				parts = append(parts, gatewayPart{Name: t.Name + " as verifier " + name, Verifier: true, Seen: v.Seen})
			}
		}
		if len(parts) == before && !known {
			unused = append(unused, *t)
		}
	}
	slices.SortFunc(parts, func(a, b gatewayPart) int { return cmp.Compare(a.Name, b.Name) })
	return parts, unused, whole, nil
}

// parties calls visit for the parties that a token may speak for.
func (g gateways) parties(ctx context.Context, t *identity.Token, visit func(*engine.PartyRecord)) error {
	id := cmp.Or(t.Party.ID, t.Name)
	party, err := g.engine.Party(ctx, id)
	if err == nil {
		visit(&party)
	}
	if err != nil && !errors.Is(err, engine.ErrNotFound) || t.Party.ID != "" {
		return ignoreNotFound(err)
	}
	beneath := t.Name + "/"
	for after := beneath; ; {
		page, err := g.engine.Parties(ctx, after, 1000)
		if err != nil {
			return err
		}
		for i := range page {
			if after = page[i].ID; !strings.HasPrefix(after, beneath) {
				return nil
			}
			visit(&page[i])
		}
		if len(page) < 1000 {
			return nil
		}
	}
}

func ignoreNotFound(err error) error {
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	return err
}

// silent reports whether a part of a gateway has been away for long.
func (g gateways) silent(p *gatewayPart) bool {
	return !p.Connected && g.now().Sub(p.Seen) >= gatewaySilent
}

func seenAt(t time.Time) string {
	if t.IsZero() {
		return "since this server started"
	}
	return "since " + t.UTC().Format(time.DateTime)
}

// check tells doctor of the gateways that are away.
func (g gateways) check(ctx context.Context) (engine.Check, error) {
	check := engine.Check{Name: "gateways", Status: "ok", Message: "there is none"}
	parts, unused, whole, err := g.list(ctx)
	if err != nil {
		return check, err
	}
	if len(parts) > 0 {
		check.Message = fmt.Sprintf("%d are connected, or were within %v", len(parts), gatewaySilent)
	}
	var away []string
	for i := range parts {
		p := &parts[i]
		switch {
		case !g.silent(p):
		case p.Verifier:
			away = append(away, fmt.Sprintf("gateway %s has not told of API keys %s", p.Name, seenAt(p.Seen)))
		default:
			away = append(away, fmt.Sprintf("gateway %s was not seen %s; rotations of its %d keys wait for it", p.Name, seenAt(p.Seen), p.Keys))
		}
	}
	for i := range unused {
		if g.now().Sub(unused[i].Created) >= gatewaySilent {
			away = append(away, fmt.Sprintf("gateway %s has never connected", unused[i].Name))
		}
	}
	if !whole {
		away = append(away, "there are too many tokens to look at all of them")
	}
	if len(away) == 0 {
		return check, nil
	}
	if more := len(away) - maxGatewaysNamed; more > 0 {
		away = append(away[:maxGatewaysNamed], fmt.Sprintf("and %d more", more))
	}
	check.Status, check.Message = "warning", strings.Join(away, ". ")
	check.Hint = "start it, or mend its way to the server; one that is gone for good is removed with keyturn party remove, and its token with keyturn token revoke"
	return check, nil
}

// untold says which gateways may have handed out keys that nobody was told of yet.
func (g gateways) untold(ctx context.Context) ([]string, error) {
	parts, _, whole, err := g.list(ctx)
	if err != nil {
		return nil, err
	}
	var list []string
	for i := range parts {
		if p := &parts[i]; !p.Verifier && !p.Connected {
			list = append(list, fmt.Sprintf("gateway %s was not seen %s: what it has handed out by itself is not known before it comes back", p.Name, seenAt(p.Seen)))
		}
	}
	if more := len(list) - maxGatewaysNamed; more > 0 {
		list = append(list[:maxGatewaysNamed], fmt.Sprintf("and so are %d more gateways", more))
	}
	if !whole {
		list = append(list, "there are too many tokens to know all gateways")
	}
	return list, nil
}
