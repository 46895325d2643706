package clienttest

import (
	"context"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
)

// Ack is one outcome as a party sent it.
type Ack struct {
	Party string
	client.Outcome
}

// Report is one sample as a party sent it.
type Report struct {
	Party string
	client.Sample
}

// record is what parties told the server. Server.mu guards it.
type record struct {
	parties int
	// seen are the parties that have not left.
	seen    map[string]client.Party
	streams int
	acks    []Ack
	reports []Report
	calls   map[RPC]int
}

func newRecord() record {
	return record{seen: make(map[string]client.Party), calls: make(map[RPC]int)}
}

// Acks returns every outcome that came, in order, repetitions included.
func (s *Server) Acks() []Ack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.acks)
}

// Reports returns every sample that came, in order.
func (s *Server) Reports() []Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reports)
}

// Calls returns how often a method was called, failed calls included.
func (s *Server) Calls(rpc RPC) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[rpc]
}

// Parties returns the parties that are registered: they have called Watch or
// Poll and have not left.
func (s *Server) Parties() map[string]client.Party {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.seen)
}

// Streams returns how many streams are open.
func (s *Server) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams
}

// Until waits until condition holds. It checks whenever something reached or
// left the server and returns the error of ctx when that ends first.
func (s *Server) Until(ctx context.Context, condition func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if condition() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// WaitAck waits for an outcome of a version of a key, from any party, and
// returns the first. The test fails when ctx ends first.
func (s *Server) WaitAck(ctx context.Context, name key.Name, version key.Version) Ack {
	s.tb.Helper()
	var found Ack
	err := s.Until(ctx, func() bool {
		for _, ack := range s.Acks() {
			if ack.Key == name && ack.Version == version {
				found = ack
				return true
			}
		}
		return false
	})
	if err != nil {
		s.tb.Fatalf("clienttest: no acknowledgement of %s %s: %v", name, version, err)
	}
	return found
}

// WaitStreams waits until exactly n streams are open. The test fails when ctx ends first.
func (s *Server) WaitStreams(ctx context.Context, n int) {
	s.tb.Helper()
	if err := s.Until(ctx, func() bool { return s.Streams() == n }); err != nil {
		s.tb.Fatalf("clienttest: %d streams are open, want %d: %v", s.Streams(), n, err)
	}
}
