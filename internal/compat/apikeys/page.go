package apikeys

import (
	"errors"
	"html/template"
	"net/http"

	"github.com/keyturn/keyturn/internal/apikey"
)

// page is what a client sees in a browser. It needs no script and loads nothing.
const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Your API key</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem }
button { font: inherit; padding: .4rem .8rem; margin: .6rem .6rem 0 0 }
code { overflow-wrap: anywhere; background: #eef1f4; padding: .1rem .3rem }
dt { font-weight: 600 } .bad { color: #a40e26 }
</style>
<h1>Your API key</h1>
{{with .Problem}}<p class="bad" role="alert">{{.}}</p>{{end}}
{{with .Status}}<dl>
<dt>Client</dt><dd>{{.Client}}</dd>
<dt>Key</dt><dd>{{.Key}}, version {{.Version}}: {{if eq .State "current"}}in use{{else if eq .State "retiring"}}being retired{{else}}the next one{{end}}</dd>
{{with .Expires}}<dt>Expires</dt><dd>{{.Format "2006-01-02 15:04 MST"}}</dd>{{end}}
{{if .Successor}}<dt>Successor</dt><dd>version {{.Successor}} is ready. Take it into use, then show it here once: that proves that you have it.
The key that you showed stays valid until then.</dd>{{end}}
{{with .Since}}<dt>Being retired since</dt><dd>{{.Format "2006-01-02 15:04 MST"}}</dd>{{end}}
{{with .Deadline}}<dt>Valid at least until</dt><dd>{{.Format "2006-01-02 15:04 MST"}}, unless it is not used any more before</dd>{{end}}
{{if .Proven}}<dt>Proof</dt><dd>You have shown the version that you are to use: noted.</dd>{{end}}
</dl>{{end}}
{{with .Successor}}<p>Your next key, version {{.Version}}. It is not shown any more once you have used it:</p>
<p><code>{{.Key}}</code></p>{{end}}
<form method="post" autocomplete="off">
<label>API key <input type="password" name="key" required maxlength="100"></label>
<button name="do" value="status">Show its state, or prove that I have it</button>
<button name="do" value="successor">Show my next key</button>
</form>
</html>
`

// pageData is what the page shows.
type pageData struct {
	Problem   string
	Status    *Status
	Successor *Successor
}

// Page returns the page for browsers: it takes the key in a form, and never in an
// address.
func (s *Self) Page() http.Handler {
	parsed := template.Must(template.New("page").Parse(page))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var data pageData
		status := http.StatusOK
		if r.Method == http.MethodPost {
			status = s.fill(w, r, &data)
		}
		header := w.Header()
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Content-Type-Options", "nosniff")
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
			data.Successor = &next
			return http.StatusOK
		}
		return explain(data, err)
	}
	found, err := s.status(r, text)
	if err == nil {
		data.Status = &found
		return http.StatusOK
	}
	return explain(data, err)
}

func explain(data *pageData, err error) (status int) {
	status, data.Problem = problemOf(err)
	if errors.Is(err, apikey.ErrRefused) {
		return http.StatusForbidden // a browser would ask for a password at 401
	}
	return status
}
