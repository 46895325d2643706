//go:build soak

package real

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// browser is a tab of a Chromium of its own.
type browser struct {
	ctx context.Context
	// dir is where it keeps what it keeps.
	dir string
}

// newBrowser starts one, which is closed when the test ends at the latest.
func newBrowser(t *testing.T) (b *browser, quit func()) {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v; run scripts/install-parts soak", err)
	}
	b = &browser{dir: t.TempDir()}
	allocator, stop := chromedp.NewExecAllocator(
		context.WithoutCancel(t.Context()), chromedp.ExecPath(path), chromedp.UserDataDir(b.dir), chromedp.Flag("headless", true), chromedp.Flag("no-sandbox", true),
		chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true), chromedp.Flag("no-first-run", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("ignore-certificate-errors", true), chromedp.WindowSize(1100, 1400),
	)
	ctx, cancel := chromedp.NewContext(allocator)
	b.ctx = ctx
	// What the page's policy refuses, and what its script does wrong, is told there.
	messages := chromedp.Console(ctx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for m, err := range messages {
			if err == nil && !strings.Contains(m.Text, "Failed to load resource") { // an answer that is an error
				t.Errorf("the browser's console: %v", m)
			}
		}
	}()
	quit = sync.OnceFunc(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("close the browser: %v", err)
		}
		cancel()
		stop()
		<-told
	})
	t.Cleanup(quit)
	return b, quit
}

// press types on the keyboard, whatever has the focus.
func (b *browser) press(t *testing.T, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if err := chromedp.Do(b.ctx, chromedp.KeyEvent(key)); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *browser) open(t *testing.T, address string) {
	t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.Navigate(address)); err != nil {
		t.Fatal(err)
	}
}

// eval is what an expression is on the page.
func (b *browser) eval(t *testing.T, expression string) string {
	t.Helper()
	text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return text
}

// sees waits until an element, found by its ID, shows the words, as somebody sees it.
func (b *browser) sees(t *testing.T, id string, words ...string) string {
	t.Helper()
	text := ""
	defer func() {
		if t.Failed() {
			t.Logf("the page at last:\n%s", b.eval(t, "document.body.innerText"))
		}
	}()
	eventually(t, fmt.Sprintf("%s shows %q", id, words), func() bool {
		text = b.eval(t, fmt.Sprintf("document.getElementById(%q).checkVisibility() && document.getElementById(%q).innerText", id, id))
		for _, word := range words {
			if !strings.Contains(text, word) {
				return false
			}
		}
		return text != "false"
	})
	return text
}

// focused waits until an element has the focus.
func (b *browser) focused(t *testing.T, id string) {
	t.Helper()
	eventually(t, id+" has the focus", func() bool { return b.eval(t, "document.activeElement.id") == id })
}

