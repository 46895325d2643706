package forward

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of an answer.
const (
	HeaderKind    = "Keyturn-Kind"
	HeaderKey     = "Keyturn-Key"
	HeaderVersion = "Keyturn-Version"
	HeaderClient  = "Keyturn-Client"
	HeaderScopes  = "Keyturn-Scopes"
	HeaderSubject = "Keyturn-Subject"
	// HeaderOutcome tells refusals apart that have one status.
	HeaderOutcome = "Keyturn-Outcome"
)

// Headers are those that say whose credential it is, for the origin. Each is in every
// answer of 200; "-" stands for what the credential does not have.
func Headers() []string {
	return []string{HeaderKind, HeaderKey, HeaderVersion, HeaderClient, HeaderScopes, HeaderSubject}
}

// maxHeaders bounds the names and values of a request's headers, in bytes.
const maxHeaders = 16 << 10

// forward answers a proxy over HTTP.
func (s *Service) forward(w http.ResponseWriter, r *http.Request, name string) {
	if r.ContentLength != 0 && r.ProtoMajor < 2 {
		// Else the body would be waited for: some proxies announce that of the client and
		// send none. With HTTP/2 a stream ends alone.
		w.Header().Set("Connection", "close")
	}
	if !s.allowed(r) {
		write(w, &decision{outcome: BadCaller}, nil)
		return
	}
	g := s.gateOf(r.Context(), name)
	if g == nil {
		write(w, &decision{outcome: NoGate}, nil)
		return
	}
	d := decision{outcome: TooLarge}
	if !tooLarge(r.Header) {
		d = s.decide(r.Context(), g, s.askedOf(g, r))
	}
	s.counts.add(g, d.kind, d.outcome)
	write(w, &d, g)
}

func tooLarge(header http.Header) bool {
	n := 0
	for name, values := range header {
		for _, value := range values {
			n += len(name) + len(value)
		}
	}
	return n > maxHeaders
}

// askedOf is what an HTTP proxy tells.
func (s *Service) askedOf(g *gate, r *http.Request) *asked {
	a := &asked{
		values:  r.Header.Values,
		address: peerAddress(r.RemoteAddr),
		target:  func() (target, bool) { return readTarget(g.RequestURL, r.Header.Values) },
	}
	switch g.ClientAddress {
	case addressReal:
		if values := r.Header.Values(addressReal); len(values) == 1 {
			if addr, ok := parseAddress(values[0]); ok {
				a.address = addr.String()
			}
		}
	case addressNone:
	default:
		a.address = clientAddress(r.Header.Values(addressForwarded), s.trusted, a.address)
	}
	return a
}

// field is a header of an answer.
type field struct{ name, value string }

// identity are the headers that say whose credential it is.
func (d *decision) identity() []field {
	scopes := make([]string, len(d.scopes))
	for i, scope := range d.scopes {
		scopes[i] = strings.ReplaceAll(headerValue(scope), " ", "%20")
	}
	return []field{
		{HeaderKind, d.kind.String()},
		{HeaderKey, headerValue(d.key)},
		{HeaderVersion, headerValue(d.version)},
		{HeaderClient, headerValue(d.client)},
		{HeaderScopes, orDash(strings.Join(scopes, " "))},
		{HeaderSubject, headerValue(d.subject)},
	}
}

// refusal are the headers for a client that is not let in.
func (d *decision) refusal(g *gate) []field {
	list := []field{{HeaderOutcome, d.outcome.String()}}
	if challenge := d.challenge(g); challenge != "" {
		list = append(list, field{"Www-Authenticate", challenge})
	}
	if d.nonce != "" {
		list = append(list, field{"Dpop-Nonce", d.nonce})
	}
	if d.retry > 0 || d.outcome == Limited {
		list = append(list, field{"Retry-After", retryAfter(d.retry)})
	}
	return list
}

// challenge is what a client is asked for (RFC 6750, section 3; RFC 9449, section 7).
func (d *decision) challenge(g *gate) string {
	challenge := `Bearer realm="keyturn"`
	if d.dpop {
		challenge = `DPoP realm="keyturn"`
	}
	switch d.outcome {
	case Missing:
		return challenge
	case Malformed:
		return challenge + `, error="invalid_request"`
	case Refused, Unproven:
		return challenge + `, error="invalid_token"`
	case WantsNonce:
		return challenge + `, error="use_dpop_nonce"`
	case Lacking:
		return challenge + `, error="insufficient_scope", scope="` + g.scope + `"`
	case Outside:
		return challenge + `, error="insufficient_scope"`
	case Admitted, Limited, Unsure, TooLarge, NoGate, BadCaller:
	}
	return ""
}

// mostRetry bounds what a client is told to wait.
const mostRetry = time.Hour

func retryAfter(d time.Duration) string {
	seconds := (min(d, mostRetry) + time.Second - 1) / time.Second
	return strconv.FormatInt(max(1, int64(seconds)), 10)
}

// write answers over HTTP; g may be nil if there is none.
func write(w http.ResponseWriter, d *decision, g *gate) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	if d.outcome == Admitted {
		for _, f := range d.identity() {
			header[f.name] = []string{f.value}
		}
		w.WriteHeader(http.StatusOK)
		return
	}
	for _, f := range d.refusal(g) {
		header[f.name] = []string{f.value}
	}
	http.Error(w, d.outcome.text(), d.outcome.status(g != nil && g.Only401And403))
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

const hexDigits = "0123456789ABCDEF"

// headerValue makes a text fit to be the value of a header: what is no printable ASCII,
// the percent sign, and spaces at its ends are percent-encoded (RFC 3986); "-" stands for
// an empty one.
func headerValue(text string) string {
	if text == "" {
		return "-"
	}
	if text == "-" {
		return "%2D"
	}
	plain := func(i int) bool {
		c := text[i]
		return c > ' ' && c <= '~' && c != '%' || c == ' ' && i > 0 && i < len(text)-1
	}
	i := 0
	for i < len(text) && plain(i) {
		i++
	}
	if i == len(text) {
		return text
	}
	out := make([]byte, 0, len(text)+len(text)/2)
	for i := range len(text) {
		if c := text[i]; plain(i) {
			out = append(out, c)
		} else {
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(out)
}
