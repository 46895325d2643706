package emergency

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// Engine is what a Service needs of the engine.
type Engine interface {
	Transact(ctx context.Context, actor audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error
	DeclareMember(ctx context.Context, actor audit.Actor, request engine.RotateRequest, member engine.Membership) error
	Labelled(ctx context.Context, after string, limit int) ([]engine.LabelledKey, error)
	Rotation(ctx context.Context, id key.RotationID) (engine.RotationView, error)
}

// Config is what a Service needs. All fields are required but Untold and MaxLooked.
type Config struct {
	Store  store.Store
	Engine Engine
	Fleet  Fleet
	// Tokens lists the tokens that may read secrets; whole is false when there are more.
	Tokens func(ctx context.Context) (list []Token, whole bool, err error)
	// Untold says which gateways may have handed out keys that the audit log does not
	// know of yet. Optional: there are no gateways.
	Untold func(ctx context.Context) ([]string, error)
	// MaxLooked is how many entries of the audit log one selection reads; 0 takes
	// 1,000,000.
	MaxLooked uint64
	Logger    *slog.Logger
	// Now is the clock, Random a cryptographically secure source.
	Now    func() time.Time
	Random io.Reader
}

func (c *Config) maxLooked() uint64 {
	if c.MaxLooked == 0 {
		return maxLooked
	}
	return c.MaxLooked
}

// Service declares groups and tells of them.
type Service struct {
	config Config
}

// New returns a service. Until Run is called it does not take up what was left
// undeclared.
func New(config Config) *Service { return &Service{config: config} }

const (
	// lookEvery is how often groups that are not fully declared are looked for.
	lookEvery = time.Second
	// lookBatch is how many are taken up before time is read again.
	lookBatch = 16
)

// Run takes up groups that were left undeclared, by a node that died or because the
// store was away, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		if err := s.takeUp(ctx); err != nil && ctx.Err() == nil {
			s.config.Logger.ErrorContext(ctx, "a group of emergencies could not be declared in full; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Service) takeUp(ctx context.Context) error {
	var due []store.Doc
	err := s.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		due, err = tx.Index.Due(ctx, kindGroup, s.now(), lookBatch)
		return err
	})
	for _, doc := range due {
		var group Group
		if damaged := decode(doc.Body, &group); damaged != nil {
			err = errors.Join(err, damaged)
			continue
		}
		// Another node may have been faster, and then leaves it due later.
		doc.Due = s.now().Add(takenOver)
		claimed := s.config.Store.Update(ctx, func(tx store.Tx) error {
			_, err := tx.Docs.Put(ctx, doc)
			return err
		})
		if claimed == nil {
			_, claimed = s.declareAll(ctx, group.ID)
		}
		if !errors.Is(claimed, store.ErrConflict) {
			err = errors.Join(err, claimed)
		}
	}
	return err
}

// declareAll declares what is left of a group, and notes that it is done.
func (s *Service) declareAll(ctx context.Context, id key.RotationID) (Group, error) {
	group, err := s.Group(ctx, id)
	if err != nil || !group.Declared.IsZero() {
		return group, err
	}
	troubles := make([]string, len(group.Members))
	failures := make([]error, len(group.Members))
	var running sync.WaitGroup
	slots := make(chan struct{}, together)
	for i := range group.Members {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			if err := s.declareOne(ctx, &group, i); lasting(err) {
				troubles[i] = err.Error()
			} else {
				failures[i] = err
			}
		})
	}
	running.Wait()
	if err := errors.Join(failures...); err != nil {
		return group, err
	}
	err = s.config.Store.Update(ctx, func(tx store.Tx) error {
		stored, doc, err := readGroup(ctx, tx, engine.NewestFirst(id))
		if err != nil {
			return err
		}
		if group = stored; !group.Declared.IsZero() {
			return nil // by another node, meanwhile
		}
		for i := range group.Members {
			group.Members[i].Trouble = troubles[i]
		}
		group.Declared, doc.Due = s.now(), time.Time{}
		return putGroup(ctx, tx, doc, &group)
	})
	return group, err
}

func (s *Service) declareOne(ctx context.Context, group *Group, i int) error {
	member := &group.Members[i]
	request := engine.RotateRequest{Key: member.Key, Reason: group.Reason, Emergency: true, Strategy: group.Strategy}
	why := ""
	if len(member.Why) > 0 {
		why = member.Why[0]
	}
	return s.config.Engine.DeclareMember(ctx, group.actor(), request, engine.Membership{Group: group.ID, Rotation: member.Rotation, Why: why})
}

// lasting reports whether an error will be the same when the key is declared again.
func lasting(err error) bool {
	for _, is := range []error{
		engine.ErrNotFound, engine.ErrInvalid, engine.ErrState, rotation.ErrInvalid, rotation.ErrUnknown, rotation.ErrBusy,
		rotation.ErrPhase, rotation.ErrCompromised, rotation.ErrRestored,
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}
