package notices

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
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
	// spread is the part of the time between two tries that is left to chance.
	spread = 0.25
	// kept is how long the note that something was sent is kept.
	kept = 400 * 24 * time.Hour
	// batch is how many are sent in one round.
	batch = 50
)

// The audit actions.
const (
	ActionSent   audit.Action = "notice.sent"
	ActionFailed audit.Action = "notice.failed"
	// ActionAsked: somebody wants a partner told now.
	ActionAsked audit.Action = "notice.asked"
)

// ErrFinal: trying again is of no use.
var ErrFinal = errors.New("it is not tried again")

// RetryError says when to try again.
type RetryError struct {
	After time.Duration
	Err   error
}

// Error implements error.
func (e *RetryError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *RetryError) Unwrap() error { return e.Err }

// Message is what a recipient is told.
type Message struct {
	Occasion Occasion    `json:"occasion"`
	Key      key.Name    `json:"key"`
	Client   string      `json:"client"`
	Rotation string      `json:"rotation,omitempty"`
	From     key.Version `json:"oldVersion"`
	To       key.Version `json:"newVersion,omitempty"`
	// Planned is when the rotation begins, before it has.
	Planned time.Time `json:"plannedFor,omitzero"`
	// Expires is when the key ends, on whatever rotates.
	Expires  time.Time `json:"expires,omitzero"`
	Deadline time.Time `json:"deadline,omitzero"`
	Cut      bool      `json:"endsAtDeadline,omitempty"`
	// Page is where the partner fetches its key.
	Page string `json:"page,omitempty"`
	// At is when this was to be told.
	At time.Time `json:"-"`
}

// Sender sends a message to one kind of recipients. An error means that it is to be
// tried again, unless it is ErrFinal; a *RetryError says when.
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

// Config is what an Outbox needs; all fields but Page and Chance are required.
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
	// Chance is a number from 0 to 1: it spreads tries. Default: math/rand/v2.
	Chance func() float64
}

// Outbox keeps notices until they are sent. Its methods may be called concurrently.
type Outbox struct{ config Config }

// New returns an outbox.
func New(config Config) *Outbox {
	if config.Chance == nil {
		config.Chance = rand.Float64
	}
	return &Outbox{config: config}
}

// stored is a notice in the store.
type stored struct {
	Recipient Recipient `json:"recipient"`
	Message   Message   `json:"message"`
	Tries     int       `json:"tries"`
	Noted     time.Time `json:"noted,omitzero"`
	// Failure is that of the last try.
	Failure string    `json:"failure,omitempty"`
	Sent    time.Time `json:"sent,omitzero"`
	GivenUp time.Time `json:"givenUp,omitzero"`
}

