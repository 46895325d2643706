package cli

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
)

// maxServers bounds how many servers an address may name.
const maxServers = 16

// parseAddresses returns the base URLs that an address stands for, separated by
// commas.
func parseAddresses(addresses, from string) (string, error) {
	var list []string
	for address := range strings.SplitSeq(addresses, ",") {
		parsed, err := parseAddress(strings.TrimSpace(address), from)
		if err != nil {
			return "", err
		}
		list = append(list, parsed)
	}
	if len(list) > maxServers {
		return "", usage("name a load balancer instead", from+": %d servers are named, at most %d are allowed", len(list), maxServers)
	}
	return strings.Join(list, ","), nil
}

// servers sends each request to one of several equal servers: to another one
// when it could not be sent to the first. What may have arrived is not sent twice.
type servers struct {
	next http.RoundTripper

	first *url.URL
	mu    sync.Mutex
	list  []*url.URL // the one that answered last comes first
}

// newServers takes parsed addresses.
func newServers(addresses string, next http.RoundTripper) (*servers, error) {
	s := &servers{next: next}
	for address := range strings.SplitSeq(addresses, ",") {
		u, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		s.list = append(s.list, u)
	}
	s.first = s.list[0]
	rand.Shuffle(len(s.list), func(i, j int) { s.list[i], s.list[j] = s.list[j], s.list[i] }) //nolint:gosec // it spreads callers and guards no secret
	return s, nil
}

// RoundTrip implements http.RoundTripper. It changes the request's address.
func (s *servers) RoundTrip(req *http.Request) (*http.Response, error) {
	path := strings.TrimPrefix(req.URL.Path, s.first.Path)
	var failures []error
	for range s.number() {
		to := s.present()
		u := *to
		u.Path, u.RawPath, u.RawQuery = to.Path+path, to.EscapedPath()+path, req.URL.RawQuery
		var sent bool
		trace := &httptrace.ClientTrace{WroteHeaders: func() { sent = true }}
		one := req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
		one.URL, one.Host = &u, ""
		if len(failures) > 0 && req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			one.Body = body
		}
		response, err := s.next.RoundTrip(one)
		if err == nil && response.StatusCode != http.StatusServiceUnavailable {
			return response, nil
		}
		s.leave(to)
		if err == nil {
			return response, nil // the caller repeats it, or tells why
		}
		failures = append(failures, err)
		if sent || errors.Is(req.Context().Err(), context.Canceled) || req.Body != nil && req.GetBody == nil {
			break
		}
	}
	return nil, errors.Join(failures...)
}

func (s *servers) number() int { return len(s.list) }

func (s *servers) present() *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list[0]
}

// leave puts a server last, unless that was done already.
func (s *servers) leave(from *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list[0] == from {
		s.list = append(s.list[1:], from)
	}
}
