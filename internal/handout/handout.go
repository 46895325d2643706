// Package handout enters into the audit log what gateways handed out by themselves,
// while they could not reach a server.
//
// Guarantees: the entries of a batch are committed together, with the note that the
// batch was taken; a batch that is repeated is entered once, also by another server
// and after a restart, as long as it is among the last batches of its gateway.
package handout

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

const (
	// MaxBatch is how many hand-outs one batch may have.
	MaxBatch = 1000
	// maxID is the longest ID of a batch or token, maxParty that of a party, in bytes.
	maxID    = 64
	maxParty = 128
	// remembered is how many batches of each gateway are known, and for how long after
	// the last one: a gateway repeats the one that was not answered before it goes on.
	remembered     = 16
	rememberedTime = 90 * 24 * time.Hour
)

// kindBatches are the last batches of each gateway, by the gateway's party.
const kindBatches = "gateway-batches"

// ErrInvalid is wrapped by every error about what a batch says.
var ErrInvalid = errors.New("invalid batch of hand-outs")

// Handout is one version that one party got from a gateway, once or several times.
type Handout struct {
	Party   string      `json:"party"`
	Key     key.Name    `json:"key"`
	Version key.Version `json:"version"`
	// Epoch is the gateway's, under which it was handed out.
	Epoch uint64 `json:"epoch,omitempty"`
	// Token is the ID of the party's token; empty if it is not known.
	Token string `json:"token,omitempty"`
	// Address is where the party connected from.
	Address netip.Addr `json:"address"`
	// Count is how often, at least once; First and Last say when, by the gateway's clock.
	Count uint32    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// Batch is what a gateway tells at once.
type Batch struct {
	// Gateway is the gateway's party.
	Gateway string
	// ID names the batch among those of the gateway.
	ID       string
	Handouts []Handout
}

// Journal runs transactions that enter what they do into the audit log.
type Journal interface {
	Transact(ctx context.Context, actor audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error
}

// Config is what a Service needs; all fields are required.
type Config struct {
	Store   store.Store
	Journal Journal
	Now     func() time.Time
}

// Service takes batches. Its methods may be called concurrently.
type Service struct{ config Config }

// New returns a service.
func New(config Config) *Service { return &Service{config: config} }

// taken is a batch that was entered.
type taken struct {
	ID string `json:"id"`
	// Sum is the SHA-256 of its hand-outs.
	Sum string `json:"sum"`
}

// Enter enters a batch, unless it was entered before. It fails with ErrInvalid, or
// when the store does; then nothing is entered.
func (s *Service) Enter(ctx context.Context, actor audit.Actor, batch *Batch) error {
	if err := batch.check(); err != nil {
		return err
	}
	content, err := json.Marshal(batch.Handouts)
	if err != nil {
		return fmt.Errorf("encode hand-outs: %w", err)
	}
	sum := sha256.Sum256(content)
	this := taken{ID: batch.ID, Sum: hex.EncodeToString(sum[:])}
	return s.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		doc, known, err := lastBatches(ctx, tx, batch.Gateway)
		if err != nil {
			return err
		}
		for _, one := range known {
			switch {
			case one == this:
				return nil // its answer was lost
			case one.ID == this.ID:
				return fmt.Errorf("%w: batch_id: %q was told with other hand-outs; give each batch an ID of its own", ErrInvalid, batch.ID)
			}
		}
		for i := range batch.Handouts {
			enter(batch.entry(&batch.Handouts[i]))
		}
		known = append(known, this)
		if doc.Body, err = json.Marshal(known[max(0, len(known)-remembered):]); err != nil {
			return fmt.Errorf("encode batches: %w", err)
		}
		doc.Due = s.config.Now().Add(rememberedTime)
		_, err = tx.Docs.Put(ctx, doc)
		return err
	})
}

func lastBatches(ctx context.Context, tx store.Tx, gateway string) (doc store.Doc, known []taken, err error) {
	doc, err = tx.Docs.Get(ctx, kindBatches, gateway)
	if errors.Is(err, store.ErrNotFound) {
		return store.Doc{Kind: kindBatches, Name: gateway}, nil, nil
	}
	if err != nil {
		return doc, nil, err
	}
	if err := json.Unmarshal(doc.Body, &known); err != nil {
		return doc, nil, fmt.Errorf("the stored batches of gateway %s are damaged: %w", gateway, err)
	}
	return doc, known, nil
}

// entry is a hand-out as the audit log has it.
func (b *Batch) entry(h *Handout) audit.Entry {
	detail := map[string]string{
		audit.DetailAddress: h.Address.String(), audit.DetailGateway: b.Gateway, "epoch": strconv.FormatUint(h.Epoch, 10),
		"count": strconv.FormatUint(uint64(h.Count), 10), "first": stamp(h.First), "last": stamp(h.Last), "batch": b.ID,
	}
	if h.Token != "" {
		detail["token"] = h.Token
	}
	return audit.Entry{Action: audit.ActionHandout, Target: h.Party, Key: h.Key, Version: h.Version, Outcome: audit.OutcomeOK, Detail: detail}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func (b *Batch) check() error {
	switch {
	case !isName(b.ID, maxID):
		return fmt.Errorf("%w: batch_id: 1 to %d letters, digits, '.', '_' and '-' are needed", ErrInvalid, maxID)
	case len(b.Handouts) == 0 || len(b.Handouts) > MaxBatch:
		return fmt.Errorf("%w: handouts: 1 to %d are needed, not %d", ErrInvalid, MaxBatch, len(b.Handouts))
	case b.Gateway == "" || len(b.Gateway) > maxParty:
		return fmt.Errorf("%w: party_id: 1 to %d characters are needed", ErrInvalid, maxParty)
	}
	for i := range b.Handouts {
		if field, problem := b.Handouts[i].check(); problem != "" {
			return fmt.Errorf("%w: handouts[%d].%s: %s", ErrInvalid, i, field, problem)
		}
	}
	return nil
}

// earliest bounds what a gateway's clock may say.
func earliest() time.Time { return time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) }

func (h *Handout) check() (field, problem string) {
	latest := earliest().AddDate(1000, 0, 0)
	switch {
	case h.Party == "" || len(h.Party) > maxParty || !utf8.ValidString(h.Party):
		return "party_id", fmt.Sprintf("1 to %d characters are needed", maxParty)
	case !h.Key.Valid():
		return "key", "it is not the name of a key"
	case h.Version == 0:
		return "version", "it is missing"
	case h.Token != "" && !isName(h.Token, maxID):
		return "token_id", fmt.Sprintf("at most %d letters, digits, '.', '_' and '-' are allowed; send the ID of the token and never the token", maxID)
	case !h.Address.IsValid() || h.Address.Zone() != "":
		return "client_address", "it is not an IP address"
	case h.Count == 0:
		return "count", "it is missing"
	case h.First.Before(earliest()) || h.First.After(latest):
		return "first", "it is not a time at which this can have been"
	case h.Last.Before(h.First) || h.Last.After(latest):
		return "last", "it is not a time at or after first"
	}
	return "", ""
}

// isName reports whether s is a word that can stand in an entry.
func isName(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		return !letter && r != '.' && r != '_' && r != '-'
	})
}

// Sweep forgets the batches of gateways that have told nothing for long. It is called
// now and then.
func (s *Service) Sweep(ctx context.Context) error {
	return store.Sweep(ctx, s.config.Store, kindBatches, s.config.Now, nil)
}