// Note stores the notices of a subject that are due by now and are not stored yet.
func (o *Outbox) Note(ctx context.Context, s *Subject, recipients []Recipient, times Times) error {
	now := o.config.Now().UTC()
	for _, notice := range Plan(s, times, now) {
		for _, recipient := range recipients {
			if err := o.note(ctx, s, notice, recipient, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// Tell stores a notice that an actor wants told now, whatever the plan says, with an
// entry in the audit log; it returns how many recipients there are.
func (o *Outbox) Tell(ctx context.Context, actor audit.Actor, s *Subject, occasion Occasion, recipients []Recipient) (int, error) {
	now := o.config.Now().UTC()
	err := o.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		for _, recipient := range recipients {
			// Its number tells it from those of the plan, and from another one by hand.
			doc, err := o.docOf(s, Notice{Occasion: occasion, Number: int(now.UnixMilli())}, recipient, now)
			if err != nil {
				return err
			}
			if _, err := tx.Docs.Put(ctx, doc); err != nil && !errors.Is(err, store.ErrConflict) {
				return err
			}
			enter(audit.Entry{
				Action: ActionAsked, Key: s.Key, Version: s.From, Rotation: s.Rotation, Target: recipient.By + " " + recipient.To, Detail: map[string]string{"occasion": string(occasion)},
			})
		}
		return nil
	})
	return len(recipients), err
}

func (o *Outbox) docOf(s *Subject, notice Notice, recipient Recipient, now time.Time) (store.Doc, error) {
	message := Message{
		Occasion: notice.Occasion, Key: s.Key, Client: s.Client, From: s.From, To: s.To, Planned: s.Planned, Expires: s.Expires, Deadline: s.Deadline, Cut: s.Cut, Page: o.config.Page,
	}
	if !s.Rotation.IsZero() {
		message.Rotation = s.Rotation.String()
	}
	body, err := json.Marshal(stored{Recipient: recipient, Message: message, Noted: now})
	if err != nil {
		return store.Doc{}, fmt.Errorf("encode a notice: %w", err)
	}
	return store.Doc{Kind: kindNotice, Name: nameOf(s, notice, recipient), Due: now, Body: body}, nil
}

func nameOf(s *Subject, notice Notice, recipient Recipient) string {
	sum := sha256.Sum256([]byte(recipient.By + "\x00" + recipient.To))
	return fmt.Sprintf("%s@%d/%s/%s/%s", s.Key, uint64(s.From), s.cause(), notice.name(), hex.EncodeToString(sum[:8]))
}

func (o *Outbox) note(ctx context.Context, s *Subject, notice Notice, recipient Recipient, now time.Time) error {
	name := nameOf(s, notice, recipient)
	err := o.config.Store.View(ctx, func(tx store.Tx) error {
		_, err := store.Revision(ctx, tx.Docs, kindNotice, name)
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		return err // it is there, or the store fails
	}
	doc, err := o.docOf(s, notice, recipient, now)
	if err != nil {
		return err
	}
	err = o.config.Store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, doc)
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
		n.Message.At = n.Noted
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
	n.Failure = ""
	if failure != nil {
		n.Failure = clip(failure.Error())
	}
	switch {
	case failure == nil:
		n.Sent = now
	case n.Tries >= maxTries, errors.Is(failure, ErrFinal):
		n.GivenUp = now
		entry.Action, entry.Outcome, entry.Reason = ActionFailed, audit.OutcomeFailed, failure.Error()
		o.config.Logger.ErrorContext(ctx, "a partner could not be told; tell it otherwise", "notice", doc.Name, "to", n.Recipient.To, "error", failure)
	default:
		o.config.Logger.WarnContext(ctx, "a notice could not be sent; trying again", "notice", doc.Name, "to", n.Recipient.To, "error", failure)
		return o.put(ctx, &doc, &n, now.Add(o.pause(n.Tries, failure)))
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

// pause is the time until the next try: longer after each one, as the recipient
// wants it, and not the same for all.
func (o *Outbox) pause(tries int, failure error) time.Duration {
	pause := min(retryFirst<<(tries-1), retryLast)
	if wanted := new(RetryError); errors.As(failure, &wanted) {
		pause = min(max(pause, wanted.After), retryLast)
	}
	return pause + time.Duration(spread*o.config.Chance()*float64(pause))
}

const maxFailure = 300

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxFailure)], "") }

// Told is a notice as it stands.
type Told struct {
	Occasion Occasion    `json:"occasion"`
	Version  key.Version `json:"version"`
	Rotation string      `json:"rotation,omitempty"`
	By       string      `json:"by"`
	To       string      `json:"to"`
	Noted    time.Time   `json:"at,omitzero"`
	Sent     time.Time   `json:"sent,omitzero"`
	// GivenUp is when it was tried for the last time, Next when it is tried again.
	GivenUp time.Time `json:"givenUp,omitzero"`
	Next    time.Time `json:"nextTry,omitzero"`
	Tries   int       `json:"tries"`
	Failure string    `json:"failure,omitempty"`
}

// List returns the notices of a key, the latest first, at most limit of the latest
// 1,000.
func (o *Outbox) List(ctx context.Context, name key.Name, limit int) (list []Told, err error) {
	const most = 1000
	err = o.config.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindNotice, string(name)+"@", "", most)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			var n stored
			if err := json.Unmarshal(doc.Body, &n); err != nil {
				return fmt.Errorf("stored notice %s is damaged: %w", doc.Name, err)
			}
			told := Told{
				Occasion: n.Message.Occasion, Version: n.Message.From, Rotation: n.Message.Rotation, By: n.Recipient.By, To: n.Recipient.To,
				Noted: n.Noted, Sent: n.Sent, GivenUp: n.GivenUp, Tries: n.Tries, Failure: n.Failure,
			}
			if n.Sent.IsZero() && n.GivenUp.IsZero() {
				told.Next = doc.Due
			}
			list = append(list, told)
		}
		return nil
	})
	slices.SortStableFunc(list, func(a, b Told) int { return b.Noted.Compare(a.Noted) })
	return list[:min(len(list), limit)], err
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
