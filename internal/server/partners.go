package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	service "github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/compat/apikeys"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/key"
)

// partner returns an API key, and whom its config wants told; ErrNotFound for what
// is none.
func (t *teller) partner(ctx context.Context, name key.Name) (view engine.KeyView, notify apikey.Notify, err error) {
	if view, err = t.server.engine.Key(ctx, name); err != nil {
		return view, notify, err
	}
	if view.Resource.Spec.Provider != "apikey" {
		return view, notify, fmt.Errorf("%w: %s is no API key", engine.ErrNotFound, name)
	}
	notify, err = apikey.NotifyOf(view.Resource.Spec.Config)
	return view, notify, err
}

// List implements apikeys.Notices.
func (t *teller) List(ctx context.Context, name key.Name, limit int) ([]notices.Told, error) {
	return t.outbox.List(ctx, name, limit)
}

// Tell implements apikeys.Notices: the partner is reminded of the rotation under way,
// or told that this is a test.
func (t *teller) Tell(ctx context.Context, actor audit.Actor, name key.Name, test bool) (int, error) {
	view, notify, err := t.partner(ctx, name)
	if err != nil {
		return 0, err
	}
	recipients := recipientsOf(&notify)
	if len(recipients) == 0 {
		return 0, fmt.Errorf("%w: the config of %s names nobody to tell; give notify.email or notify.webhook", engine.ErrInvalid, name)
	}
	if test {
		subject := notices.Subject{Key: name, Client: notify.Client, From: view.State.Labelled(key.Current)}
		return t.outbox.Tell(ctx, actor, &subject, notices.Test, recipients)
	}
	rotations, err := t.server.engine.Rotations(ctx, name, key.RotationID{}, maxTold)
	if err != nil {
		return 0, err
	}
	for i := range rotations {
		r := &rotations[i].RotationRecord
		if r.From != 0 && slices.Contains([]rotation.Phase{rotation.Presenting, rotation.Draining}, r.Phase) {
			subject := subjectOf(notify.Client, name, r)
			return t.outbox.Tell(ctx, actor, &subject, notices.Reminder, recipients)
		}
	}
	return 0, fmt.Errorf("%w: no rotation of %s waits for its client; a test notice can be sent at any time", engine.ErrState, name)
}

// Secret implements apikeys.Notices.
func (t *teller) Secret(ctx context.Context, actor audit.Actor, name key.Name, renew bool) (notices.Shown, error) {
	if _, _, err := t.partner(ctx, name); err != nil {
		return notices.Shown{}, err
	}
	return t.secrets.Show(ctx, actor, name, renew)
}

// partners is the engine, and which partners show old API keys.
type partners struct {
	*engine.Engine
	teller *teller
}

var (
	_ apikeys.Notices       = (*teller)(nil)
	_ signals.PartnerSource = partners{}
)

const (
	// lateUse is for how long somebody who has used an old key is taken to use it still.
	lateUse = 24 * time.Hour
	// lateRefusal is for how long somebody who was refused is told of.
	lateRefusal = time.Hour
	// maxCallers bounds the names of those who show a key.
	maxCallers = 10
)

// LatePartners implements signals.PartnerSource.
func (p partners) LatePartners(ctx context.Context, limit int) ([]signals.LatePartner, error) {
	var list []signals.LatePartner
	for _, name := range p.teller.opened() {
		if len(list) == limit {
			return list, nil
		}
		late, err := p.teller.late(ctx, name)
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			return nil, err
		}
		list = append(list, late...)
	}
	now := p.teller.now()
	tried, err := p.teller.server.apiKeys.TriedSince(ctx, now.Add(-lateRefusal), limit)
	if err != nil {
		return nil, err
	}
	for i := range tried {
		t := &tried[i]
		list = append(list, signals.LatePartner{
			Key: t.Key, Client: t.Client, Version: t.Version, Refused: true, Since: t.Since, Callers: callers(t.RefusedBy, now.Add(-lateRefusal)),
			Message: fmt.Sprintf("%v of %s, the API key of %s, is refused, and was shown %d times, last at %s", t.Version, t.Key, t.Client, t.Refused, t.RefusedLast.UTC().Format(time.DateTime)),
		})
	}
	ending, err := p.teller.expiries.late(ctx, max(limit-len(list), 1))
	return append(list, ending...)[:min(len(list)+len(ending), limit)], err
}

// late tells of a key whose client has had its time to change.
func (t *teller) late(ctx context.Context, name key.Name) (list []signals.LatePartner, err error) {
	view, notify, err := t.partner(ctx, name)
	if err != nil {
		return nil, err
	}
	now := t.now()
	for i := range view.State.Rotations {
		r := &view.State.Rotations[i]
		if r.From == 0 || r.Phase != rotation.Presenting && r.Phase != rotation.Draining || now.Sub(r.StartedAt) < notify.Late {
			continue
		}
		one := signals.LatePartner{Key: name, Client: notify.Client, Version: r.From, Since: r.StartedAt.Add(notify.Late)}
		if r.Phase == rotation.Presenting {
			one.Message = fmt.Sprintf("%s has not shown %v of its API key %s, which is ready since %s", one.Client, r.To, name, r.StartedAt.UTC().Format(time.DateTime))
		}
		uses, err := t.server.apiKeys.Versions(ctx, name)
		if err != nil {
			return nil, err
		}
		for j := range uses {
			u := &uses[j]
			if u.Version != r.From || now.Sub(u.Last) > lateUse {
				continue
			}
			one.Callers = callers(u.By, now.Add(-lateUse))
			if one.Message == "" {
				one.Message = fmt.Sprintf("%s still uses %v of its API key %s, last at %s; %v is ready since %s",
					one.Client, r.From, name, u.Last.UTC().Format(time.DateTime), r.To, r.StartedAt.UTC().Format(time.DateTime))
			}
		}
		if one.Message != "" {
			list = append(list, one)
		}
	}
	return list, nil
}

// callers names those who have shown a key since a time.
func callers(by []service.UsedBy, since time.Time) []string {
	var names []string
	for i := range by {
		if name := by[i].String(); name != "" && by[i].Last.After(since) && len(names) < maxCallers {
			names = append(names, name)
		}
	}
	return names
}
