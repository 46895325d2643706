package notices

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindNotice are notices, sent or not.
const kindNotice = "notice"

const (
	// claimed is how long a node has to send a notice before another one tries.
	claimed = 2 * time.Minute
	// maxTries bounds them; retryFirst and retryLast are the times between two.
	maxTries   = 12
	retryFirst = time.Minute
	retryLast  = 2 * time.Hour
	// sendTime bounds one try.
	sendTime = 30 * time.Second
	// kept is how long the note that something was sent is kept.
	kept = 400 * 24 * time.Hour
	// batch is how many are sent in one round.
	batch = 50
)

// The audit actions.
const (
	ActionSent   audit.Action = "notice.sent"
	ActionFailed audit.Action = "notice.failed"
)

// Message is what a recipient is told.
type Message struct {
	Occasion Occasion    `json:"occasion"`
	Key      key.Name    `json:"key"`
	Client   string      `json:"client"`
	Rotation string      `json:"rotation"`
	From     key.Version `json:"oldVersion"`
	To       key.Version `json:"newVersion"`
	Deadline time.Time   `json:"deadline,omitzero"`
	Cut      bool        `json:"endsAtDeadline,omitempty"`
	// Page is where the partner fetches its key.
	Page string `json:"page,omitempty"`
}

// Sender sends a message to one kind of recipients. An error means that it is to be
// tried again.
type Sender interface {
	Send(ctx context.Context, to, id string, m *Message) error
}

// Recipient is who is told: by which sender, and where.
type Recipient struct {
	By string `json:"by"`
	To string `json:"to"`
}

// Journal runs transactions that enter what they do into the audit log.
type Journal interface {
	Transact(ctx context.Context, actor audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error
}

// Config is what an Outbox needs; all fields but Page are required.
type Config struct {
	Store   store.Store
	Journal Journal
	// Actor is who sends, in audit entries.
	Actor  audit.Actor
	Logger *slog.Logger
	Now    func() time.Time
	// Senders by name.
	Senders map[string]Sender
	// Page is the address of the page for partners.
	Page string
}

// Outbox keeps notices until they are sent. Its methods may be called concurrently.
type Outbox struct{ config Config }

// New returns an outbox.
func New(config Config) *Outbox { return &Outbox{config: config} }

// stored is a notice in the store.
type stored struct {
	Recipient Recipient `json:"recipient"`
	Message   Message   `json:"message"`
	Tries     int       `json:"tries"`
	Sent      time.Time `json:"sent,omitzero"`
	GivenUp   time.Time `json:"givenUp,omitzero"`
}

// Note stores the notices of a subject that are due by now and are not stored yet.
func (o *Outbox) Note(ctx context.Context, s *Subject, recipients []Recipient, remind time.Duration) error {
	now := o.config.Now().UTC()
	for _, notice := range Plan(s, remind, now) {
		for _, recipient := range recipients {
			if err := o.note(ctx, s, notice, recipient, now); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *Outbox) note(ctx context.Context, s *Subject, notice Notice, recipient Recipient, now time.Time) error {
	sum := sha256.Sum256([]byte(recipient.By + "\x00" + recipient.To))
	name := fmt.Sprintf("%s@%d/%v/%s/%s", s.Key, uint64(s.From), s.Rotation, notice.name(), hex.EncodeToString(sum[:8]))
	err := o.config.Store.View(ctx, func(tx store.Tx) error {
		_, err := store.Revision(ctx, tx.Docs, kindNotice, name)
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		return err // it is there, or the store fails
	}
	body, err := json.Marshal(stored{Recipient: recipient, Message: Message{
		Occasion: notice.Occasion, Key: s.Key, Client: s.Client, Rotation: s.Rotation.String(), From: s.From, To: s.To, Deadline: s.Deadline, Cut: s.Cut, Page: o.config.Page,
	}})
	if err != nil {
		return fmt.Errorf("encode a notice: %w", err)
	}
	err = o.config.Store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: kindNotice, Name: name, Due: now, Body: body})
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return nil // another node was faster
	}
	return err
}

// Deliver sends what is due, once each.
func (o *Outbox) Deliver(ctx context.Context) error {
	var docs []store.Doc
	err := o.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		docs, err = tx.Index.Due(ctx, kindNotice, o.config.Now(), batch)
		return err
	})
	for i := range docs {
		if err == nil {
			err = o.deliver(ctx, docs[i])
		}
	}
	return err
}

