package real

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-smtp"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// mailbox is an SMTP server and what it was sent.
type mailbox struct {
	mu      sync.Mutex
	letters []string
}

func (m *mailbox) NewSession(*smtp.Conn) (smtp.Session, error) { return &letter{box: m}, nil }

func (m *mailbox) find(parts ...string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.letters {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(l, part)
		}
		if all {
			return true
		}
	}
	return false
}

func (m *mailbox) all() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.letters, "\n")
}

// letter is one on its way; it implements smtp.Session.
type letter struct {
	box  *mailbox
	head string
}

func (l *letter) Mail(from string, _ *smtp.MailOptions) error {
	l.head += "from " + from + "\n"
	return nil
}

func (l *letter) Rcpt(to string, _ *smtp.RcptOptions) error { l.head += "to " + to + "\n"; return nil }
func (l *letter) Reset()                                    { l.head = "" }
func (*letter) Logout() error                               { return nil }

func (l *letter) Data(r io.Reader) error {
	body, err := io.ReadAll(r)
	l.box.mu.Lock()
	defer l.box.mu.Unlock()
	// Lines are joined as quoted-printable breaks them.
	l.box.letters = append(l.box.letters, l.head+strings.ReplaceAll(string(body), "=\r\n", ""))
	return err
}

// TestPartnerIsTold: a partner hears by e-mail and webhook that its next key is
// ready, and that the old one is refused; each once, in the audit log, without a key.
func TestPartnerIsTold(t *testing.T) {
	box := &mailbox{}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mail := smtp.NewServer(box)
	go func() { _ = mail.Serve(listener) }() // it ends with the test
	t.Cleanup(func() { _ = mail.Close() })
	var mu sync.Mutex
	var hooked []string
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var m struct {
			Type string
			Data map[string]any
		}
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || m.Data["client"] != "ACME Ltd." || r.Header.Get("Webhook-Id") == "" {
			t.Errorf("the webhook got %+v, %v", m, err)
		}
		mu.Lock()
		defer mu.Unlock()
		hooked = append(hooked, m.Type)
	}))
	t.Cleanup(hook.Close)
	w := newAPIKeyWorld(t, strings.Replace(apiKeyPolicy, "ackTimeout: 10s", "ackTimeout: 1h", 1), "    notify: {email: [\"keys@acme.example\"], webhook: [\""+hook.URL+"\"], remind: 24h}\n", func(w *world) {
		w.config.APIKeys.Page = "https://keyturn.example/apikeys"
		w.config.APIKeys.Mail.Server, w.config.APIKeys.Mail.From, w.config.APIKeys.Mail.Insecure = listener.Addr().String(), "keyturn@example.com", true
	})
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	first := w.reveal(t, apiKey, 0)
	w.self(t, http.MethodGet, ownStatus, first) // the rotation waits for this client
	id := w.rotateKey(t, apiKey, "yearly")
	eventually(t, "the partner hears of its next key", func() bool {
		return box.find("from keyturn@example.com\nto keys@acme.example\n", "Subject: The next API key of ACME Ltd. is ready", "https://keyturn.example/apikeys")
	})
	_, next := w.self(t, http.MethodPost, ownSuccessor, first)
	second, _ := next["key"].(string)
	w.self(t, http.MethodGet, ownStatus, second)
	w.finish(t, id, "done")
	eventually(t, "the partner hears that the old key is refused", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return box.find("Subject: The old API key of ACME Ltd. is refused") && len(hooked) == 2
	})
	if n := strings.Count(box.all(), "Subject:"); n != 2 || strings.Contains(box.all(), first) || strings.Contains(box.all(), second) {
		t.Errorf("%d letters, or a key in them", n)
	}
	eventually(t, "all four are in the audit log", func() bool {
		log, err := w.control.ReadLog(t.Context(), &keyturnv1.ReadLogRequest{Key: apiKey, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(strings.Join(log.GetEntries(), "\n"), `"notice.sent"`) == 4
	})
}
