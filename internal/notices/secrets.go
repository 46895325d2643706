package notices

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// kindSecret are the signing secrets of a key's webhooks, by the name of the key.
const kindSecret = "notice-secret"

const (
	// secretPrefix and secretSize are those of Standard Webhooks.
	secretPrefix = "whsec_"
	secretSize   = 32
	// maxSecrets is how many secrets sign at the same time.
	maxSecrets = 3
	// Overlap is for how long a secret goes on signing after it was replaced.
	Overlap = 7 * 24 * time.Hour
	// conflicts is how often a change is tried that others make at the same time.
	conflicts = 5
)

// The audit actions that concern signing secrets.
const (
	ActionSecretMade audit.Action = "notice.secret.made"
	ActionSecretRead audit.Action = "notice.secret.read"
)

// SecretsConfig is what Secrets need; all fields are required.
type SecretsConfig struct {
	Store   store.Store
	Journal Journal
	Keeper  keeper.Keeper
	Now     func() time.Time
	// Random is cryptographically secure.
	Random io.Reader
}

// Secrets keeps what the notices of each key are signed with: one secret for each,
// so that no partner can make a notice for another one. While a secret is replaced
// both sign. Its methods may be called concurrently.
type Secrets struct{ config SecretsConfig }

// NewSecrets returns the secrets.
func NewSecrets(config SecretsConfig) *Secrets { return &Secrets{config: config} }

// storedSecret is one secret, sealed. Until is when it signs no more.
type storedSecret struct {
	Number uint64    `json:"number"`
	Sealed []byte    `json:"sealed"`
	Made   time.Time `json:"made"`
	Until  time.Time `json:"until,omitzero"`
}

// placeOf is what a sealed secret is bound to. A name may be as long as a place's.
func placeOf(name key.Name, number uint64) keeper.Place {
	sum := sha256.Sum256([]byte(name))
	return keeper.Place{Key: key.Name("keyturn/notices/" + hex.EncodeToString(sum[:16])), Version: key.Version(number)}
}

// Signing returns the secrets that sign the notices of a key now, the newest first;
// the first one is made when there is none.
func (s *Secrets) Signing(ctx context.Context, actor audit.Actor, name key.Name) ([]secret.Value, error) {
	list, err := s.present(ctx, actor, name)
	if err != nil {
		return nil, err
	}
	var secrets []secret.Value
	for i := range list {
		value, err := s.open(ctx, name, &list[i])
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, value)
	}
	return secrets, nil
}

// Shown is the newest signing secret of a key.
type Shown struct {
	Number uint64
	Secret secret.Value
	Made   time.Time
	// OldUntil is until when the one before signs too; zero if it does not.
	OldUntil time.Time
}

// Show returns the newest signing secret of a key to the actor, with an entry in the
// audit log. With renew another one is made, and the one before signs beside it for
// Overlap.
func (s *Secrets) Show(ctx context.Context, actor audit.Actor, name key.Name, renew bool) (Shown, error) {
	var list []storedSecret
	var err error
	if renew {
		list, err = s.make(ctx, actor, name, true)
	} else {
		list, err = s.present(ctx, actor, name)
	}
	if err != nil {
		return Shown{}, err
	}
	shown := Shown{Number: list[0].Number, Made: list[0].Made}
	if shown.Secret, err = s.open(ctx, name, &list[0]); err != nil {
		return Shown{}, err
	}
	if len(list) > 1 {
		shown.OldUntil = list[1].Until
	}
	err = s.config.Journal.Transact(ctx, actor, func(_ store.Tx, enter func(audit.Entry)) error {
		enter(audit.Entry{Action: ActionSecretRead, Key: name, Detail: map[string]string{"secret": fmt.Sprint(shown.Number)}})
		return nil
	})
	if err != nil {
		return Shown{}, err
	}
	return shown, nil
}

// present are the secrets of now; the first one is made when there is none.
func (s *Secrets) present(ctx context.Context, actor audit.Actor, name key.Name) ([]storedSecret, error) {
	var list []storedSecret
	err := s.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		list, _, err = s.read(ctx, tx, name)
		return err
	})
	if err != nil || len(list) > 0 {
		return list, err
	}
	return s.make(ctx, actor, name, false)
}

// read returns the secrets that sign now, the newest first.
func (s *Secrets) read(ctx context.Context, tx store.Tx, name key.Name) (list []storedSecret, doc store.Doc, err error) {
	doc, err = tx.Docs.Get(ctx, kindSecret, string(name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, store.Doc{Kind: kindSecret, Name: string(name)}, nil
	}
	if err != nil {
		return nil, doc, err
	}
	var all []storedSecret
	if err := json.Unmarshal(doc.Body, &all); err != nil {
		return nil, doc, fmt.Errorf("the signing secrets of %s are damaged: %w", name, err)
	}
	now := s.config.Now()
	for i := range all {
		if all[i].Until.IsZero() || now.Before(all[i].Until) {
			list = append(list, all[i])
		}
	}
	return list, doc, nil
}

// make stores a new secret in front of the present ones. Without renew it leaves
// them alone if there are any.
func (s *Secrets) make(ctx context.Context, actor audit.Actor, name key.Name, renew bool) ([]storedSecret, error) {
	for try := 1; ; try++ {
		var before []storedSecret
		var doc store.Doc
		err := s.config.Store.View(ctx, func(tx store.Tx) error {
			var err error
			before, doc, err = s.read(ctx, tx, name)
			return err
		})
		if err != nil || len(before) > 0 && !renew {
			return before, err
		}
		list, err := s.add(ctx, actor, name, before, doc)
		if !errors.Is(err, store.ErrConflict) || try == conflicts {
			return list, err
		}
	}
}

func (s *Secrets) add(ctx context.Context, actor audit.Actor, name key.Name, before []storedSecret, doc store.Doc) ([]storedSecret, error) {
	now := s.config.Now().UTC()
	next := storedSecret{Number: 1, Made: now}
	list := []storedSecret{next}
	for i := range before {
		next.Number = max(next.Number, before[i].Number+1)
		if before[i].Until.IsZero() {
			before[i].Until = now.Add(Overlap)
		}
		if len(list) < maxSecrets {
			list = append(list, before[i])
		}
	}
	text := make([]byte, secretSize)
	if _, err := io.ReadFull(s.config.Random, text); err != nil {
		return nil, fmt.Errorf("draw a signing secret: %w", err)
	}
	text = append([]byte(secretPrefix), base64.StdEncoding.EncodeToString(text)...)
	defer clear(text)
	var err error
	if next.Sealed, err = keeper.Seal(ctx, s.config.Keeper, placeOf(name, next.Number), text); err != nil {
		return nil, err
	}
	list[0] = next
	if doc.Body, err = json.Marshal(list); err != nil {
		return nil, fmt.Errorf("encode signing secrets: %w", err)
	}
	return list, s.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		enter(audit.Entry{Action: ActionSecretMade, Key: name, Detail: map[string]string{"secret": fmt.Sprint(next.Number)}})
		_, err := tx.Docs.Put(ctx, doc)
		return err
	})
}

func (s *Secrets) open(ctx context.Context, name key.Name, stored *storedSecret) (secret.Value, error) {
	text, err := keeper.Open(ctx, s.config.Keeper, placeOf(name, stored.Number), stored.Sealed)
	if err != nil {
		return secret.Value{}, fmt.Errorf("the signing secret of %s: %w", name, err)
	}
	return secret.New(text), nil
}
