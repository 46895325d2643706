package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/keyturn/keyturn/internal/compat/github"
	"github.com/keyturn/keyturn/internal/ingress"
	"github.com/keyturn/keyturn/internal/store"
)

// LeaksConfig says from whom leaks are heard of.
type LeaksConfig struct {
	// GitHub takes messages of GitHub's secret scanning at /v1/leaks/github; absent: no.
	GitHub *GitHubConfig `yaml:"github"`
}

// GitHubConfig says what proves that a message is GitHub's.
type GitHubConfig struct {
	// Keys is where the public keys are: an https:// address or a file. Default: where
	// GitHub publishes them.
	Keys string `yaml:"keys"`
	// Feedback: answer with which tokens are real, as GitHub asks partners to.
	Feedback bool `yaml:"feedback"`
}

func (c *LeaksConfig) check() []problem {
	if c.GitHub == nil || c.GitHub.Keys == "" {
		return nil
	}
	if u, err := url.Parse(c.GitHub.Keys); err == nil && u.Scheme != "" && (u.Scheme != "https" || u.Host == "") {
		return []problem{{Field: "leaks.github.keys", Message: "it is neither an https:// address nor a file; leave it out for the address of GitHub's"}}
	}
	return nil
}

// leakRoutes adds what hears of leaks. It has no token: a signature proves who speaks.
func (s *Server) leakRoutes(api *http.ServeMux, gate *ingress.Gate, now func() time.Time) {
	if s.config.Leaks.GitHub == nil {
		return
	}
	receiver := github.New(github.Config{
		Matcher:  s.engine,
		Memory:   partnerMessages{s.store},
		Now:      now,
		Feedback: s.config.Leaks.GitHub.Feedback,
		Keys:     github.NewKeys(github.KeysConfig{Source: s.config.Leaks.GitHub.Keys, Now: now}),
		Refused:  gate.RefusedAs,
	})
	api.Handle("POST /v1/leaks/github", s.service.Public(receiver, gate))
}

// kindPartnerMessage has a document for the last message in each of partnerSlots slots,
// so that all nodes refuse it when it comes again, and there are no more of them.
const (
	kindPartnerMessage = "partner-message"
	partnerSlots       = 1 << 14
)

// partnerMessages implements github.Memory.
type partnerMessages struct{ store store.Store }

func partnerSlot(digest [sha256.Size]byte) string {
	return fmt.Sprintf("github %04x", binary.BigEndian.Uint16(digest[:])%partnerSlots)
}

// Seen implements github.Memory.
func (p partnerMessages) Seen(ctx context.Context, digest [sha256.Size]byte) (bool, error) {
	seen := false
	err := p.store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindPartnerMessage, partnerSlot(digest))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		seen = err == nil && bytes.Equal(doc.Body, digest[:])
		return err
	})
	return seen, err
}

// Note implements github.Memory.
func (p partnerMessages) Note(ctx context.Context, digest [sha256.Size]byte) error {
	return p.store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindPartnerMessage, partnerSlot(digest))
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindPartnerMessage, Name: partnerSlot(digest)}, nil
		}
		if err == nil {
			doc.Body = digest[:]
			_, err = tx.Docs.Put(ctx, doc)
		}
		return err
	})
}
