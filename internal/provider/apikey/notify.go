package apikey

import (
	"net"
	"net/mail"
	"net/url"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// Notify says who is told of a key's rotations, and how often.
type Notify struct {
	Client         string
	Email, Webhook []string
	// Remind is the time between two reminders; 0: none.
	Remind time.Duration
	// Ahead is how long before a planned rotation they are told; 0: not at all.
	Ahead time.Duration
	// Expires is when the client's keys end; zero: never.
	Expires time.Time
	// Late is after how long the operators are told of a client that still uses its
	// old key, whether or not anybody else is told.
	Late time.Duration
}

const (
	// maxRecipients bounds those of a key, of each kind.
	maxRecipients = 10
	minRemind     = time.Hour
	maxRemind     = 365 * 24 * time.Hour
	defaultRemind = 7 * 24 * time.Hour
	defaultLate   = 14 * 24 * time.Hour
	minLate       = time.Second
)

// NotifyOf reads whom the config of a key wants told; it fails as Check does.
func NotifyOf(config provider.Config) (Notify, error) {
	s, err := parse(config)
	return s.notify, err
}

// HasDates reports whether a config that Check accepts may have somebody told ahead of
// a day: of the key's end, or of a rotation. It is cheap.
func HasDates(config provider.Config) bool {
	if _, ends := config["expires"]; ends {
		return true
	}
	notify, _ := config["notify"].(map[string]any)
	_, ahead := notify["ahead"]
	return ahead
}

func notices(config *providerconf.Block) Notify {
	var n Notify
	if !config.Has("notify") {
		return n
	}
	const hint = `write for example {email: ["keys@acme.example"], remind: 7d}`
	before := config.Problems()
	b := config.Block("notify", hint, "email", "webhook", "remind", "ahead")
	n.Email = recipients(b, "email", "keys@acme.example", isMail)
	n.Webhook = recipients(b, "webhook", "https://acme.example/keys", isWebhook)
	if len(n.Email)+len(n.Webhook) == 0 && config.Problems() == before {
		b.Report("", "it names nobody", "give email, webhook or both")
	}
	n.Remind = span(b, "remind", defaultRemind, minRemind)
	n.Ahead = span(b, "ahead", 0, minRemind)
	return n
}

// span reads a duration up to a year.
func span(b *providerconf.Block, field string, otherwise, least time.Duration) time.Duration {
	return b.Duration(field, least, maxRemind, otherwise, "write for example 7d or 36h")
}

func recipients(b *providerconf.Block, field, example string, good func(string) bool) []string {
	var all []string
	for i, one := range b.List(field, 0, maxRecipients, "write for example ["+strconv.Quote(example)+"]") {
		text, _ := one.(string)
		if !good(text) {
			b.Report(providerconf.Index(field, i), "nobody can be told there", "write for example "+example)
			continue
		}
		all = append(all, text)
	}
	return all
}

func isMail(s string) bool {
	address, err := mail.ParseAddress(s)
	return err == nil && address.Address == s
}

// isWebhook takes https, and http to this machine.
func isWebhook(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}
