package notices

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/wneessen/go-mail"
)

// text is a message for people.
func (m *Message) text() (subject, body string) {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n\n", args...) }
	line("To those who run %s,", m.Client)
	switch m.Occasion {
	case Planned:
		subject = fmt.Sprintf("The API key of %s will be replaced on %s", m.Client, m.Planned.UTC().Format(time.DateOnly))
		line("on %s version %d of the API key %s begins to be replaced. You need not do anything before; then you will hear from us how to fetch the next one. "+
			"The key that you have stays good while you change.", m.Planned.UTC().Format("2006-01-02 15:04 MST"), uint64(m.From), m.Key)
	case Expiring:
		subject = fmt.Sprintf("The API key of %s ends on %s", m.Client, m.Expires.UTC().Format(time.DateOnly))
		line("the API key %s ends on %s: from then on no version of it is let in, a new one neither. If you need it for longer, please ask us before.",
			m.Key, m.Expires.UTC().Format("2006-01-02 15:04 MST"))
	case Expired:
		subject = fmt.Sprintf("The API key of %s has ended", m.Client)
		line("the API key %s ended on %s and is not let in any more. If you still need it, please ask us.", m.Key, m.Expires.UTC().Format("2006-01-02 15:04 MST"))
	case Test:
		subject = fmt.Sprintf("A test: notices about the API key of %s", m.Client)
		line("this is a test: notices about the API key %s arrive here. There is nothing to do.", m.Key)
	case Ready:
		subject = fmt.Sprintf("The next API key of %s is ready", m.Client)
		line("version %d of the API key %s is ready. Please fetch it with the key that you have (version %d), take it into use, and show it once: that proves that you have it.", uint64(m.To), m.Key, uint64(m.From))
	case Reminder:
		subject = fmt.Sprintf("Reminder: the API key of %s is being replaced", m.Client)
		line("version %d of the API key %s waits for you: you have not shown it, or still use version %d.", uint64(m.To), m.Key, uint64(m.From))
	case Deadline:
		subject = fmt.Sprintf("The time of the old API key of %s is nearly over", m.Client)
		line("version %d of the API key %s is still in use. Please change to version %d.", uint64(m.From), m.Key, uint64(m.To))
	case Refused:
		subject = fmt.Sprintf("The old API key of %s is refused", m.Client)
		line("version %d of the API key %s is not let in any more. Version %d is in use.", uint64(m.From), m.Key, uint64(m.To))
	}
	if !m.Deadline.IsZero() && m.Occasion != Refused && m.Occasion != Test {
		if m.Cut {
			line("The old key ends on %s.", m.Deadline.UTC().Format("2006-01-02 15:04 MST"))
		} else {
			line("The old key is let in until %s at least; then our operators look at who still uses it.", m.Deadline.UTC().Format("2006-01-02 15:04 MST"))
		}
	}
	if m.Page != "" && m.Occasion != Refused && m.Occasion != Test && m.Occasion != Expired {
		line("Your key's page: %s", m.Page)
	}
	line("Never send a key by e-mail, nor to whoever asks for it.")
	if m.Rotation != "" {
		line("Rotation %s.", m.Rotation)
	}
	return subject, b.String()
}

// MailConfig says how to send e-mail.
type MailConfig struct {
	Host string
	Port int
	From string
	// Username and Password authenticate; none if Username is empty.
	Username string
	Password func() (string, error)
	// Plain allows a connection without TLS.
	Plain bool
	// Roots are the authorities of the server's certificate; nil: the system's.
	Roots *x509.CertPool
}

// Mail sends by SMTP.
type Mail struct{ config MailConfig }

// NewMail returns a sender of e-mail.
func NewMail(config MailConfig) *Mail { return &Mail{config: config} }

// Send implements Sender.
func (m *Mail) Send(ctx context.Context, to, id string, message *Message) error {
	subject, body := message.text()
	letter := mail.NewMsg()
	if err := letter.From(m.config.From); err != nil {
		return fmt.Errorf("sender: %w", err)
	}
	if err := letter.To(to); err != nil {
		return fmt.Errorf("recipient: %w", err)
	}
	letter.Subject(subject)
	letter.SetGenHeader("X-Keyturn-Notice", id)
	letter.SetBodyString(mail.TypeTextPlain, body)
	options := []mail.Option{mail.WithPort(m.config.Port), mail.WithTimeout(20 * time.Second), mail.WithTLSPortPolicy(mail.TLSMandatory)}
	if m.config.Plain {
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	}
	options = append(options, mail.WithPort(m.config.Port))
	if m.config.Username != "" {
		password, err := m.config.Password()
		if err != nil {
			return fmt.Errorf("password: %w", err)
		}
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(m.config.Username), mail.WithPassword(password))
	}
	client, err := mail.NewClient(m.config.Host, options...)
	if err != nil {
		return fmt.Errorf("mail server: %w", err)
	}
	if err := client.DialAndSendWithContext(ctx, letter); err != nil {
		return fmt.Errorf("send mail: %w", err)
	}
	return nil
}
