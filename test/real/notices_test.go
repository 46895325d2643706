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
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

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

// hooked is what a webhook was sent.
type hooked struct {
	header http.Header
	body   []byte
}

// event is the occasion of a notice.
func (h *hooked) event(t *testing.T) string {
	t.Helper()
	var m struct {
		Type string
		Data map[string]any
	}
	if err := json.Unmarshal(h.body, &m); err != nil || m.Data["client"] != "ACME Ltd." {
		t.Errorf("the webhook got %s, %v", h.body, err)
	}
	return m.Type
}

// TestPartnerIsTold: a partner hears by e-mail and webhook that a rotation is planned,
// that its next key is ready, and that the old one is refused; each once, in the audit
// log, without a key. What its webhook gets is signed by a secret that it fetches with
// its key, and by the next one too while that is new.
func TestPartnerIsTold(t *testing.T) {
	t.Parallel()
	box := &mailbox{}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mail := smtp.NewServer(box)
	go func() { _ = mail.Serve(listener) }() // it ends with the test
	t.Cleanup(func() { _ = mail.Close() })
	var mu sync.Mutex
	var hooks []hooked
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		hooks = append(hooks, hooked{r.Header.Clone(), body})
	}))
	t.Cleanup(hook.Close)
	policy := strings.Replace(apiKeyPolicy, "ackTimeout: 10s", "ackTimeout: 1h", 1) + "  rotate: {every: 30d}\n"
	w := newAPIKeyWorld(t, policy, "    notify: {email: [\"keys@acme.example\"], webhook: [\""+hook.URL+"\"], remind: 24h, ahead: 60d}\n", func(w *world) {
		w.config.APIKeys.Webhooks.Allow = []string{"127.0.0.0/8"}
		w.config.APIKeys.Page = "https://keyturn.example/apikeys"
		w.config.APIKeys.Mail.Server, w.config.APIKeys.Mail.From, w.config.APIKeys.Mail.Insecure = listener.Addr().String(), "keyturn@example.com", true
	})
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	first := w.reveal(t, apiKey, 0)
	_, secret := w.self(t, http.MethodGet, "/v1/apikeys/self/webhook-secret", first) // the rotation waits for this client
	known, _ := secret["secret"].(string)
	eventually(t, "the partner hears of the planned rotation", func() bool {
		return box.find("Subject: The API key of ACME Ltd. will be replaced on", "version 1 of the API key partners/acme")
	})
	id := w.rotateKey(t, apiKey, "yearly")
	eventually(t, "the partner hears of its next key", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(hooks) == 2 && box.find("from keyturn@example.com\nto keys@acme.example\n", "Subject: The next API key of ACME Ltd. is ready", "https://keyturn.example/apikeys")
	})
	_, renewed := w.self(t, http.MethodPost, "/v1/apikeys/self/webhook-secret", first)
	_, next := w.self(t, http.MethodPost, ownSuccessor, first)
	second, _ := next["key"].(string)
	w.self(t, http.MethodGet, ownStatus, second)
	w.finish(t, id, "done")
	eventually(t, "the partner hears that the old key is refused, and of the rotation after this one", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return box.find("Subject: The old API key of ACME Ltd. is refused") && box.find("will be replaced on", "version 2 of the API key") && len(hooks) == 4
	})
	all := box.all()
	if n := strings.Count(all, "Subject:"); n != 4 || strings.Contains(all, first) || strings.Contains(all, second) {
		t.Errorf("%d letters, or a key in them", n)
	}
	fresh, _ := renewed["secret"].(string)
	if known == fresh || renewed["oldUntil"] == nil {
		t.Errorf("renewed: %v", renewed["number"])
	}
	takes := func(h *hooked, text string) bool {
		t.Helper()
		receiver, err := standardwebhooks.NewWebhook(text)
		if err != nil {
			t.Fatal(err)
		}
		return receiver.Verify(h.body, h.header) == nil
	}
	var events []string
	for i := range hooks {
		h := &hooks[i]
		event := h.event(t)
		events = append(events, strings.TrimPrefix(event, "keyturn.apikey."))
		if strings.Contains(string(h.body), first) || strings.Contains(string(h.body), second) {
			t.Error("a key is in a webhook")
		}
		if !takes(h, known) || takes(h, fresh) != (i >= 2) {
			t.Errorf("%s: the old secret verifies %t, the new one %t", event, takes(h, known), takes(h, fresh))
		}
	}
	if want := "rotation-planned successor-ready old-key-refused rotation-planned"; strings.Join(events, " ") != want {
		t.Errorf("events %q, want %q", events, want)
	}
	eventually(t, "all eight are in the audit log", func() bool {
		log, err := w.control.ReadLog(t.Context(), &keyturnv1.ReadLogRequest{Key: apiKey, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(strings.Join(log.GetEntries(), "\n"), `"notice.sent"`) == 8
	})
	if code, stdout, stderr := w.keyturn(t, "", "apikey", "notify", apiKey, "--test"); code != 0 {
		t.Errorf("a test: %s%s", stdout, stderr)
	}
	eventually(t, "the test arrives", func() bool {
		_, listed, _ := w.keyturn(t, "", "apikey", "notices", apiKey)
		mu.Lock()
		defer mu.Unlock()
		return box.find("Subject: A test") && len(hooks) == 5 && strings.Count(listed, "sent ") == 10
	})
}
