package hub

import (
	"context"
	"errors"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
)

// forgetter removes clients that stay away from every node.
type forgetter struct {
	hub     *Hub
	started time.Time
	// heard are the regions of which a party was connected when the last round
	// looked, silent those that keep a client from being forgotten.
	heard, silent map[string]bool
}

// forget removes clients that stay away from every node, until ctx ends.
func (h *Hub) forget(ctx context.Context) {
	f := &forgetter{hub: h, started: h.config.Now(), heard: map[string]bool{}, silent: map[string]bool{}}
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
		f.round(ctx)
	}
}

// round looks at every party.
func (f *forgetter) round(ctx context.Context) {
	h := f.hub
	registered, heard, silent := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for after := ""; ; {
		parties, err := h.core.Parties(ctx, after, 1000)
		if err != nil {
			if ctx.Err() == nil {
				h.config.Logger.ErrorContext(ctx, "parties could not be read; trying again", "error", err)
			}
			return
		}
		for i := range parties {
			party := &parties[i]
			registered[party.ID] = true
			connected, seen := h.Presence(party.ID)
			switch {
			case connected:
				heard[party.Region] = true
			case party.Kind != KindClient || !f.away(seen):
			case party.Region != "" && !f.heard[party.Region]:
				silent[party.Region] = true
			default:
				f.leave(ctx, party)
			}
		}
		if len(parties) < 1000 {
			break
		}
		after = parties[len(parties)-1].ID
	}
	for region := range silent {
		if !f.silent[region] {
			h.config.Logger.WarnContext(ctx, "no party of a region is connected: it may be cut off and use what it has; "+
				"its clients are not forgotten before one of the region is heard of (keyturn party remove removes one that is gone)", "region", region)
		}
	}
	f.heard, f.silent = heard, silent
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.seen {
		if !registered[id] && len(h.sessionsOf(id)) == 0 {
			delete(h.seen, id) // another node has removed it
		}
	}
}

// away reports whether a party that was last seen then has been away for long.
func (f *forgetter) away(seen time.Time) bool {
	if seen.Before(f.started) {
		seen = f.started
	}
	return f.hub.config.Now().Sub(seen) >= f.hub.config.ForgetClients
}

func (f *forgetter) leave(ctx context.Context, party *engine.PartyRecord) {
	err := f.hub.leave(ctx, engine.Server(), party.ID, "was not seen any more", f.hub.node.holds(party.ID))
	if errors.Is(err, engine.ErrNotFound) || errors.Is(err, engine.ErrState) {
		return // another node was faster, or it has just connected there
	}
	if err != nil && ctx.Err() == nil {
		f.hub.config.Logger.WarnContext(ctx, "a client that is away could not be removed; trying again", "party", party.ID, "error", err)
	}
}
