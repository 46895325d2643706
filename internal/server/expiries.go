package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

const (
	// kindExpiring are API keys with an end, by name, due when somebody is to hear of it.
	kindExpiring = "apikey-expiring"
	// endAhead is how long before the end of an API key its partner and the operators
	// are told, where the key's config does not say.
	endAhead = 14 * 24 * time.Hour
	// maxEnding bounds the keys that doctor counts, maxEndingNamed those that it names.
	maxEnding      = 1000
	maxEndingNamed = 5
)

// changed lists API keys of which somebody may have to be told ahead of a day.
func (t *teller) changed(ctx context.Context, after uint64, limit int) ([]key.Name, uint64, error) {
	return t.server.engine.Scheduled(ctx, after, limit, func(driver string, config provider.Config) bool { return driver == "apikey" && apikey.HasDates(config) })
}

// planKey notes what the partner of one key must be told ahead, and when the operators
// hear of the key's end. It returns when to look again.
func (t *teller) planKey(ctx context.Context, name key.Name) (next time.Time, err error) {
	view, notify, err := t.partner(ctx, name)
	if errors.Is(err, engine.ErrNotFound) {
		return time.Time{}, t.expiries.note(ctx, name, ending{})
	}
	if err != nil {
		return time.Time{}, err
	}
	now, current, recipients := t.now(), view.State.Labelled(key.Current), recipientsOf(&notify)
	tell := func(subject notices.Subject, ahead time.Duration) error {
		subject.Key, subject.Client, subject.From = name, notify.Client, current
		times := notices.Times{Remind: notify.Remind, Ahead: ahead}
		if at := notices.Next(&subject, times, now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		return t.outbox.Note(ctx, &subject, recipients, times)
	}
	if !view.Next.At.IsZero() && len(view.State.Rotations) == 0 && len(recipients) > 0 {
		err = tell(notices.Subject{Planned: view.Next.At}, notify.Ahead)
	}
	end := ending{Client: notify.Client, Expires: notify.Expires, Ahead: notify.Ahead}
	if end.Ahead == 0 {
		end.Ahead = endAhead
	}
	if !end.Expires.IsZero() && err == nil {
		err = tell(notices.Subject{Expires: end.Expires}, end.Ahead)
	}
	if end.Expires.IsZero() || current == 0 || !now.Before(end.Expires) {
		end = ending{}
	}
	return next, errors.Join(err, t.expiries.note(ctx, name, end))
}

// expiries knows the API keys that end soon, at a cost that grows with these.
type expiries struct {
	store  store.Store
	engine *engine.Engine
	now    func() time.Time
}

// ending is an API key with an end.
type ending struct {
	Client  string        `json:"client"`
	Expires time.Time     `json:"expires"`
	Ahead   time.Duration `json:"ahead"`
}

// note stores when a key ends; with a zero time that it does not.
func (x expiries) note(ctx context.Context, name key.Name, end ending) error {
	body, err := json.Marshal(end)
	if err != nil {
		return fmt.Errorf("encode the end of %s: %w", name, err)
	}
	return x.store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindExpiring, string(name))
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindExpiring, Name: string(name)}, nil
		}
		switch {
		case err != nil:
			return err
		case end.Expires.IsZero() && doc.Rev == 0, doc.Rev != 0 && string(doc.Body) == string(body):
			return nil
		case end.Expires.IsZero():
			return tx.Docs.Delete(ctx, doc.Kind, doc.Name, doc.Rev)
		}
		doc.Body, doc.Due = body, end.Expires.Add(-end.Ahead)
		_, err = tx.Docs.Put(ctx, doc)
		return err
	})
}

// due returns the documents of keys that end soon, the first to be told of first.
func (x expiries) due(ctx context.Context, limit int) (docs []store.Doc, err error) {
	err = x.store.View(ctx, func(tx store.Tx) error {
		var err error
		docs, err = tx.Index.Due(ctx, kindExpiring, x.now(), limit)
		return err
	})
	return docs, err
}

// late tells the operators of the keys that end soon.
func (x expiries) late(ctx context.Context, limit int) (list []signals.LatePartner, err error) {
	docs, err := x.due(ctx, limit)
	if err != nil {
		return nil, err
	}
	for _, doc := range docs {
		var end ending
		if err := json.Unmarshal(doc.Body, &end); err != nil {
			return nil, fmt.Errorf("the stored end of %s is damaged: %w", doc.Name, err)
		}
		view, err := x.engine.Key(ctx, key.Name(doc.Name))
		if errors.Is(err, engine.ErrNotFound) || err == nil && !x.now().Before(end.Expires) {
			continue // what is noted of it ends with the next plan
		}
		if err != nil {
			return nil, err
		}
		message := fmt.Sprintf("the API key %s of %s ends at %s; ", doc.Name, end.Client, end.Expires.UTC().Format(time.DateTime))
		if at := view.Next.At; at.IsZero() || at.After(end.Expires) {
			message += "no rotation is due before, and none would prolong it"
		} else {
			message += fmt.Sprintf("the rotation that is due at %s does not prolong it", at.UTC().Format(time.DateTime))
		}
		list = append(list, signals.LatePartner{
			Key: key.Name(doc.Name), Client: end.Client, Version: view.State.Labelled(key.Current), Expiring: true, Since: doc.Due, Message: message,
		})
	}
	return list, nil
}

// check tells doctor of the keys that end soon.
func (x expiries) check(ctx context.Context) (engine.Check, error) {
	check := engine.Check{Name: "API keys that end", Status: "ok", Message: "none ends soon"}
	list, err := x.late(ctx, maxEnding)
	if err != nil || len(list) == 0 {
		return check, err
	}
	var messages []string
	for i := range list[:min(len(list), maxEndingNamed)] {
		messages = append(messages, list[i].Message)
	}
	if more := len(list) - len(messages); more > 0 {
		messages = append(messages, fmt.Sprintf("and %d more", more))
	}
	check.Status, check.Message = "warning", strings.Join(messages, ". ")
	check.Hint = "set a later expires in the key's config if the client is to go on, and apply it: see docs/runbooks/api-key-expiring.md"
	return check, nil
}
