package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// toldNotice is what the server tells of one notice.
type toldNotice struct {
	Occasion string    `json:"occasion"`
	Version  uint64    `json:"version"`
	Rotation string    `json:"rotation,omitempty"`
	By       string    `json:"by"`
	To       string    `json:"to"`
	At       time.Time `json:"at,omitzero"`
	Sent     time.Time `json:"sent,omitzero"`
	GivenUp  time.Time `json:"givenUp,omitzero"`
	NextTry  time.Time `json:"nextTry,omitzero"`
	Tries    int       `json:"tries"`
	Failure  string    `json:"failure,omitempty"`
}

func (a *app) outcome(n *toldNotice) string {
	switch {
	case !n.Sent.IsZero():
		return "sent " + a.sinceTime(n.Sent)
	case !n.GivenUp.IsZero():
		return fmt.Sprintf("given up at try %d: %s", n.Tries, n.Failure)
	case n.Failure != "":
		return "next try " + a.sinceTime(n.NextTry) + ": " + n.Failure
	}
	return "on its way"
}

func (a *app) apiKeyNoticesCommand() *cobra.Command {
	c := a.action("notices NAME", "List what a client was told, and whether it arrived", func(cmd *cobra.Command, args []string) error {
		answer := struct {
			Notices []toldNotice `json:"notices"`
		}{Notices: []toldNotice{}}
		if err := a.plain(cmd.Context(), http.MethodGet, "/v1/apikeys/notices", url.Values{"key": {args[0]}}, nil, &answer); err != nil {
			return err
		}
		return a.result(answer.Notices, func(w io.Writer) {
			var rows [][]string
			for i := range answer.Notices {
				n := &answer.Notices[i]
				rows = append(rows, []string{a.sinceTime(n.At), n.Occasion, version(n.Version), n.By, n.To, a.outcome(n)})
			}
			a.list(w, "AT|OCCASION|VERSION|BY|TO|OUTCOME", rows, "no notices; the key's config says whom to tell: notify")
		})
	})
	c.ValidArgsFunction = a.completeKeys
	return c
}

func (a *app) apiKeyNotifyCommand() *cobra.Command {
	var test bool
	c := a.action("notify NAME", "Remind a client now that its next key waits", func(cmd *cobra.Command, args []string) error {
		var answer struct {
			Recipients int `json:"recipients"`
		}
		if err := a.plain(cmd.Context(), http.MethodPost, "/v1/apikeys/notices", nil, map[string]any{"key": args[0], "test": test}, &answer); err != nil {
			return err
		}
		return a.result(answer, func(w io.Writer) {
			fmt.Fprintf(w, "%s of %s: keyturn apikey notices %s tells whether it arrived\n", plural(answer.Recipients, "recipient"), clean(args[0]), clean(args[0]))
		})
	})
	c.Long = `Sends a reminder, by e-mail and webhook as the key's config says, beside those of its
schedule. It needs a rotation that waits for the client; with --test a notice that says
so is sent at any time, to try whether notices arrive.`
	c.Flags().BoolVar(&test, "test", false, "send a test")
	c.ValidArgsFunction = a.completeKeys
	return c
}

// signingSecret is the result of webhook-secret. Secret is absent when it went to a file.
type signingSecret struct {
	Number   uint64    `json:"number"`
	Secret   string    `json:"secret,omitempty"`
	File     string    `json:"file,omitempty"`
	Made     time.Time `json:"made"`
	OldUntil time.Time `json:"oldUntil,omitzero"`
}

func (a *app) webhookSecretCommand() *cobra.Command {
	var to handOver
	var renew bool
	c := a.action("webhook-secret NAME", "Show what a client's webhooks are signed with, or renew it", func(cmd *cobra.Command, args []string) error {
		if err := to.check(a); err != nil {
			return err
		}
		var s signingSecret
		if err := a.plain(cmd.Context(), http.MethodPost, "/v1/apikeys/webhook-secret", nil, map[string]any{"key": args[0], "renew": renew}, &s); err != nil {
			return err
		}
		text := s.Secret
		s.Secret, s.File = "", to.out
		if err := to.give(a, text, &s, func() { s.Secret = text }); err != nil {
			return err
		}
		if !s.OldUntil.IsZero() {
			a.note("the secret before signs as well, until %s", a.sinceTime(s.OldUntil))
		}
		return nil
	})
	c.Long = `Webhooks are signed as Standard Webhooks says, with a secret of the key's own. With
--renew another one is made: both sign for seven days, so that the client can change
when it likes. The client can do the same itself, with its API key. Every reading is in
the audit log.`
	c.Example = "  keyturn apikey webhook-secret partners/acme --renew --out acme.webhook"
	c.Flags().BoolVar(&renew, "renew", false, "make another one")
	to.register(c)
	c.ValidArgsFunction = a.completeKeys
	return c
}
