package engine

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// ActionForget: the sealed material of a version was shredded although the version
// lives.
const ActionForget audit.Action = "secret.forget"

func forgets(system provider.System) bool {
	forgetter, ok := system.(provider.Forgetter)
	return ok && forgetter.Forgets()
}

// Forget shreds the sealed material of a version that its user has proven to have:
// from then on nobody but the user can show it. Everything else goes on by the
// version's attributes. Repeating it does nothing. It fails with ErrState when the
// provider needs the material or its config keeps it, when the policy keeps
// versions in escrow, and when a presenter other than user must be delivered it.
func (e *Engine) Forget(ctx context.Context, actor audit.Actor, name key.Name, v key.Version, user string) error {
	system, err := e.system(ctx, name)
	if err != nil {
		return err
	}
	if !forgets(system) {
		return fmt.Errorf("%w: the versions of %s are kept sealed", ErrState, name)
	}
	escrow, err := e.escrowed(ctx, name)
	if err != nil {
		return err
	}
	if escrow {
		return fmt.Errorf("%w: the policy of %s keeps its versions in escrow", ErrState, name)
	}
	return e.update(ctx, actor, func(c *change) error {
		state, _, err := c.state(name)
		if err != nil {
			return err
		}
		if _, there := state.Version(v); !there {
			return fmt.Errorf("%w: %s has no %v, or it is destroyed", ErrNotFound, name, v)
		}
		for i := range state.Presenters {
			if id := state.Presenters[i].ID; id != user {
				return fmt.Errorf("%w: %s is delivered to %s as well", ErrState, name, id)
			}
		}
		first := false
		err = c.editVersion(name, v, func(r *VersionRecord) {
			if first = r.Forgotten.IsZero() && !r.Foreign; first {
				r.Forgotten = c.now
			}
		})
		if err != nil || !first {
			return err
		}
		c.audit(audit.Entry{Action: ActionForget, Key: name, Version: v, Target: user, Reason: "its user has proven to have it"})
		return c.tx.Materials.Delete(c.ctx, name, v)
	})
}