// TestEmergencyByButton: somebody with a keyboard and a token declares the keys with a
// label compromised in a browser, and sees each of them refused. The token stays in the page.
func TestEmergencyByButton(t *testing.T) {
	t.Parallel()
	policy := strings.ReplaceAll(apiKeyPolicy, "quiet: 300ms, max: 1m,", "quiet: 1h, max: 2h,") + "  emergency: {strategy: replace-first, grace: 1h}\n"
	w := newAPIKeyWorld(t, policy, "    keep: sealed\n")
	const many = 3
	old := map[string]string{}
	for i := range many {
		name := fmt.Sprintf("partners/stolen-%d", i)
		w.apply(t, fmt.Sprintf(`
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s, labels: {team: stolen}}
spec: {provider: apikey, policy: partners, config: {client: "<b>Partner</b> %d", prefix: acme_live, keep: sealed}}
`, name, i))
		w.wait(t, w.rotateKey(t, name, "first"), func(r *keyturnv1.Rotation) bool { return r.GetCutOverAt() != nil })
		old[name] = w.reveal(t, name, 0)
		if v, err := w.verify(t.Context(), old[name], "thief"); err != nil || !v.Valid {
			t.Fatalf("%s: %+v, %v", name, v, err)
		}
	}
	viewer, err := w.control.CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "onlooker", Role: "viewer", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	b, quit := newBrowser(t)
	page := w.address() + "/emergency"

	t.Log("a token that nobody has, and one without the role")
	b.open(t, page)
	b.focused(t, "token")
	b.press(t, "kt_nobody", kb.Enter)
	b.sees(t, "problem", "unauthenticated")
	b.focused(t, "token")
	b.press(t, viewer.GetToken(), kb.Enter)
	b.focused(t, "by")
	b.press(t, kb.Tab, "team=stolen", kb.Enter)
	b.sees(t, "problem", "permission_denied")
	if hidden := b.eval(t, "document.getElementById('button').checkVisibility()"); hidden != "false" {
		t.Error("there is a button before keys were shown")
	}

	t.Log("the keys are shown, and declared by the button")
	b.open(t, "about:blank")
	b.open(t, page)
	b.focused(t, "token")
	b.press(t, w.token, kb.Enter)
	b.sees(t, "list", "None")
	b.focused(t, "by")
	b.press(t, kb.Tab, "team=stole", kb.Enter)
	b.sees(t, "problem", "team=stole")
	b.press(t, "n", kb.Enter)
	b.focused(t, "found-title")
	b.sees(t, "found", "3 keys would be rotated", "partners/stolen-0", "partners/stolen-1", "partners/stolen-2", "Rotate 3 keys now")
	b.press(t, kb.Tab, kb.Tab, kb.ArrowDown, kb.ArrowDown) // past the table, to the strategies
	b.sees(t, "button", "Contain and replace 3 keys")
	b.press(t, kb.Tab, kb.Tab, kb.Enter) // without a reason nothing is sent
	b.focused(t, "reason")
	b.press(t, "the laptop was stolen", kb.Tab, kb.Enter, kb.Enter)
	b.focused(t, "progress-title")
	b.sees(t, "headline", "All 3 keys are refused everywhere, after")
	rows := b.sees(t, "rows", "partners/stolen-0", "partners/stolen-1", "partners/stolen-2")
	if n := strings.Count(rows, "✓ after"); n != many || strings.Contains(rows, "not yet") {
		t.Errorf("%d of %d keys are shown as refused:\n%s", n, many, rows)
	}
	for name, text := range old {
		if v, err := w.verify(t.Context(), text, "thief"); err != nil || v.Valid {
			t.Errorf("%s is shown as refused, and is let in: %+v, %v", name, v, err)
		}
	}
	list, err := w.control.ListEmergencies(t.Context(), &keyturnv1.ListEmergenciesRequest{})
	if err != nil || len(list.GetEmergencies()) != 1 {
		t.Fatalf("after two presses: %v, %v", list, err)
	}
	made := list.GetEmergencies()[0]
	if made.GetStrategy() != "contain-first" || made.GetReason() != "the laptop was stolen" || made.GetTotal() != many {
		t.Errorf("declared was %v", made)
	}
	b.sees(t, "pack", "keyturn evidence pack "+made.GetId())
	b.sees(t, "list", "team=stolen: All 3 keys are refused everywhere")

	t.Log("in another one, by a policy that leaves time, who still uses an old version is named")
	second, err := w.control.DeclareEmergency(t.Context(), &keyturnv1.DeclareEmergencyRequest{Selector: "team=stolen", Reason: "not known whether anybody has them"})
	if err != nil {
		t.Fatal(err)
	}
	slow := w.reveal(t, "partners/stolen-1", 2)
	b.eval(t, "location.hash = '"+second.GetEmergency().GetId()+"'")
	b.sees(t, "headline", "0 of 3 keys refused everywhere")
	eventually(t, "the user of an old version is named", func() bool {
		if v, err := w.verify(t.Context(), slow, "shop-1"); err != nil || !v.Valid {
			t.Fatalf("within the grace the old version is refused: %+v, %v", v, err)
		}
		return strings.Contains(b.eval(t, "document.getElementById('users').innerText"), "192.0.2.7 shop-1 (1 key)")
	})
	b.sees(t, "rows", "not yet", "draining", "192.0.2.7 shop-1")

	t.Log("the server is away, and is back")
	w.stop(t)
	b.sees(t, "connection", "Connection lost")
	w.start(t)
	eventually(t, "the page has found the server again", func() bool { return b.eval(t, "document.getElementById('connection').innerText") == "" })

	t.Log("loaded again, the page knows no token, and shows the same emergency with one")
	if err := chromedp.Do(b.ctx, chromedp.Reload()); err != nil {
		t.Fatal(err)
	}
	if address := b.eval(t, "location.href"); address != page+"#"+second.GetEmergency().GetId() {
		t.Errorf("the address is %s", address)
	}
	b.focused(t, "token")
	b.press(t, viewer.GetToken(), kb.Enter)
	b.focused(t, "progress-title")
	b.sees(t, "headline", "0 of 3 keys refused everywhere")
	b.sees(t, "list", "All 3 keys are refused everywhere", "0 of 3 keys refused everywhere")

	kept := b.eval(t, "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state, document.documentElement.outerHTML, document.getElementById('token').value])")
	quit()
	for what, secret := range map[string]string{"the operator's token": w.token, "the viewer's token": viewer.GetToken()} {
		if strings.Contains(kept, secret) {
			t.Errorf("%s is kept in the page or its address", what)
		}
		if strings.Contains(w.logs.String(), secret) {
			t.Errorf("%s is in the server's log", what)
		}
		for _, file := range containing(t, b.dir, []byte(secret)) {
			t.Errorf("%s is in the browser's file %s", what, file)
		}
	}
}

// containing names the files in a folder in which something is.
func containing(t *testing.T, dir string, what []byte) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was for the moment
		}
		if bytes.Contains(content, what) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return files
}
