package apikeys

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"

	"github.com/keyturn/keyturn/internal/apikey"
)

// style is all that the page looks like; it is allowed by its hash.
const style = `
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem }
button { font: inherit; padding: .4rem .8rem; margin-top: .6rem }
form { border: 1px solid #d0d7de; border-radius: .4rem; padding: 1rem; margin: 1rem 0 }
code { overflow-wrap: anywhere; background: #eef1f4; padding: .1rem .3rem }
code.key { display: block; padding: .6rem; user-select: all }
table { border-collapse: collapse } th, td { text-align: left; padding: .1rem 1rem .1rem 0 }
dt { font-weight: 600 } li.now { font-weight: 600 } .done { color: #57606a }
.bad { color: #a40e26 } .note { border-left: .3rem solid #0969da; padding-left: .8rem }
`

// page is what a client sees in a browser. It needs no script and loads nothing.
const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Replace your API key</title>
<style>{{.Style}}</style>
<h1>Replace your API key</h1>
{{with .Problem}}<p class="bad" role="alert">{{.}}</p>{{end}}
{{with .Next}}<p class="note" role="status">{{.}}</p>{{end}}
{{with .Successor}}<h2>Your next key, version {{.Version}}</h2>
<p><code class="key">{{.Key}}</code></p>
<p>Copy it to where you keep secrets, now. It can be shown here again, with the key that you have, until you have proven that you have it.</p>
{{end}}
{{with .Status}}<h2>The key that you showed</h2>
<dl>
<dt>Client</dt><dd>{{.Client}}</dd>
<dt>Key</dt><dd>{{.Key}}, version {{.Version}}: {{if eq .State "current"}}in use{{else if eq .State "retiring"}}being retired, and still valid{{else}}the next one{{end}}</dd>
{{with .Expires}}<dt>Expires</dt><dd>{{.Format "2006-01-02 15:04 MST"}}</dd>{{end}}
{{with .Since}}<dt>Being retired since</dt><dd>{{.Format "2006-01-02 15:04 MST"}}</dd>{{end}}
{{with .Deadline}}<dt>Valid at least until</dt><dd>{{.Format "2006-01-02 15:04 MST"}}, unless it is not used any more before</dd>{{end}}
</dl>
{{if .OldUses}}<h2>Who used your old key lately</h2>
<table>
<tr><th>Version<th>Application<th>Address<th>Last</tr>
{{range .OldUses}}<tr><td>{{.Version}}<td>{{.Application}}<td>{{.Address}}<td>{{.LastSeen.Format "2006-01-02 15:04 MST"}}</tr>
{{end}}</table>
<p>These have to change before the old key can end.</p>
{{end}}{{end}}
<h2>What to do, in this order</h2>
<ol>
<li{{if eq .Step 1}} class="now"{{end}}>Show the key that you have: you see whether there is a next one.</li>
<li{{if eq .Step 2}} class="now"{{end}}>Fetch the next key, with the key that you have. Both are valid from then on.</li>
<li{{if eq .Step 3}} class="now"{{end}}>Give the next key to every application of yours that uses the old one.</li>
<li{{if eq .Step 4}} class="now"{{end}}>Show the next key here, once: that proves that you have it. Before this, your old key does not begin to end.</li>
<li{{if eq .Step 5}} class="now"{{end}}>Your old key ends when nobody has used it for a while. There is nothing more to do.</li>
</ol>
<form method="post" action="/apikeys" autocomplete="off">
<label>The key that you have <input type="password" name="key" required maxlength="100" spellcheck="false"></label>
<button name="do" value="status">Show its state</button>
<button name="do" value="successor">Show my next key</button>
</form>
<form method="post" action="/apikeys" autocomplete="off">
<label>Your next key, once you use it <input type="password" name="key" required maxlength="100" spellcheck="false"></label>
<button name="do" value="prove">Prove that I have it</button>
</form>
<p class="done">Keys are not stored in your browser, and nobody who writes to you needs one. Programs can do the same: <code>GET /v1/apikeys/self</code> and
<code>POST /v1/apikeys/self/successor</code>, with the key as bearer token. You have lost your key? Ask those who gave it to you.</p>
</html>
`

// pageData is what the page shows.
type pageData struct {
	Style     template.CSS
	Problem   string
	Status    *Status
	Successor *Successor
	// Next says what to do now, Step which one it is.
	Next string
	Step int
}

// Page returns the page for browsers: it takes the key in a form, and never in an
// address.
func (s *Self) Page() http.Handler {
	parsed := template.Must(template.New("page").Parse(page))
	sum := sha256.Sum256([]byte(style))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data := pageData{Style: style, Step: 1}
		status := http.StatusOK
		if r.Method == http.MethodPost {
			status = s.fill(w, r, &data)
		}
		header := w.Header()
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Security-Policy", policy)
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		w.WriteHeader(status)
		_ = parsed.Execute(w, data) // the caller is gone if this fails
	})
}

// fill answers a form.
func (s *Self) fill(w http.ResponseWriter, r *http.Request, data *pageData) (status int) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		data.Problem = "The form could not be read."
		return http.StatusBadRequest
	}
	text := r.PostForm.Get("key")
	if r.PostForm.Get("do") == "successor" {
		next, err := s.successor(r, text)
		if err == nil {
			data.Successor, data.Step = &next, 3
			data.Next = "Give this key to your applications. Then show it below, once."
			return http.StatusOK
		}
		return explain(data, err)
	}
	found, err := s.status(r, text)
	if err != nil {
		return explain(data, err)
	}
	data.Status = &found
	data.Step, data.Next = found.next(r.PostForm.Get("do") == "prove")
	return http.StatusOK
}

// next says which step a client is at, and what to do.
func (s *Status) next(proving bool) (step int, text string) {
	switch {
	case s.Successor != 0 && proving:
		return 2, "This is not the next key, but one that you have already: nothing is proven. Show the next one here."
	case s.Successor != 0 && s.State == "retiring":
		return 3, "Your next key is in force, and this one is being retired. It stays valid while it is in use: change what still uses it."
	case s.Successor != 0:
		return 2, "A next key is ready. Fetch it with this one, give it to your applications, then show it here once. This one stays valid meanwhile."
	case s.State == "retiring":
		return 3, "This key is being retired. It stays valid while it is in use: change what still uses it."
	case s.State == "successor":
		return 5, "You have proven that you have the next key. Your old one ends when nobody uses it any more."
	case len(s.OldUses) > 0:
		return 5, "This is the key that you are to use. Your old one is still in use."
	}
	return 1, "This is the key that you are to use. There is no next one yet, and nothing to do."
}

func explain(data *pageData, err error) (status int) {
	status, data.Problem = problemOf(err)
	if errors.Is(err, apikey.ErrRefused) {
		return http.StatusForbidden // a browser would ask for a password at 401
	}
	return status
}
