package emergency

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// View is a group as it stands.
type View struct {
	Group
	// Rotations are those of the members, in their order; nil for one that is not, or
	// cannot be, declared.
	Rotations []*engine.RotationView
	// Ended: every rotation has ended, or could not be begun.
	Ended bool
}

// View returns a group as it stands; it fails with engine.ErrNotFound when there is
// none.
func (s *Service) View(ctx context.Context, id key.RotationID) (View, error) {
	group, err := s.Group(ctx, id)
	if err != nil {
		return View{}, err
	}
	return s.Look(ctx, group)
}

// Look returns how far a group is.
func (s *Service) Look(ctx context.Context, group Group) (View, error) {
	view := View{Group: group, Rotations: make([]*engine.RotationView, len(group.Members)), Ended: !group.Declared.IsZero()}
	for i := range group.Members {
		member := &group.Members[i]
		if member.Trouble != "" {
			continue
		}
		r, err := s.config.Engine.Rotation(ctx, member.Rotation)
		if errors.Is(err, engine.ErrNotFound) {
			view.Ended = false
			continue
		}
		if err != nil {
			return view, err
		}
		view.Rotations[i] = &r
		view.Ended = view.Ended && r.Ended()
	}
	return view, nil
}

// watchPause bounds how often a group is looked at while it changes: each look reads
// every rotation.
const watchPause = 200 * time.Millisecond

// Watch calls visit with the group now and after every change, until it has ended,
// visit fails, or ctx ends. Changes that follow each other within a fifth of a second
// may be shown as one.
func (s *Service) Watch(ctx context.Context, id key.RotationID, visit func(View) error) error {
	changed := s.config.Store.Watch(ctx, store.TopicDocs)
	pause := time.NewTicker(watchPause)
	defer pause.Stop()
	poll := time.NewTicker(lookEvery)
	defer poll.Stop()
	var last View
	for {
		view, err := s.View(ctx, id)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(view, last) {
			last = view
			if err := visit(view); err != nil {
				return err
			}
		}
		if view.Ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-poll.C:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
	}
}
