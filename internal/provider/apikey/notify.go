package apikey

import (
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/provider"
)

// Notify says who is told of a key's rotations, and how often.
type Notify struct {
	Client         string
	Email, Webhook []string
	// Remind is the time between two reminders; 0: none.
	Remind time.Duration
	// Ahead is how long before a planned rotation they are told; 0: not at all.
	Ahead time.Duration
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

func notices(value any, report func(path, problem, hint string)) Notify {
	var n Notify
	if value == nil {
		return n
	}
	block, ok := value.(map[string]any)
	if !ok {
		report("notify", "a block is required", `write for example {email: ["keys@acme.example"], remind: 7d}`)
		return n
	}
	for field := range block {
		if !slices.Contains([]string{"email", "webhook", "remind", "ahead"}, field) {
			report("notify."+field, "unknown field", "the fields are email, webhook, remind and ahead")
		}
	}
	n.Email = recipients("notify.email", block["email"], "keys@acme.example", isMail, report)
	n.Webhook = recipients("notify.webhook", block["webhook"], "https://acme.example/keys", isWebhook, report)
	if len(n.Email)+len(n.Webhook) == 0 {
		report("notify", "it names nobody", "give email, webhook or both")
	}
	n.Remind = span("notify.remind", block["remind"], defaultRemind, minRemind, report)
	n.Ahead = span("notify.ahead", block["ahead"], 0, minRemind, report)
	return n
}

// span reads a duration up to a year.
func span(path string, value any, otherwise, least time.Duration, report func(path, problem, hint string)) time.Duration {
	if value == nil {
		return otherwise
	}
	d, err := days(value)
	if err != nil || d < least || d > maxRemind {
		report(path, fmt.Sprintf("%v is no duration of %v to a year", value, least), "write for example 7d or 36h")
	}
	return d
}

func recipients(path string, value any, example string, good func(string) bool, report func(path, problem, hint string)) []string {
	if value == nil {
		return nil
	}
	list, ok := value.([]any)
	if !ok || len(list) > maxRecipients {
		report(path, fmt.Sprintf("a list of at most %d is required", maxRecipients), "write for example ["+strconv.Quote(example)+"]")
		return nil
	}
	var all []string
	for i, one := range list {
		text, _ := one.(string)
		if !good(text) {
			report(fmt.Sprintf("%s[%d]", path, i), "nobody can be told there", "write for example "+example)
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

// days reads a duration that may be of days.
func days(value any) (time.Duration, error) {
	text, _ := value.(string)
	if whole, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(whole, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(text)
}
