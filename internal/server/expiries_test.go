package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestKeyThatEnds: the partner whose API key ends soon is told once, in the audit log;
// doctor names it to the operators, and a key whose end is far away to
// nobody. A later day ends that; a nearer one tells again.
func TestKeyThatEnds(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var told []string
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var event struct {
			Type string
			Data struct {
				Key     string
				Expires time.Time
			}
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(body, &event) != nil {
			t.Errorf("%s, %v", body, err)
		}
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprint(event.Type, " ", event.Data.Key, " ", event.Data.Expires.Format(time.DateOnly)))
	}))
	t.Cleanup(hook.Close)
	config := configOf(t.TempDir())
	config.APIKeys.Webhooks.Allow = []string{"127.0.0.0/8"}
	w := startServerWith(t, config, nil)
	w.apiKey(t)
	source := func(name string, days int, more string) (document, day string) {
		day = time.Now().UTC().AddDate(0, 0, days).Format(time.DateOnly)
		return fmt.Sprintf(`---
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s}
spec:
  provider: apikey
  policy: partners
  config: {client: ACME Ltd., prefix: acme_live, keep: sealed, expires: %s, notify: {webhook: [%q]%s}}
`, name, day, hook.URL, more), day
	}
	apply := func(document string) {
		t.Helper()
		for _, p := range w.apply(t, w.root, document).GetProblems() {
			if p.GetSeverity() == "error" {
				t.Fatalf("%v", p)
			}
		}
	}
	doctor := func() *keyturnv1.Check {
		t.Helper()
		answer, err := w.control(w.root).Doctor(t.Context(), &keyturnv1.DoctorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, check := range answer.GetChecks() {
			if check.GetName() == "API keys that end" {
				return check
			}
		}
		t.Fatal("doctor does not look for keys that end")
		return nil
	}
	soon, day := source(mobileKey, 10, "")
	far, _ := source("partners/far", 40, ", ahead: 30d")
	apply(soon + far)
	answer, err := w.control(w.root).Rotate(t.Context(), &keyturnv1.RotateRequest{Name: "partners/far", Reason: "first"})
	if err != nil {
		t.Fatal(err)
	}
	w.reached(t, answer.GetRotationId(), "done")
	heard := func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(told, ", ")
	}
	first := "keyturn.apikey.key-expires " + mobileKey + " " + day
	until(t, "the partner is told", func() bool { return heard() != "" })
	until(t, "the operators are told", func() bool { return doctor().GetStatus() == "warning" })
	if message := doctor().GetMessage(); !strings.Contains(message, mobileKey) || !strings.Contains(message, day) || !strings.Contains(message, "no rotation is due before") || strings.Contains(message, "far") {
		t.Errorf("doctor says %q", message)
	}
	later, _ := source(mobileKey, 100, "")
	apply(later)
	until(t, "nothing ends soon any more", func() bool { return doctor().GetStatus() == "ok" })
	nearer, secondDay := source("partners/far", 29, ", ahead: 30d")
	apply(nearer)
	second := "keyturn.apikey.key-expires partners/far " + secondDay
	until(t, "the other partner is told", func() bool { return strings.HasSuffix(heard(), second) })
	if all := heard(); all != first+", "+second {
		t.Errorf("the partners heard %s, want %s, then %s", all, first, second)
	}
	sent := func() int {
		t.Helper()
		log, err := w.control(w.root).ReadLog(t.Context(), &keyturnv1.ReadLogRequest{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(strings.Join(log.GetEntries(), "\n"), `"notice.sent"`)
	}
	// The partner hears of it a moment before the entry is committed.
	until(t, "the second notice is in the audit log", func() bool { return sent() >= 2 })
	if n := sent(); n != 2 {
		t.Errorf("%d notices are in the audit log", n)
	}
}
