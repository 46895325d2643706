package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// MailConfig says how partners are told by e-mail.
type MailConfig struct {
	// Server is host and port of the mail server; empty: no e-mail is sent.
	Server string `yaml:"server"`
	// From is the sender's address. Required with Server.
	From string `yaml:"from"`
	// Username and PasswordFile authenticate; none if Username is empty.
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"passwordFile"`
	// Insecure allows a connection without TLS.
	Insecure bool `yaml:"insecure"`
}

func (c *MailConfig) check() []problem {
	var problems []problem
	wrong := func(field, message string) {
		problems = append(problems, problem{Field: "apiKeys.mail." + field, Message: message})
	}
	if c.Server == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(c.Server); err != nil || !isPort(port) {
		wrong("server", "it is no host and port; write for example mail.example.com:587")
	}
	if c.From == "" {
		wrong("from", "it is missing; write for example keyturn@example.com")
	}
	if (c.Username == "") != (c.PasswordFile == "") {
		wrong("username", "username and passwordFile belong together; give both or none")
	}
	return problems
}

// WebhooksConfig says which webhooks of partners may be called.
type WebhooksConfig struct {
	// Allow are networks, as 10.1.0.0/16, that are called although they are not
	// public. Default: none.
	Allow []string `yaml:"allow"`
	// Proxy is an HTTP proxy, http://proxy.example:3128, that makes the connections to all
	// other networks; it is asked for addresses that were judged here. None is taken from
	// the environment. Default: none.
	Proxy string `yaml:"proxy"`
	// ProxyNames are hosts that the proxy is asked for by name, whatever their addresses
	// are: hooks.acme.example, or *.acme.example for all below. Default: none.
	ProxyNames []string `yaml:"proxyNames"`
	// ProxyUsername and ProxyPasswordFile authenticate at the proxy; none if empty.
	ProxyUsername     string `yaml:"proxyUsername"`
	ProxyPasswordFile string `yaml:"proxyPasswordFile"`
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func checkPage(page string) []problem {
	if page == "" {
		return nil
	}
	if u, err := url.Parse(page); err != nil || u.Scheme != "https" || u.Host == "" {
		return []problem{{Field: "apiKeys.page", Message: fmt.Sprintf("%q is no address; write for example https://keyturn.example.com/apikeys", page)}}
	}
	return nil
}

const (
	// noticePause is how long after a commit it is looked what partners must be told of,
	// noticePoll how often without having been woken.
	noticePause = time.Second
	noticePoll  = 30 * time.Second
	// webhookTime bounds one call of a webhook.
	webhookTime = 20 * time.Second
)

// teller tells partners of the rotations of their keys.
type teller struct {
	server  *Server
	now     func() time.Time
	outbox  *notices.Outbox
	secrets *notices.Secrets
	after   uint64
	// schedule says when partners are told of what lies ahead, expiries which keys end.
	schedule *notices.Schedule
	expiries expiries

	mu sync.Mutex
	// open are keys with rotations that partners, or operators, may have to be told of.
	open map[key.Name]bool
}

func (s *Server) newTeller(now func() time.Time, keys keeper.Keeper) *teller {
	secrets := notices.NewSecrets(notices.SecretsConfig{Store: s.store, Journal: s.engine, Keeper: keys, Now: now, Random: rand.Reader})
	senders := map[string]notices.Sender{"webhook": notices.NewWebhook(notices.WebhookConfig{
		Client: s.config.APIKeys.Webhooks.guard().Client(webhookTime), Now: now,
		Secrets: func(ctx context.Context, name key.Name) ([]secret.Value, error) {
			return secrets.Signing(ctx, engine.Server(), name)
		},
	})}
	if m := s.config.APIKeys.Mail; m.Server != "" {
		host, port, _ := net.SplitHostPort(m.Server) // it was checked
		number, _ := strconv.Atoi(port)
		senders["email"] = notices.NewMail(notices.MailConfig{
			Host: host, Port: number, From: m.From, Username: m.Username, Plain: m.Insecure,
			Password: func() (string, error) {
				b, err := os.ReadFile(m.PasswordFile)
				return strings.TrimSpace(string(b)), err
			},
		})
	}
	t := &teller{server: s, now: now, secrets: secrets, open: map[key.Name]bool{}, outbox: notices.New(notices.Config{
		Store: s.store, Journal: s.engine, Actor: engine.Server(), Logger: s.log, Now: now, Senders: senders, Page: s.config.APIKeys.Page,
	}), expiries: expiries{store: s.store, engine: s.engine, now: now}}
	t.schedule = notices.NewSchedule(notices.ScheduleConfig{Store: s.store, Now: now, Changed: t.changed, Plan: t.planKey})
	return t
}

// run tells partners until ctx ends.
func (t *teller) run(ctx context.Context) {
	follower := store.Follower{
		Store: t.server.store, Topic: store.TopicDocs, Pause: noticePause, Poll: noticePoll, Later: true,
		Failed: func(ctx context.Context, err error) {
			t.server.log.WarnContext(ctx, "partners could not be told of their keys; trying again", "error", err)
		},
	}
	follower.Run(ctx, func(ctx context.Context) error {
		return errors.Join(t.look(ctx), t.schedule.Look(ctx), t.outbox.Deliver(ctx))
	})
}

// look notes what partners must be told of.
func (t *teller) look(ctx context.Context) error {
	const limit = 1000
	for more := true; more; {
		list, next, err := t.server.engine.Changed(ctx, t.after, limit)
		if err != nil {
			return err
		}
		for i := range list {
			if len(list[i].State.Rotations) > 0 {
				t.mark(list[i].Name, true)
			}
		}
		t.after, more = next, len(list) == limit
	}
	var problems []error
	for _, name := range t.opened() {
		open, err := t.tell(ctx, name)
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			problems = append(problems, err)
		}
		if !open {
			t.mark(name, false)
		}
	}
	return errors.Join(problems...)
}

func (t *teller) mark(name key.Name, open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if open {
		t.open[name] = true
		return
	}
	delete(t.open, name)
}

// opened are the keys with rotations that partners may have to be told of.
func (t *teller) opened() []key.Name {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.open))
}

const (
	// maxTold is how many of a key's latest rotations are looked at.
	maxTold = 5
	// latelyEnded is how long after its end a rotation is still told of.
	latelyEnded = time.Hour
)

// tell notes what the partner of one key must be told of, and reports whether
// something may follow.
func (t *teller) tell(ctx context.Context, name key.Name) (open bool, err error) {
	view, err := t.server.engine.Key(ctx, name)
	if err != nil {
		return false, err
	}
	if view.Resource.Spec.Provider != "apikey" {
		return false, nil
	}
	notify, err := apikey.NotifyOf(view.Resource.Spec.Config)
	if err != nil || len(notify.Email)+len(notify.Webhook) == 0 {
		return len(view.State.Rotations) > 0, err // the operators may have to be told
	}
	now := t.now()
	rotations, err := t.server.engine.Rotations(ctx, name, key.RotationID{}, maxTold)
	if err != nil {
		return true, err
	}
	for i := range rotations {
		r := &rotations[i].RotationRecord
		open = open || !r.Ended()
		if r.Ended() && now.Sub(r.EndedAt) > latelyEnded {
			continue
		}
		if !slices.Contains([]rotation.Phase{rotation.Presenting, rotation.Draining, rotation.Revoking, rotation.Quarantine, rotation.Destroying, rotation.Done}, r.Phase) {
			continue
		}
		subject := subjectOf(notify.Client, name, r)
		if err := t.outbox.Note(ctx, &subject, recipientsOf(&notify), notices.Times{Remind: notify.Remind}); err != nil {
			return true, err
		}
	}
	return open, nil
}

// subjectOf is a rotation as its partner is told of it.
func subjectOf(client string, name key.Name, r *engine.RotationRecord) notices.Subject {
	subject := notices.Subject{
		Key: name, Client: client, Rotation: r.ID, From: r.From, To: r.To, Ready: r.StartedAt, Cut: r.Plan.RevokeAtMax,
		Refused: r.Phase == rotation.Quarantine || r.Phase == rotation.Destroying || r.Phase == rotation.Done,
	}
	if r.Plan.DrainMax > 0 && !r.CutOverAt.IsZero() {
		subject.Deadline = r.CutOverAt.Add(r.Plan.DrainMax)
	}
	return subject
}

func recipientsOf(notify *apikey.Notify) []notices.Recipient {
	var recipients []notices.Recipient
	for _, to := range notify.Email {
		recipients = append(recipients, notices.Recipient{By: "email", To: to})
	}
	for _, to := range notify.Webhook {
		recipients = append(recipients, notices.Recipient{By: "webhook", To: to})
	}
	return recipients
}
