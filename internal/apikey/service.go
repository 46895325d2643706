package apikey

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

var (
	// ErrRefused: the key is not let in. It says no more to anybody outside.
	ErrRefused = errors.New("the API key is not valid")
	// ErrLimited: the key is good, and was used more often than it may be.
	ErrLimited = errors.New("the API key is used too often")
	// ErrUnsure: this node cannot tell at present. Another one may, or this one later.
	ErrUnsure = errors.New("API keys cannot be verified now")
	// ErrFenced: a later call has changed the version already.
	ErrFenced = errors.New("a later call was here already")
)

// The kinds of documents: versions by "KEY@VERSION", nodes by their names, uses by
// "KEY@VERSION/NODE", those that were tried although they are refused, the last count of uses by "KEY@VERSION", the sealed pepper, and one that
// is written to ask the nodes how far they are.
const (
	kindEntry  = "apikey"
	kindNode   = "apikey-node"
	kindUse    = "apikey-use"
	kindPepper = "apikey-pepper"
	kindTried  = "apikey-tried"
	kindAsked  = "apikey-asked"
	kindAsk    = "apikey-ask"
	askName    = "nodes"
)

// Journal runs transactions that enter what they do into the audit log.
type Journal interface {
	Transact(ctx context.Context, actor audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error
}

// Config is what a Service needs. Store, Keeper, Logger, Now and Node are required.
type Config struct {
	Store  store.Store
	Keeper keeper.Keeper
	Logger *slog.Logger
	Now    func() time.Time
	// Node names this node among those on the store, the same after a restart.
	Node string
	// Alone: no other node can be on the store. Then none is told and none waited for.
	Alone bool
	// Random is cryptographically secure. Default: crypto/rand.
	Random io.Reader
	// Stale is how long a node serves what it knows while it cannot read the store.
	// Default: 5 minutes.
	Stale time.Duration
	// FlushEvery is how often uses are written, and nodes tell how far they are.
	// Default: 2 s.
	FlushEvery time.Duration
	// Proven, if not nil, hears of versions that somebody has used: who has it has
	// proven so. It is told again after a while when it fails, as long as the version
	// is used.
	Proven func(ctx context.Context, name key.Name, v key.Version) error
	// Used, if not nil, hears of uses once they are written, and of tries of versions
	// that are refused; it must not block.
	Used func([]Used)
	// Tried, if not nil, hears when tries of refused versions were written; it must not
	// block.
	Tried func()
	// Verified, if not nil, hears of every verification; it must not block.
	Verified func(reason keytable.Reason)
}

// Service verifies API keys. Its methods may be called concurrently.
type Service struct {
	config  Config
	table   *keytable.Table
	holders holders
	refused refusals
	peppers peppers
	// verifiers are those outside the server.
	verifiers verifiers

	// fresh is when the store was last read, in nanoseconds; rev what the table has.
	fresh atomic.Int64
	rev   atomic.Uint64
	// ready: the table was read in full at least once.
	ready atomic.Bool

	// catching: one goroutine reads changes at a time.
	catching sync.Mutex
	// flushing: one goroutine writes uses at a time.
	flushing sync.Mutex

	// heeded is the question that was heeded last; askedFor receives when one was.
	heeded   atomic.Uint64
	askedFor chan struct{}
	// told is the last beat that the others can read.
	told atomic.Pointer[beat]

	mu    sync.Mutex
	moved chan struct{} // closed and replaced when rev moves

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// New returns a service that is not started: it knows no key.
func New(config Config) *Service {
	if config.Random == nil {
		config.Random = rand.Reader
	}
	if config.Stale == 0 {
		config.Stale = 5 * time.Minute
	}
	if config.FlushEvery == 0 {
		config.FlushEvery = 2 * time.Second
	}
	if config.Proven == nil {
		config.Proven = func(context.Context, key.Name, key.Version) error { return nil }
	}
	if config.Used == nil {
		config.Used = func([]Used) {}
	}
	if config.Tried == nil {
		config.Tried = func() {}
	}
	if config.Verified == nil {
		config.Verified = func(keytable.Reason) {}
	}
	s := &Service{config: config, table: keytable.New(), moved: make(chan struct{}), askedFor: make(chan struct{}, 1)}
	s.told.Store(&beat{})
	s.verifiers.init()
	return s
}

// Start reads the table and begins to follow the store. It returns at once; until
// the table is read, keys are answered with ErrUnsure.
func (s *Service) Start(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		return
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.running.Go(func() { s.follow(ctx) })
	s.running.Go(func() { s.tell(ctx) })
	s.running.Go(func() { s.sweep(ctx) })
}

// Stop writes the uses that are not written yet, tells the other nodes not to
// wait for this one, and returns. Calling it again does nothing.
func (s *Service) Stop(ctx context.Context) {
	s.mu.Lock()
	cancel := s.cancel
	s.cancel = nil
	s.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	s.running.Wait()
	s.ready.Store(false)
	if err := s.leave(ctx); err != nil {
		s.config.Logger.WarnContext(ctx, "the last uses of API keys could not be written", "error", err)
	}
}

// Caller is who shows a key, by its own word and that of the network.
type Caller struct {
	Address     string
	Application string
}

// Verdict is what a key that is let in may do.
type Verdict struct {
	Key     key.Name
	Version key.Version
	Client  string
	// Scopes must not be changed.
	Scopes  []string
	Expires time.Time
	// Left is how many further uses are allowed now, -1 without a limit.
	Left int
	// Retry is when the next use is allowed, with ErrLimited.
	Retry time.Duration
}

// Identify tells who shows the key, like Verify, without counting a use of what
// the key is for.
func (s *Service) Identify(text string) (Verdict, error) {
	now := s.config.Now()
	found := s.look(text, now)
	s.config.Verified(found.Reason)
	err := s.judge(found, now)
	return verdictOf(found, err), err
}

// Verify tells who shows the key, and counts the use. It fails with ErrRefused,
// ErrLimited (with a verdict) or ErrUnsure. It reads memory only.
func (s *Service) Verify(text string, caller Caller) (Verdict, error) {
	now := s.config.Now()
	found := s.look(text, now)
	s.config.Verified(found.Reason)
	err := s.judge(found, now)
	if err == nil {
		s.table.Used(found.ID, 1, now)
		s.holders.add(found.ID, caller, now)
	} else if errors.Is(err, ErrRefused) {
		s.refused.add(&found, caller, now)
	}
	return verdictOf(found, err), err
}

func verdictOf(found keytable.Found, err error) Verdict {
	if err != nil && !errors.Is(err, ErrLimited) {
		return Verdict{} // nothing of it is told
	}
	return Verdict{
		Key: found.Key, Version: found.Version, Client: found.Client, Scopes: found.Scopes, Expires: found.Expires, Left: found.Left, Retry: found.Retry,
	}
}

// look finds out about a key. One that has not the form of a key is refused at
// once: anybody can tell as much.
func (s *Service) look(text string, now time.Time) keytable.Found {
	hasher := s.peppers.hasher.Load()
	if hasher == nil {
		return keytable.Found{}
	}
	hash, err := hasher.SumString(text)
	if err != nil {
		return keytable.Found{Reason: keytable.Malformed}
	}
	return s.table.Look(&hash, now)
}

// judge turns what was found into the one answer that is given for it.
func (s *Service) judge(found keytable.Found, now time.Time) error {
	// What the others do not hear of for that long they do not wait for.
	heard := s.config.Alone || now.Sub(s.told.Load().At) <= s.config.Stale
	fresh := heard && s.ready.Load() && now.UnixNano()-s.fresh.Load() <= int64(s.config.Stale)
	switch found.Reason {
	case keytable.Malformed:
		return ErrRefused
	case keytable.Good:
		if fresh {
			return nil
		}
		return ErrUnsure
	case keytable.Limited:
		if fresh {
			return ErrLimited
		}
		return ErrUnsure
	case keytable.Unknown, keytable.Suspended, keytable.Expired:
		// What is missing here may have been accepted meanwhile, unless the others wait
		// for this node.
		if fresh && now.UnixNano()-s.fresh.Load() <= int64(deadAfter) && (s.config.Alone || now.Sub(s.told.Load().At) <= deadAfter) {
			return ErrRefused
		}
		return ErrUnsure
	}
	return ErrUnsure
}

// record is one version as it is stored.
type record struct {
	Key      key.Name    `json:"key"`
	Version  key.Version `json:"version"`
	Hash     string      `json:"hash"`
	Snapshot string      `json:"snapshot"`
	Accepted bool        `json:"accepted"`
	Gone     bool        `json:"gone,omitempty"`
	// Dropped: nobody remembers any more whose it was.
	Dropped bool           `json:"dropped,omitempty"`
	Fence   uint64         `json:"fence"`
	Changed time.Time      `json:"changed"`
	Rules   keytable.Rules `json:"rules"`
}

func docName(name key.Name, v key.Version) string { return fmt.Sprintf("%s@%020d", name, uint64(v)) }

// Set makes a version accepted or refused, durably, and returns once every node
// that may answer serves it. It fails with ErrFenced after a call with a larger
// fence, and with keytable.ErrTaken when another version has the hash. On another
// error the change is made or not, and it may be repeated.
func (s *Service) Set(ctx context.Context, fence uint64, e keytable.Entry) error {
	if name, v, taken := s.table.Owner(&e.Hash); taken && (name != e.Key || v != e.Version) {
		return fmt.Errorf("%v of %s: %w", e.Version, e.Key, keytable.ErrTaken)
	}
	changed, rev, err := s.write(ctx, fence, &e, false)
	if err != nil {
		return err
	}
	return s.everywhere(ctx, rev, changed, e.Accepted)
}

// Remove refuses a version for good. For goneNamed it is still known whose it was.
func (s *Service) Remove(ctx context.Context, fence uint64, e keytable.Entry) error {
	_, _, err := s.write(ctx, fence, &e, true)
	return err
}

const (
	// goneNamed is for how long it is known whose a removed version was: so long
	// those who still show it are named. It is longer than a month, for what runs once
	// in one.
	goneNamed = 35 * 24 * time.Hour
	// goneKept is how long the document of a version is kept after that, so that every
	// node that follows learns of it.
	goneKept = 24 * time.Hour
)

func (s *Service) write(ctx context.Context, fence uint64, e *keytable.Entry, gone bool) (changed time.Time, rev uint64, err error) {
	now := s.config.Now().UTC()
	err = s.config.Store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindEntry, docName(e.Key, e.Version))
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindEntry, Name: docName(e.Key, e.Version)}, nil
		}
		if err != nil {
			return err
		}
		var old record
		if doc.Rev != 0 {
			if old, err = decode(doc); err != nil {
				return err
			}
			if old.Fence > fence {
				return provider.Permanent(fmt.Errorf("%w: %v of %s", ErrFenced, e.Version, e.Key), "nothing needs to be done: the later call counts")
			}
		}
		next := record{
			Key: e.Key, Version: e.Version, Hash: e.Hash.String(), Snapshot: e.Other.String(), Accepted: e.Accepted && !gone, Gone: gone,
			Fence: fence, Changed: now, Rules: e.Rules,
		}
		if doc.Rev != 0 && old.Accepted == next.Accepted && old.Gone == gone {
			next.Changed = old.Changed // a repetition
		}
		changed = next.Changed
		if gone {
			doc.Due = now.Add(goneNamed)
		} else {
			doc.Due = time.Time{}
		}
		if doc.Body, err = json.Marshal(next); err != nil {
			return fmt.Errorf("encode %v of %s: %w", e.Version, e.Key, err)
		}
		rev, err = tx.Docs.Put(ctx, doc)
		return err
	})
	return changed, rev, err
}

