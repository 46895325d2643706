package client

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// maxServers bounds how many servers an address may name.
const maxServers = 16

// servers are the nodes that a client may speak to. They are equal: it stays with
// one as long as that one answers, and goes to the next when it does not. Each
// client has an order of its own, so that those of a node that died spread over
// all that are left. The first of it is its home, to which it returns.
type servers struct {
	first *url.URL

	mu   sync.Mutex
	list []*url.URL
	at   int
}

// newServers takes the checked addresses of a Config.
func newServers(addresses string) (*servers, error) {
	s := &servers{}
	for _, address := range strings.Split(addresses, ",") {
		u, err := url.Parse(address)
		if err != nil {
			return nil, fmt.Errorf("%w: Address: %w", ErrConfig, err)
		}
		s.list = append(s.list, u)
	}
	s.first = s.list[0]
	rand.Shuffle(len(s.list), func(i, j int) { s.list[i], s.list[j] = s.list[j], s.list[i] }) //nolint:gosec // it spreads clients and guards no secret
	return s, nil
}

// number is how many there are.
func (s *servers) number() int { return len(s.list) }

func (s *servers) current() *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list[s.at]
}

// leave goes to the next server, unless that was done already.
func (s *servers) leave(from *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list[s.at] == from {
		s.at = (s.at + 1) % len(s.list)
	}
}

// home is the server to return to; nil while the client is there.
func (s *servers) home() *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == 0 {
		return nil
	}
	return s.list[0]
}

// goHome makes it the present one.
func (s *servers) goHome() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = 0
}

// address makes a request, which was written for the first address, one to a server.
func (s *servers) address(req *http.Request, to *url.URL) {
	if to == s.first {
		return
	}
	rest := strings.TrimPrefix(req.URL.Path, s.first.Path)
	u := *to
	u.Path, u.RawPath = to.Path+rest, to.EscapedPath()+rest
	req.URL, req.Host = &u, u.Host
}

// checkAddresses returns the base URLs, separated by commas.
func checkAddresses(addresses string) (string, error) {
	var list []string
	for _, address := range strings.Split(addresses, ",") {
		checked, err := checkAddress(strings.TrimSpace(address))
		if err != nil {
			return "", err
		}
		list = append(list, checked)
	}
	if len(list) > maxServers {
		return "", fmt.Errorf("%w: Address names %d servers, at most %d are allowed; name a load balancer instead", ErrConfig, len(list), maxServers)
	}
	return strings.Join(list, ","), nil
}
