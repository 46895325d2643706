package apikey

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// VersionUse is how a version was used so far.
type VersionUse struct {
	Version  key.Version `json:"version"`
	Accepted bool        `json:"accepted"`
	// Gone: it was destroyed. It is told of for 35 days.
	Gone bool `json:"destroyed,omitempty"`
	// Last is when it was used last; zero if it was not within what is kept.
	Last time.Time `json:"lastSeen,omitzero"`
	All  uint64    `json:"uses"`
	// By names who used it, the latest first, at most 16 for each server node.
	By []UsedBy `json:"by,omitempty"`
	// Refused are tries while it was not let in, RefusedLast the last one; RefusedBy
	// names who made them.
	Refused     uint64    `json:"refused,omitempty"`
	RefusedLast time.Time `json:"lastRefused,omitzero"`
	RefusedBy   []UsedBy  `json:"refusedBy,omitempty"`
}

// UsedBy is somebody who used a version.
type UsedBy struct {
	Address     string    `json:"address,omitempty"`
	Application string    `json:"application,omitempty"`
	Last        time.Time `json:"lastSeen"`
	All         uint64    `json:"uses"`
}

// String says who it is.
func (u *UsedBy) String() string {
	switch {
	case u.Application == "":
		return u.Address
	case u.Address == "":
		return u.Application
	}
	return u.Application + " at " + u.Address
}

// ClientUse is one version of a client's key.
type ClientUse struct {
	Key     key.Name  `json:"key"`
	Client  string    `json:"client"`
	Expires time.Time `json:"expires,omitzero"`
	VersionUse
}

// Versions returns the versions of a key that are accepted or refused, and their
// uses, as far as the nodes have written them: what was used in the last seconds
// may be missing.
func (s *Service) Versions(ctx context.Context, name key.Name) ([]VersionUse, error) {
	list, _, err := s.Clients(ctx, string(name)+"@", "", maxHeld)
	var uses []VersionUse
	for i := range list {
		uses = append(uses, list[i].VersionUse)
	}
	return uses, err
}

// Clients returns the versions of the keys whose names begin with prefix, by name and
// number, at most limit, and their uses as Versions does. They begin after the one
// that next named before; it is empty when there are no more.
func (s *Service) Clients(ctx context.Context, prefix, after string, limit int) (list []ClientUse, next string, err error) {
	err = s.config.Store.View(ctx, func(tx store.Tx) error {
		list, next = nil, ""
		docs, err := tx.Index.List(ctx, kindEntry, prefix, after, limit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			one, err := useOf(ctx, tx, doc)
			if err != nil {
				return err
			}
			if one.Version == 0 {
				continue
			}
			list = append(list, one)
		}
		if len(docs) == limit {
			next = docs[limit-1].Name
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("read the uses of API keys: %w", err)
	}
	return list, next, nil
}

// useOf is the version of a document, and how it was used; zero if it is dropped.
func useOf(ctx context.Context, tx store.Tx, doc store.Doc) (one ClientUse, err error) {
	r, err := decode(doc)
	if err != nil || r.Dropped {
		return one, err
	}
	one = ClientUse{
		Key: r.Key, Client: r.Rules.Client, Expires: r.Rules.Expires, VersionUse: VersionUse{Version: r.Version, Accepted: r.Accepted, Gone: r.Gone},
	}
	uses, err := listUses(ctx, tx, r.Key, r.Version)
	for i := range uses {
		one.add(&uses[i])
	}
	return one, err
}

// add adds the uses at one node.
func (v *VersionUse) add(u *usesOf) {
	v.All, v.Refused = v.All+u.All, v.Refused+u.Refused
	if u.Last.After(v.Last) {
		v.Last = u.Last
	}
	if u.RefusedLast.After(v.RefusedLast) {
		v.RefusedLast = u.RefusedLast
	}
	v.By, v.RefusedBy = usedBy(v.By, u.Holders), usedBy(v.RefusedBy, u.RefusedBy)
}

func usedBy(by []UsedBy, holders []holder) []UsedBy {
	for i := range holders {
		h := &holders[i]
		at := slices.IndexFunc(by, func(b UsedBy) bool { return b.Address == h.Address && b.Application == h.Application })
		if at < 0 {
			by = append(by, UsedBy{Address: h.Address, Application: h.Application, Last: h.Last, All: h.All})
			continue
		}
		by[at].All += h.All
		if h.Last.After(by[at].Last) {
			by[at].Last = h.Last
		}
	}
	slices.SortStableFunc(by, func(a, b UsedBy) int {
		if c := b.Last.Compare(a.Last); c != 0 {
			return c
		}
		return strings.Compare(a.Application+a.Address, b.Application+b.Address)
	})
	return by
}
