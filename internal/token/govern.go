package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// maxFormer is how many issuers of before are kept.
const maxFormer = 4

// Settings are what the config of a key says; see jwks.Settings.
type Settings struct {
	Issuer    string
	TokenLife time.Duration
	CacheLife time.Duration
	External  bool
	// Readers are those of all endpoints, by name.
	Readers map[string]Reader
}

// Reader is who fetches the set of an endpoint.
type Reader struct {
	Shared bool
	From   []netip.Prefix
}

// Govern makes what is published follow the key's config as it is now, durably. It
// does nothing when the key publishes nothing: the first version takes the config
// along. It fails with ErrTaken when another key has the issuer. The sets of an
// issuer of before are served, and its tokens verified, until the last has expired.
func (b *Board) Govern(ctx context.Context, name key.Name, settings Settings) error {
	var doc store.Doc
	err := b.config.Store.Update(ctx, func(tx store.Tx) error {
		s, read, err := readSet(ctx, tx, name)
		if err != nil {
			return err
		}
		doc = read
		if len(s.Versions) == 0 {
			doc.Rev = 0
			return nil
		}
		s.settle(doc.Rev)
		now := b.config.Now().UTC()
		if err := b.rename(ctx, tx, name, &s, settings.Issuer, now); err != nil {
			return err
		}
		s.govern(&settings, now, b.config.Outage)
		s.Governed = true
		body, err := json.Marshal(s)
		if err != nil || string(body) == string(doc.Body) {
			return err
		}
		doc.Body = body
		doc.Rev, err = tx.Docs.Put(ctx, doc)
		return err
	})
	if err != nil || doc.Rev == 0 {
		return err
	}
	return b.showOwn(&doc)
}

// Keys returns the keys that publish anything, as this node knows it.
func (b *Board) Keys() []key.Name {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var names []key.Name
	for name, p := range b.sets {
		if p.Issuer != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// govern takes over what the key's config says, but for the issuer.
func (s *set) govern(settings *Settings, now time.Time, outage time.Duration) {
	if settings.CacheLife < s.CacheLife {
		// Until every node serves the shorter life, and what they served before is over.
		s.LongLife, s.LongUntil = max(s.LongLife, s.CacheLife), now.Add(outage+2*s.CacheLife)
	} else if now.After(s.LongUntil) {
		s.LongLife, s.LongUntil = 0, time.Time{}
	}
	s.TokenLife, s.CacheLife, s.External = settings.TokenLife, settings.CacheLife, settings.External
	s.LongestLife = max(s.LongestLife, s.TokenLife)
	if s.Endpoints == nil {
		s.Endpoints = map[string]endpoint{}
	}
	maps.DeleteFunc(s.Endpoints, func(name string, _ endpoint) bool { _, is := settings.Readers[name]; return !is })
	for i := range s.Versions {
		maps.DeleteFunc(s.Versions[i].At, func(name string, _ listing) bool { _, is := settings.Readers[name]; return !is })
	}
	for name, reader := range settings.Readers {
		e := s.Endpoints[name]
		e.Shared, e.From = reader.Shared, reader.From
		s.Endpoints[name] = e
	}
}

// rename takes an issuer for the key. The one before stays its own until the last
// token with it has expired.
func (b *Board) rename(ctx context.Context, tx store.Tx, name key.Name, s *set, issuer string, now time.Time) error {
	if s.Issuer != issuer {
		if err := claim(ctx, tx, name, issuer, now); err != nil {
			return err
		}
		s.Former = slices.DeleteFunc(s.Former, func(f former) bool { return f.Issuer == issuer })
		if s.Issuer != "" {
			// A node that is cut off signs with it for an outage, tokens of the full life.
			last := now.Add(b.config.Outage + max(s.TokenLife, s.LongestLife) + 2*b.config.Skew)
			s.Former = append(s.Former, former{Issuer: s.Issuer, Until: last})
		}
		s.Issuer = issuer
	}
	var over []string
	for i, f := range s.Former {
		if now.After(f.Until) || len(s.Former)-i > maxFormer {
			over = append(over, f.Issuer)
		}
	}
	s.Former = slices.DeleteFunc(s.Former, func(f former) bool { return slices.Contains(over, f.Issuer) })
	for _, gone := range over {
		if slices.ContainsFunc(s.issuers(), func(kept string) bool { return issuerPath(kept) == issuerPath(gone) }) {
			continue
		}
		if err := release(ctx, tx, name, gone); err != nil {
			return err
		}
	}
	return nil
}

// issuers are all that the key has, the present one first.
func (s *set) issuers() []string {
	list := []string{s.Issuer}
	for _, f := range s.Former {
		list = append(list, f.Issuer)
	}
	return list
}

// claim takes an issuer, by its path. What the key has it may take again, and what
// another key had whose last token has expired.
func claim(ctx context.Context, tx store.Tx, name key.Name, issuer string, now time.Time) error {
	doc, err := tx.Docs.Get(ctx, kindIssuer, claimName(issuer))
	if errors.Is(err, store.ErrNotFound) {
		doc, err = store.Doc{Kind: kindIssuer, Name: claimName(issuer)}, nil
	}
	if err != nil || string(doc.Body) == string(name) {
		return err
	}
	if doc.Rev != 0 {
		owner, _, err := readSet(ctx, tx, key.Name(doc.Body))
		if err != nil {
			return err
		}
		if owner.has(issuerPath(issuer), now) {
			return fmt.Errorf("%w: %s is that of key %s, by its path", ErrTaken, issuer, doc.Body)
		}
	}
	doc.Body = []byte(name)
	_, err = tx.Docs.Put(ctx, doc)
	return err
}

// has reports whether sets are served under a path.
func (s *set) has(path string, now time.Time) bool {
	return s.Issuer != "" && issuerPath(s.Issuer) == path ||
		slices.ContainsFunc(s.Former, func(f former) bool { return issuerPath(f.Issuer) == path && now.Before(f.Until) })
}

// release gives up an issuer, if the key has it.
func release(ctx context.Context, tx store.Tx, name key.Name, issuer string) error {
	doc, err := tx.Docs.Get(ctx, kindIssuer, claimName(issuer))
	if errors.Is(err, store.ErrNotFound) || err == nil && string(doc.Body) != string(name) {
		return nil
	}
	if err != nil {
		return err
	}
	return tx.Docs.Delete(ctx, kindIssuer, doc.Name, doc.Rev)
}

func claimName(issuer string) string { return "issuer " + issuerPath(issuer) }
