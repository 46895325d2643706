package hub

import (
	"context"
	"errors"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
)

// forget removes clients that stay away from every node, until ctx ends.
func (h *Hub) forget(ctx context.Context) {
	started := h.config.Now()
	ticker := time.NewTicker(max(h.config.ForgetClients/8, time.Second))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !h.node.informed() {
			continue // who seems to be away may be connected to a node not heard of
		}
		h.forgetAll(ctx, started)
	}
}

func (h *Hub) forgetAll(ctx context.Context, started time.Time) {
	registered := map[string]bool{}
	for after := ""; ; {
		parties, err := h.core.Parties(ctx, after, 1000)
		if err != nil {
			if ctx.Err() == nil {
				h.config.Logger.ErrorContext(ctx, "parties could not be read; trying again", "error", err)
			}
			return
		}
		for i := range parties {
			registered[parties[i].ID] = true
			h.forgetIfAway(ctx, &parties[i], started)
		}
		if len(parties) < 1000 {
			break
		}
		after = parties[len(parties)-1].ID
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.seen {
		if !registered[id] && len(h.sessionsOf(id)) == 0 {
			delete(h.seen, id) // another node has removed it
		}
	}
}

func (h *Hub) forgetIfAway(ctx context.Context, party *engine.PartyRecord, started time.Time) {
	connected, seen := h.Presence(party.ID)
	if party.Kind != KindClient || connected {
		return
	}
	if seen.Before(started) {
		seen = started
	}
	if h.config.Now().Sub(seen) < h.config.ForgetClients {
		return
	}
	err := h.leave(ctx, engine.Server(), party.ID, "was not seen any more", h.node.holds(party.ID))
	if errors.Is(err, engine.ErrNotFound) || errors.Is(err, engine.ErrState) {
		return // another node was faster, or it has just connected there
	}
	if err != nil && ctx.Err() == nil {
		h.config.Logger.WarnContext(ctx, "a client that is away could not be removed; trying again", "party", party.ID, "error", err)
	}
}
