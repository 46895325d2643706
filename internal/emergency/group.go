package emergency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

const (
	// kindGroup is the kind of the documents of groups, by engine.NewestFirst of their ID.
	// They are due while keys are to be declared.
	kindGroup = "emergency"

	// MaxKeys is how many keys one group holds.
	MaxKeys = 1000
	// requestKept is how long the ID of a request is remembered.
	requestKept = 24 * time.Hour
	// takenOver is after how long another node goes on declaring a group.
	takenOver = 10 * time.Second
	// together is how many keys are declared at the same time.
	together = 16
)

// Request says what is to be declared.
type Request struct {
	Selection
	// Back is how far to look back for what was read, in place of Since; without both
	// it is 30 days.
	Back time.Duration
	// AcceptIncomplete: the group is declared although not all that was read could be
	// found out.
	AcceptIncomplete bool
	// Keys, if any, are those of the selection that are meant.
	Keys   []key.Name
	Reason string
	// Strategy overrides those of the policies; zero takes them.
	Strategy rotation.Strategy
	// RequestID makes a repeated request declare one group only.
	RequestID string
	// Visible are the keys that there are for the caller; nil means all.
	Visible func(key.Name) bool
}

// Group is a group as it is stored.
type Group struct {
	ID key.RotationID `json:"id"`
	Selection
	// Looked is what a selection by readers was made from.
	Looked   *Looked           `json:"looked,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	Strategy rotation.Strategy `json:"strategy,omitempty"`
	// Actor and ActorKind are who declared it.
	Actor     string    `json:"actor"`
	ActorKind string    `json:"actorKind"`
	Started   time.Time `json:"started"`
	// Declared is when every key had been declared, or could not be.
	Declared time.Time `json:"declared,omitzero"`
	Members  []Member  `json:"members"`
}

// Member is one key of a group.
type Member struct {
	Key key.Name `json:"key"`
	// Why says why it belongs to the group, at most 5.
	Why []string `json:"why,omitempty"`
	// Rotation is the ID that was drawn for its rotation.
	Rotation key.RotationID `json:"rotation,omitzero"`
	// Trouble is why it could not be declared.
	Trouble string `json:"trouble,omitempty"`
}

func (g *Group) actor() audit.Actor { return audit.Actor{ID: g.Actor, Kind: g.ActorKind} }

// requestRecord is what an earlier request with an ID led to. The rotation is where
// the engine's own requests have theirs, so that no ID serves both.
type requestRecord struct {
	Rotation  key.RotationID `json:"rotation"`
	Key       key.Name       `json:"key"`
	Selection string         `json:"selection"`
}

// Find returns the group that a request would declare, without an ID: nothing is
// written. It fails with engine.ErrInvalid, and with engine.ErrNotFound when the
// selection holds no key. What could not be found out of what was read is in Looked.
func (s *Service) Find(ctx context.Context, actor audit.Actor, request Request) (Group, error) {
	group := Group{Selection: request.Selection, Reason: request.Reason, Strategy: request.Strategy, Actor: actor.ID, ActorKind: actor.Kind}
	if err := s.find(ctx, &request, &group); err != nil {
		return group, err
	}
	if len(request.Keys) > 0 {
		var err error
		if group.Members, err = only(group.Members, request.Keys); err != nil {
			return group, err
		}
	}
	return group, nil
}

// only returns the members that are named.
func only(members []Member, names []key.Name) ([]Member, error) {
	var list []Member
	for _, name := range names {
		i := slices.IndexFunc(members, func(m Member) bool { return m.Key == name })
		if i < 0 {
			return nil, fmt.Errorf("%w: keys: %s is not among the keys selected; look again with a dry run", engine.ErrInvalid, name)
		}
		list = append(list, members[i])
	}
	slices.SortFunc(list, func(a, b Member) int { return compareNames(a.Key, b.Key) })
	return slices.CompactFunc(list, func(a, b Member) bool { return a.Key == b.Key }), nil
}

// Declare declares a group and returns it when all of its keys were declared, or
// could not be: then their Trouble says why. When it fails after the group was
// written, for example because the store is away, the rest is declared later.
func (s *Service) Declare(ctx context.Context, actor audit.Actor, request Request) (Group, error) {
	if group, err := s.earlier(ctx, actor, &request); err != nil || !group.ID.IsZero() {
		return group, err
	}
	group, err := s.Find(ctx, actor, request)
	if err != nil {
		return group, err
	}
	if l := group.Looked; l != nil && len(l.Incomplete) > 0 && !request.AcceptIncomplete {
		return group, fmt.Errorf("%w: not all that was read is known: %s; look at the keys with a dry run, and set accept_incomplete to declare those all the same", engine.ErrState, strings.Join(l.Incomplete, "; "))
	}
	if group.ID, err = s.newID(); err != nil {
		return group, err
	}
	for i := range group.Members {
		if group.Members[i].Rotation, err = s.newID(); err != nil {
			return group, err
		}
	}
	fresh := group
	err = s.config.Engine.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		group = fresh
		known, err := readRequest(ctx, tx, actor, &request)
		if err != nil || !known.IsZero() {
			group.ID = known
			return err
		}
		group.Started = s.now()
		if err := noteRequest(ctx, tx, actor, &request, &group); err != nil {
			return err
		}
		enter(audit.Entry{Action: "emergency.declare", Target: group.ID.String(), Reason: group.Reason, Detail: group.detail()})
		return putGroup(ctx, tx, store.Doc{Kind: kindGroup, Name: engine.NewestFirst(group.ID), Due: group.Started.Add(takenOver)}, &group)
	})
	if err != nil {
		return group, err
	}
	if group.ID != fresh.ID {
		return s.Group(ctx, group.ID)
	}
	// Whoever asked may be gone: what was decided is declared all the same.
	return s.declareAll(context.WithoutCancel(ctx), group.ID)
}

// earlier returns the group that an earlier request with the same ID led to.
func (s *Service) earlier(ctx context.Context, actor audit.Actor, request *Request) (Group, error) {
	var id key.RotationID
	err := s.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		id, err = readRequest(ctx, tx, actor, request)
		return err
	})
	if err != nil || id.IsZero() {
		return Group{}, err
	}
	return s.Group(ctx, id)
}

func requestName(actor audit.Actor, id string) string {
	// As the engine names its own: the length keeps two actors' requests apart.
	return fmt.Sprintf("%d %s %s", len(actor.ID), actor.ID, id)
}

func readRequest(ctx context.Context, tx store.Tx, actor audit.Actor, request *Request) (key.RotationID, error) {
	if request.RequestID == "" {
		return key.RotationID{}, nil
	}
	doc, err := tx.Docs.Get(ctx, engine.KindRequest, requestName(actor, request.RequestID))
	if errors.Is(err, store.ErrNotFound) {
		return key.RotationID{}, nil
	}
	var earlier requestRecord
	if err == nil {
		err = decode(doc.Body, &earlier)
	}
	if err == nil && (earlier.Key != "" || earlier.Selection != request.Selection.String()) {
		err = fmt.Errorf("%w: request_id %q was used for something else; draw a new one for every request", engine.ErrInvalid, request.RequestID)
	}
	return earlier.Rotation, err
}

func noteRequest(ctx context.Context, tx store.Tx, actor audit.Actor, request *Request, group *Group) error {
	if request.RequestID == "" {
		return nil
	}
	body, err := json.Marshal(requestRecord{Rotation: group.ID, Selection: request.Selection.String()})
	if err != nil {
		return err
	}
	_, err = tx.Docs.Put(ctx, store.Doc{
		Kind: engine.KindRequest, Name: requestName(actor, request.RequestID), Due: group.Started.Add(requestKept), Body: body,
	})
	return err
}

func putGroup(ctx context.Context, tx store.Tx, doc store.Doc, group *Group) error {
	var err error
	if doc.Body, err = json.Marshal(group); err != nil {
		return err
	}
	_, err = tx.Docs.Put(ctx, doc)
	return err
}

func decode(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("stored %T is damaged: %w", v, err)
	}
	return nil
}

// detail is what the audit entry of a group says beside its ID and reason.
func (g *Group) detail() map[string]string {
	detail := map[string]string{"keys": fmt.Sprint(len(g.Members)), "selection": g.Selection.String()}
	if g.Strategy != 0 {
		detail["strategy"] = g.Strategy.String()
	}
	if g.Looked != nil {
		detail["looked"] = fmt.Sprintf("entries %d to %d, since %s", g.Looked.From, g.Looked.To, stamp(g.Looked.Since))
		if len(g.Looked.Incomplete) > 0 {
			detail["incomplete"] = strings.Join(g.Looked.Incomplete, "; ")
		}
	}
	return detail
}

func (s *Service) newID() (key.RotationID, error) {
	var random [10]byte
	if _, err := io.ReadFull(s.config.Random, random[:]); err != nil {
		return key.RotationID{}, fmt.Errorf("draw an ID: %w", err)
	}
	return key.NewRotationID(s.config.Now(), random), nil
}

func (s *Service) now() time.Time { return s.config.Now().UTC().Truncate(time.Microsecond) }

// Group returns a group; it fails with engine.ErrNotFound when there is none.
func (s *Service) Group(ctx context.Context, id key.RotationID) (Group, error) {
	var group Group
	err := s.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		group, _, err = readGroup(ctx, tx, engine.NewestFirst(id))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("%w: emergency %v; see keyturn emergency list", engine.ErrNotFound, id)
	}
	return group, err
}

func readGroup(ctx context.Context, tx store.Tx, name string) (Group, store.Doc, error) {
	var group Group
	doc, err := tx.Docs.Get(ctx, kindGroup, name)
	if err == nil {
		err = decode(doc.Body, &group)
	}
	return group, doc, err
}

// Groups lists groups, newest first, after the given one, at most limit.
func (s *Service) Groups(ctx context.Context, after key.RotationID, limit int) ([]Group, error) {
	from := ""
	if !after.IsZero() {
		from = engine.NewestFirst(after)
	}
	var list []Group
	err := s.config.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindGroup, "", from, limit)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			var group Group
			if err := decode(doc.Body, &group); err != nil {
				return err
			}
			list = append(list, group)
		}
		return nil
	})
	return list, err
}
