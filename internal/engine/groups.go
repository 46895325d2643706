package engine

import (
	"context"
	"errors"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// KindRequest is the kind of the notes by which a repeated request is known; they
// are deleted when they are due.
const KindRequest = kindRequest

// Membership says to which group of emergencies a rotation belongs.
type Membership struct {
	// Group is the group's ID, Rotation the one that was drawn for the rotation.
	Group, Rotation key.RotationID
	// Why says why the key belongs to the group.
	Why string
}

// DeclareMember declares an emergency as one of a group. What has been declared
// under the membership's rotation is left as it is. It fails as Rotate does.
func (e *Engine) DeclareMember(ctx context.Context, actor audit.Actor, request RotateRequest, member Membership) error {
	return e.update(ctx, actor, func(c *change) error {
		_, _, err := c.rotation(member.Rotation)
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := c.declare(request, member.Rotation); err != nil {
			return err
		}
		c.audit(audit.Entry{
			Action: "emergency.member", Key: request.Key, Rotation: member.Rotation, Reason: request.Reason,
			Detail: nonEmpty(map[string]string{"group": member.Group.String(), "why": member.Why}),
		})
		return c.editRotation(member.Rotation, func(r *RotationRecord) { r.Group = member.Group })
	})
}

// refusal says whether the compromised versions of a key in an emergency are proven
// refused everywhere, and whether they are since this step.
type refusal struct{ proven, now bool }

// refusesCompromised reports whether no verifier accepts a compromised version, as
// far as is proven.
func refusesCompromised(state *rotation.State) bool {
	for _, number := range state.Live() {
		if v, ok := state.Version(number); ok && v.State == key.Compromised {
			return false
		}
	}
	return true
}

// refusals compares a key before and after a step.
func refusals(before, after *rotation.State) refusal {
	for _, list := range [][]rotation.Rotation{after.Ended, after.Rotations} {
		for i := range list {
			if list[i].Kind == rotation.Emergency {
				proven := refusesCompromised(after)
				return refusal{proven: proven, now: proven && !refusesCompromised(before)}
			}
		}
	}
	return refusal{}
}

// LabelledKey is a key with its labels.
type LabelledKey struct {
	Name   key.Name
	Labels map[string]string
}

// Labelled lists keys by name, after the given one, at most limit. It costs a
// fraction of what Keys does.
func (e *Engine) Labelled(ctx context.Context, after string, limit int) ([]LabelledKey, error) {
	var list []LabelledKey
	err := e.store.View(ctx, func(tx store.Tx) error {
		docs, err := tx.Index.List(ctx, kindKey, "", after, limit)
		if err != nil {
			return err
		}
		list = make([]LabelledKey, len(docs))
		for i, doc := range docs {
			var record struct {
				Resource struct {
					Metadata struct {
						Labels map[string]string `json:"labels"`
					} `json:"metadata"`
				} `json:"resource"`
			}
			if err := decodeInto(doc.Body, &record); err != nil {
				return err
			}
			list[i] = LabelledKey{Name: key.Name(doc.Name), Labels: record.Resource.Metadata.Labels}
		}
		return nil
	})
	return list, err
}

// NewestFirst turns an ID into the name of a document by which newer ones sort
// before older ones.
func NewestFirst(id key.RotationID) string { return newestFirst(id) }
