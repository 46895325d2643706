package oauth

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/key"
)

// Reported are tokens of a key that a service refused.
type Reported struct {
	// Client is the client_id of a token that is good, Address where it was shown; both
	// may be empty.
	Client  string `json:"client"`
	Address string `json:"address"`
	Count   int    `json:"count"`
	// Replay: a proof of possession was shown before.
	Replay bool `json:"replay"`
}

const (
	// maxReported bounds the lines of a report, maxTold a text of it, in bytes, and
	// maxCount what one line stands for.
	maxReported = 300
	maxTold     = 256
	maxCount    = 1_000_000
)

// report takes whom a service refused. What it says is its own word, as that of a
// verifier of API keys is.
func (h *Handler) report(w http.ResponseWriter, r *http.Request, name key.Name) error {
	bearer, err := credential(r, nil)
	if err != nil {
		return err
	}
	if err := h.config.Inspector(r.Context(), bearer, name); err != nil {
		return err
	}
	const how = `send JSON of at most 40 KiB: {"refused": [{"client": "deploy", "address": "192.0.2.7", "count": 1, "replay": true}]}`
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return invalid(how)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return invalid(how)
	}
	list, good := readReport(body)
	if !good {
		return invalid(how)
	}
	h.config.Reported(name, list)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readReport reads a report; every line of one that is good is bounded and can be
// printed.
func readReport(body []byte) ([]Reported, bool) {
	var report struct {
		Refused []Reported `json:"refused"`
	}
	if json.Unmarshal(body, &report) != nil || len(report.Refused) > maxReported {
		return nil, false
	}
	for i := range report.Refused {
		one := &report.Refused[i]
		if one.Count < 1 || one.Count > maxCount || len(one.Client) > maxTold || !utf8.ValidString(one.Client) ||
			strings.ContainsFunc(one.Client, func(c rune) bool { return !unicode.IsPrint(c) || c == utf8.RuneError }) {
			return nil, false
		}
		if one.Address == "" {
			continue
		}
		ip, err := netip.ParseAddr(one.Address)
		if err != nil || ip.Zone() != "" {
			return nil, false
		}
		one.Address = ip.Unmap().String()
	}
	return report.Refused, true
}