func decode(doc store.Doc) (record, error) {
	var r record
	if err := json.Unmarshal(doc.Body, &r); err != nil {
		return r, fmt.Errorf("stored API key %s is damaged: %w", doc.Name, err)
	}
	return r, nil
}

func (r *record) entry() (keytable.Entry, error) {
	hash, err := keytable.ParseHash(r.Hash)
	if err != nil {
		return keytable.Entry{}, err
	}
	other, err := keytable.ParseHash(r.Snapshot)
	return keytable.Entry{Key: r.Key, Version: r.Version, Hash: hash, Other: other, Accepted: r.Accepted, Rules: r.Rules}, err
}

// Hashes returns the keyed hashes of a key: that of the server's table and that of
// snapshots. It makes the pepper if there is none yet.
func (s *Service) Hashes(ctx context.Context, text secret.Value) (hash, snapshot keytable.Hash, err error) {
	if err := s.peppers.load(ctx, &s.config, true); err != nil {
		return hash, snapshot, err
	}
	if hash, err = s.peppers.hasher.Load().Sum(text.Reveal()); err != nil {
		return hash, snapshot, err
	}
	snapshot, err = s.peppers.snapshots.Load().Sum(text.Reveal())
	return hash, snapshot, err
}

// Try reports whether the key is let in, as Verify does but without counting a
// use. text may be empty when the key itself is known to nobody here any more: then
// it is found by its hash. What it reports holds at every node that may
// answer: otherwise Try fails.
func (s *Service) Try(ctx context.Context, e keytable.Entry, text secret.Value) (accepted bool, err error) {
	if err := errors.Join(s.peppers.load(ctx, &s.config, true), s.read(ctx)); err != nil {
		return false, err
	}
	now := s.config.Now()
	var found keytable.Found
	if text.Len() > 0 {
		found = s.look(text.RevealString(), now)
	} else {
		found = s.table.Look(&e.Hash, now)
	}
	err = s.judge(found, now)
	switch {
	case err == nil || errors.Is(err, ErrLimited):
		accepted = found.Key == e.Key && found.Version == e.Version
	case !errors.Is(err, ErrRefused):
		return false, err
	}
	if err := s.served(ctx, e); err != nil {
		return false, err
	}
	return accepted, nil
}