func (o *Outbox) deliver(ctx context.Context, doc store.Doc) error {
	var n stored
	if err := json.Unmarshal(doc.Body, &n); err != nil {
		return fmt.Errorf("stored notice %s is damaged: %w", doc.Name, err)
	}
	if !n.Sent.IsZero() || !n.GivenUp.IsZero() {
		return o.drop(ctx, doc)
	}
	// Claimed before it is sent: other nodes leave it alone for a while, and a node that
	// dies on the way sends it once more at the worst.
	n.Tries++
	if err := o.put(ctx, &doc, &n, o.config.Now().Add(claimed)); err != nil {
		if errors.Is(err, store.ErrConflict) {
			return nil
		}
		return err
	}
	sender, known := o.config.Senders[n.Recipient.By]
	failure := fmt.Errorf("this server sends no %s; say how in its configuration", n.Recipient.By)
	if known {
		sending, cancel := context.WithTimeout(ctx, sendTime)
		failure = sender.Send(sending, n.Recipient.To, doc.Name, &n.Message)
		cancel()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return o.settle(ctx, doc, n, failure)
}

// settle stores what became of a try, with its audit entry.
func (o *Outbox) settle(ctx context.Context, doc store.Doc, n stored, failure error) error {
	now := o.config.Now().UTC()
	entry := audit.Entry{
		Action: ActionSent, Key: n.Message.Key, Version: n.Message.From, Target: n.Recipient.By + " " + n.Recipient.To,
		Detail: map[string]string{"occasion": string(n.Message.Occasion), "tries": fmt.Sprint(n.Tries)},
	}
	if id, err := key.ParseRotationID(n.Message.Rotation); err == nil {
		entry.Rotation = id
	}
	due := now.Add(kept)
	switch {
	case failure == nil:
		n.Sent = now
	case n.Tries >= maxTries:
		n.GivenUp = now
		entry.Action, entry.Outcome, entry.Reason = ActionFailed, audit.OutcomeFailed, failure.Error()
		o.config.Logger.ErrorContext(ctx, "a partner could not be told; tell it otherwise", "notice", doc.Name, "to", n.Recipient.To, "error", failure)
	default:
		o.config.Logger.WarnContext(ctx, "a notice could not be sent; trying again", "notice", doc.Name, "to", n.Recipient.To, "error", failure)
		return o.put(ctx, &doc, &n, now.Add(min(retryFirst<<(n.Tries-1), retryLast)))
	}
	return o.config.Journal.Transact(ctx, o.config.Actor, func(tx store.Tx, enter func(audit.Entry)) error {
		body, err := json.Marshal(n)
		if err != nil {
			return fmt.Errorf("encode a notice: %w", err)
		}
		enter(entry)
		_, err = tx.Docs.Put(ctx, store.Doc{Kind: doc.Kind, Name: doc.Name, Rev: doc.Rev, Due: due, Body: body})
		return err
	})
}

func (o *Outbox) put(ctx context.Context, doc *store.Doc, n *stored, due time.Time) error {
	body, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode a notice: %w", err)
	}
	return o.config.Store.Update(ctx, func(tx store.Tx) error {
		next := store.Doc{Kind: doc.Kind, Name: doc.Name, Rev: doc.Rev, Due: due, Body: body}
		rev, err := tx.Docs.Put(ctx, next)
		if err == nil {
			doc.Rev = rev
		}
		return err
	})
}

func (o *Outbox) drop(ctx context.Context, doc store.Doc) error {
	return o.config.Store.Update(ctx, func(tx store.Tx) error { return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev) })
}
