package real

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// hookBox keeps what webhooks of partners were sent.
type hookBox struct {
	mu   sync.Mutex
	sent strings.Builder
}

func (h *hookBox) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.sent.Write(body)
	}
}

func (h *hookBox) text() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent.String()
}

// apiKeyRun takes an API key through everything that handles it: a rotation that its
// client follows on its own, notices, use, misuse, and an emergency, also through a
// gateway. It returns the secrets, and adds where they must not be.
func (w *world) apiKeyRun(t *testing.T, g *gatewayProcess, found places) map[string]string {
	t.Helper()
	box := &hookBox{}
	hook := httptest.NewServer(box)
	t.Cleanup(hook.Close)
	document, err := os.ReadFile("../../examples/apikey/partner.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w.apply(t, apiKeyPolicy+"---\n"+string(document)+"    notify: {webhook: [\""+hook.URL+"\"]}\n")
	w.finish(t, w.rotateKey(t, apiKey, "first"), "done")
	secrets := map[string]string{"the first API key": w.reveal(t, apiKey, 0)}
	first := secrets["the first API key"]
	g.knows(t, first)
	show := func(text string) {
		t.Helper()
		g.asked(t, text)
		if _, err := w.verify(t.Context(), text, "shop"); err != nil {
			t.Fatal(err)
		}
		_, _ = w.self(t, http.MethodGet, ownStatus, text)
		w.page(t, text, "status")
	}
	show(first)
	show(first[:len(first)-1]) // mistyped
	_, signing := w.self(t, http.MethodGet, "/v1/apikeys/self/webhook-secret", first)
	secrets["the signing secret"], _ = signing["secret"].(string)
	id := w.rotateKey(t, apiKey, "yearly")
	w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == "presenting" })
	_, next := w.self(t, http.MethodPost, ownSuccessor, first)
	secrets["the second API key"], _ = next["key"].(string)
	show(secrets["the second API key"])
	w.finish(t, id, "done")
	show(first) // refused
	eventually(t, "the partner is told twice", func() bool { return strings.Count(box.text(), "keyturn.apikey.") == 2 })
	code, listed, told := w.keyturn(t, "", "apikey", "show", apiKey)
	if code != 0 {
		t.Errorf("keyturn apikey show: %s", told)
	}
	if status, outcome := g.asked(t, first); status != http.StatusUnauthorized {
		t.Errorf("the gateway answers %d %q for the old key", status, outcome)
	}
	found["keyturn apikey show"] = []byte(listed + told)
	found["webhooks of partners"] = []byte(box.text())
	for name, text := range secrets {
		if len(text) < 30 {
			t.Errorf("%s is %q", name, text)
		}
	}
	return secrets
}