// read returns once the table was read.
func (s *Service) read(ctx context.Context) error {
	for {
		moved := s.arrived()
		if s.ready.Load() {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnsure, ctx.Err())
		}
	}
}

// Ready fails when a node that is alive does not tell how far it is: then no change
// would be complete.
func (s *Service) Ready(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	return s.allTold(ctx, true)
}

// served fails while a node may not serve what is stored of the version.
func (s *Service) served(ctx context.Context, e keytable.Entry) error {
	var doc store.Doc
	err := s.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		doc, err = tx.Docs.Get(ctx, kindEntry, docName(e.Key, e.Version))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil // it was never accepted
	}
	if err != nil {
		return err
	}
	r, err := decode(doc)
	if err != nil {
		return err
	}
	return s.everywhere(ctx, doc.Rev, r.Changed, r.Accepted)
}

// Len is how many versions this node knows.
func (s *Service) Len() int { return s.table.Len() }

// Held returns the versions of a key as they are stored.
func (s *Service) Held(ctx context.Context, name key.Name) (list []keytable.Entry, err error) {
	err = s.config.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindEntry, string(name)+"@", "", maxHeld)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			r, err := decode(doc)
			if err != nil {
				return err
			}
			if r.Gone {
				continue // whose it was does not matter here
			}
			e, err := r.entry()
			if err != nil {
				return fmt.Errorf("stored API key %s is damaged: %w", doc.Name, err)
			}
			list = append(list, e)
		}
		return nil
	})
	return list, err
}

// maxHeld bounds the versions of a key that are told of.
const maxHeld = 1000

// Govern gives every version of a key new rules; what has them already is left
// alone. It returns once they are stored; the nodes follow within a moment.
func (s *Service) Govern(ctx context.Context, name key.Name, rules keytable.Rules) error {
	return s.config.Store.Update(ctx, func(tx store.Tx) error {
		docs, err := tx.Index.List(ctx, kindEntry, string(name)+"@", "", maxHeld)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			r, err := decode(doc)
			if err != nil {
				return err
			}
			if r.Gone || reflect.DeepEqual(r.Rules, rules) {
				continue
			}
			r.Rules = rules
			if doc.Body, err = json.Marshal(r); err != nil {
				return fmt.Errorf("encode %s: %w", doc.Name, err)
			}
			if _, err := tx.Docs.Put(ctx, doc); err != nil {
				return err
			}
		}
		return nil
	})
}
