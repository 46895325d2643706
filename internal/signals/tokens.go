package signals

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/key"
)

// TokensIssued counts requests for tokens by what the client proved, with the result.
func (s *Signals) TokensIssued(by, result string) prometheus.Counter {
	return s.metrics.tokens.WithLabelValues(by, result)
}

// TokensRevoked counts tokens that were revoked.
func (s *Signals) TokensRevoked() prometheus.Counter { return s.metrics.revoked.WithLabelValues() }

// SetFetched counts a fetch of a set of a signing key, by the newest version in it.
func (s *Signals) SetFetched(name key.Name, version key.Version) {
	if s.metrics.newest.shown(name, version, func() { s.metrics.fetches.DeletePartialMatch(prometheus.Labels{"key": string(name)}) }) {
		s.metrics.fetches.WithLabelValues(string(name), strconv.FormatUint(uint64(version), 10)).Inc()
		return
	}
	s.metrics.fetches.WithLabelValues(other, other).Inc()
}

// newest remembers the newest version of each of so many keys.
type newest struct {
	mu   sync.Mutex
	most int
	of   map[key.Name]key.Version
}

func newNewest(most int) *newest { return &newest{most: most, of: map[key.Name]key.Version{}} }

// shown reports whether a version has a series of its own: it is the newest of its
// key, and there are not too many keys. turn is called before a newer one is.
func (n *newest) shown(name key.Name, version key.Version, turn func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	known, ok := n.of[name]
	switch {
	case ok && version == known:
		return true
	case ok && version < known, !ok && len(n.of) >= n.most:
		return false
	case ok:
		turn()
	}
	n.of[name] = version
	return true
}
