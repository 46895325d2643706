package postgres

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
)

// marker is what Keyturn notes about a role, at the end of the role's comment:
// which version it holds. It is written in the same transaction as the change
// it tells of, reaches the replicas with it, survives everything Keyturn does
// not, and shows in psql's \du+. It holds nothing secret.
type marker struct {
	Key     key.Name    `json:"key,omitempty"`
	Version key.Version `json:"version"`
	// Fence is the largest fencing token that changed the role.
	Fence uint64 `json:"fence,omitempty"`
	// Refused says that the version was refused since.
	Refused bool `json:"refused,omitempty"`
	// Since says, per endpoint and by the endpoint's own clock, when the version was
	// first let in there. Single users only: sessions that began earlier belong to
	// an earlier version.
	Since map[string]time.Time `json:"since,omitempty"`
}

// holds reports whether the role holds this version, accepted or refused.
func (m marker) holds(name key.Name, version key.Version) bool {
	return m.Version == version && m.Key == name && version != 0
}

const markerOpen, markerClose = "[keyturn ", "]"

// splitComment separates a comment into the words of others and the marker. A
// comment without a whole marker at its end is all words.
func splitComment(comment string) (words string, m marker) {
	start := strings.LastIndex(comment, markerOpen+"{")
	if start < 0 || !strings.HasSuffix(comment, "}"+markerClose) {
		return comment, marker{}
	}
	body := comment[start+len(markerOpen) : len(comment)-len(markerClose)]
	if json.Unmarshal([]byte(body), &m) != nil || m.Version == 0 {
		return comment, marker{}
	}
	return strings.TrimSuffix(comment[:start], " "), m
}

// joinComment is the inverse of splitComment.
func joinComment(words string, m marker) string {
	body, err := json.Marshal(m)
	if err != nil {
		return words // a time beyond the year 9999; the marker is then absent, which is safe
	}
	if words != "" {
		words += " "
	}
	return words + markerOpen + string(body) + markerClose
}
