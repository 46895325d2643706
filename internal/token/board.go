package token

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

var (
	// ErrFenced: a later call has decided otherwise.
	ErrFenced = errors.New("a later call came before")
	// ErrTaken: another key has the issuer.
	ErrTaken = errors.New("another key has this issuer")
	// ErrUnknown: no signing key of that name is published.
	ErrUnknown = errors.New("no such signing key")
	// ErrNotReady: the server cannot answer for now.
	ErrNotReady = errors.New("not ready")
)

// Published is the endpoint of the set that anybody may read.
const Published = "published"

// BoardConfig is what a Board needs. Store, Logger, Now and Node are required.
type BoardConfig struct {
	Store  store.Store
	Logger *slog.Logger
	Now    func() time.Time
	// Node names this server node, the same after a restart and unlike all others.
	Node string
	// Outage is how long a node serves and signs without hearing of the store. What
	// changes has not arrived at a node that died before that time is over. Default:
	// 5 minutes.
	Outage time.Duration
	// Skew is how far the clocks of nodes and readers may differ. Default: 2 s.
	Skew time.Duration
	// ClientCertificates: clients are asked for a certificate, which metadata says.
	ClientCertificates bool
	// Restored returns when the store was last put back to an earlier state; zero if
	// never. What was signed before is unknown then. May be nil.
	Restored func(ctx context.Context) (time.Time, error)
	// Look is the least time between two looks at the store, Poll the longest, and
	// Flush how often fetches are noted. Defaults: 50 ms, 1 s and 200 ms.
	Look, Poll, Flush time.Duration
}

// Board publishes keys. Its methods may be called concurrently.
type Board struct {
	config BoardConfig

	mu sync.RWMutex
	// sets are the published ones by key, pages what is served by path.
	sets  map[key.Name]*published
	pages map[string]*Page
	// paths are issuers by their paths.
	paths map[string]issuerOf
	// rev is up to which revision sets follow the store; said is when the node last
	// told so. loaded: all were read.
	rev    uint64
	said   time.Time
	loaded bool
	// unsaid: this node has changed what it serves and has not told others.
	unsaid bool
	// changed is closed when a set changes, and replaced.
	changed chan struct{}
	fetched map[fetchOf]fetch

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// published is a set as it is served.
type published struct {
	set
	rev  uint64
	keys verifyKeys
}

// NewBoard returns a board that serves nothing before Start.
func NewBoard(config BoardConfig) *Board {
	orDefault(&config.Outage, 5*time.Minute)
	orDefault(&config.Skew, 2*time.Second)
	orDefault(&config.Look, 50*time.Millisecond)
	orDefault(&config.Poll, time.Second)
	orDefault(&config.Flush, 200*time.Millisecond)
	return &Board{config: config, sets: map[key.Name]*published{}, pages: map[string]*Page{}, paths: map[string]issuerOf{}, changed: make(chan struct{}), fetched: map[fetchOf]fetch{}}
}

func orDefault[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// Change is what a provider asks for; see jwks.Change.
type Change struct {
	Key        key.Name
	Endpoint   string
	Version    key.Version
	Listed     bool
	Fence      uint64
	Attributes map[string]string

	Issuer    string
	TokenLife time.Duration
	CacheLife time.Duration
	External  bool
	Endpoints []string
	Shared    bool
	From      []netip.Prefix
}

// Standing is how a version stands at an endpoint.
type Standing struct {
	Listed bool
	// Arrived: every node serves it so, and no cache that is obeyed says otherwise.
	Arrived bool
	// Waiting says what for if not, Until when that ends at the latest.
	Waiting string
	Until   time.Time
}

// Change lists a version at an endpoint or takes it off, durably, and says how far
// that has come. It is idempotent. It fails with ErrFenced when a call with a larger
// fence came before, and with ErrTaken when another key has the issuer.
func (b *Board) Change(ctx context.Context, change Change) (Standing, error) {
	var doc store.Doc
	err := b.config.Store.Update(ctx, func(tx store.Tx) error {
		s, read, err := readSet(ctx, tx, change.Key)
		if err != nil {
			return err
		}
		doc = read
		s.settle(doc.Rev)
		now := b.config.Now().UTC()
		if !s.Governed {
			if err := b.rename(ctx, tx, change.Key, &s, change.Issuer, now); err != nil {
				return err
			}
		}
		if err := s.apply(&change, now, b.config.Outage); err != nil {
			return err
		}
		body, err := json.Marshal(s)
		if err != nil || string(body) == string(doc.Body) {
			return err
		}
		doc.Body = body
		doc.Rev, err = tx.Docs.Put(ctx, doc)
		return err
	})
	if err != nil {
		return Standing{}, err
	}
	if err := b.showOwn(&doc); err != nil {
		return Standing{}, err
	}
	return b.Standing(ctx, change.Key, change.Endpoint, change.Version)
}

func readSet(ctx context.Context, tx store.Tx, name key.Name) (set, store.Doc, error) {
	doc, err := tx.Docs.Get(ctx, kindSet, string(name))
	if errors.Is(err, store.ErrNotFound) {
		return set{}, store.Doc{Kind: kindSet, Name: string(name)}, nil
	}
	if err != nil {
		return set{}, doc, err
	}
	s, err := decode[set](&doc)
	return s, doc, err
}

// settle notes at which revision of the document that is read its listings were so.
func (s *set) settle(rev uint64) {
	for i := range s.Versions {
		for name, at := range s.Versions[i].At {
			if at.Seq != 0 && at.Rev == 0 {
				at.Rev = rev
				s.Versions[i].At[name] = at
			}
		}
	}
}

// apply makes the set what a change asks for.
func (s *set) apply(change *Change, now time.Time, outage time.Duration) error {
	v := s.version(change.Version)
	if v == nil {
		s.Versions = append(s.Versions, version{
			Number: change.Version, KeyID: change.Attributes["kid"], Algorithm: change.Attributes["alg"],
			JWK: json.RawMessage(change.Attributes["jwk"]), At: map[string]listing{},
		})
		slices.SortFunc(s.Versions, func(a, b version) int { return cmp.Compare(a.Number, b.Number) })
		v = s.version(change.Version)
		if err := v.check(); err != nil {
			return err
		}
	}
	at := v.At[change.Endpoint]
	if change.Fence < at.Fence {
		return fmt.Errorf("%w: fence %d, that of %s at %s is %d", ErrFenced, change.Fence, change.Version, change.Endpoint, at.Fence)
	}
	if !s.Governed {
		readers := map[string]Reader{}
		for _, name := range append(change.Endpoints, change.Endpoint) {
			readers[name] = Reader{s.Endpoints[name].Shared, s.Endpoints[name].From}
		}
		readers[change.Endpoint] = Reader{change.Shared, change.From}
		s.govern(&Settings{TokenLife: change.TokenLife, CacheLife: change.CacheLife, External: change.External, Readers: readers}, now, outage)
	}
	if _, known := s.Endpoints[change.Endpoint]; !known {
		s.Endpoints[change.Endpoint] = endpoint{Shared: change.Shared, From: change.From}
	}
	at.Fence = change.Fence
	if at.Listed != change.Listed {
		e := s.Endpoints[change.Endpoint]
		s.Seq++
		at = listing{Listed: change.Listed, Fence: change.Fence, Seq: s.Seq, First: !e.Served, Cache: s.CacheLife}
		if now.Before(s.LongUntil) {
			at.Cache = max(at.Cache, s.LongLife)
		}
		e.Served = true
		s.Endpoints[change.Endpoint] = e
	}
	v.At[change.Endpoint] = at
	return nil
}

// Standing says how a version stands at an endpoint.
func (b *Board) Standing(ctx context.Context, name key.Name, endpoint string, v key.Version) (Standing, error) {
	for {
		standing, again, err := b.standing(ctx, name, endpoint, v)
		if err != nil || !again {
			return standing, err
		}
	}
}

// standing reads how a version stands, and notes that every node serves the set;
// then it is asked again.
func (b *Board) standing(ctx context.Context, name key.Name, endpoint string, number key.Version) (standing Standing, again bool, err error) {
	var everywhere *store.Doc
	var rev uint64
	err = b.config.Store.View(ctx, func(tx store.Tx) error {
		standing, everywhere = Standing{}, nil
		s, doc, err := readSet(ctx, tx, name)
		if err != nil {
			return err
		}
		v := s.version(number)
		if v == nil {
			standing.Arrived = true
			return nil
		}
		at := v.At[endpoint]
		standing.Listed = at.Listed
		switch {
		case at.Seq == 0:
			standing.Arrived = true
			return nil
		case at.Everywhere.IsZero():
			if at.Rev == 0 {
				at.Rev = doc.Rev
			}
			standing.Waiting, standing.Until, err = b.laggard(ctx, tx, name, at.Rev)
			if err == nil && standing.Waiting == "" {
				everywhere, rev = &doc, at.Rev
			}
			return err
		}
		return b.cached(ctx, tx, &s, name, endpoint, &at, &standing)
	})
	if err != nil || everywhere == nil {
		return standing, false, err
	}
	return standing, true, b.noteEverywhere(ctx, everywhere, rev)
}

// cached says whether caches may hold another set than that with a listing.
func (b *Board) cached(ctx context.Context, tx store.Tx, s *set, name key.Name, endpoint string, at *listing, standing *Standing) error {
	until := at.Everywhere.Add(at.Cache + b.config.Skew)
	if at.First || !b.config.Now().Before(until) {
		standing.Arrived = true
		return nil
	}
	standing.Until = until
	if endpoint == Published {
		standing.Waiting = fmt.Sprintf("readers that may hold an older set in a cache until %s", until.Format(time.RFC3339))
		return nil
	}
	if s.Endpoints[endpoint].Shared {
		standing.Waiting = fmt.Sprintf("the readers behind verifier %s, which may hold an older set until %s", endpoint, until.Format(time.RFC3339))
		return nil
	}
	last := "never"
	doc, err := tx.Docs.Get(ctx, kindFetch, fetchName(name, endpoint))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err == nil {
		f, err := decode[fetch](&doc)
		if err != nil {
			return err
		}
		if f.Seq >= at.Seq && f.At.After(at.Everywhere) {
			// It takes a moment to take what was fetched into use.
			if until = f.At.Add(b.config.Skew); b.config.Now().Before(until) {
				standing.Until, standing.Waiting = until, fmt.Sprintf("verifier %s to use the set that it has fetched", endpoint)
				return nil
			}
			standing.Arrived = true
			return nil
		}
		last = f.At.Format(time.RFC3339)
	}
	standing.Waiting = fmt.Sprintf("verifier %s to fetch its set (last fetched: %s), until %s at the latest", endpoint, last, until.Format(time.RFC3339))
	return nil
}

// laggard names a node that may serve an older set than that of the revision, and
// says until when.
func (b *Board) laggard(ctx context.Context, tx store.Tx, name key.Name, rev uint64) (waiting string, until time.Time, err error) {
	b.mu.RLock()
	own := b.sets[name]
	b.mu.RUnlock()
	if own == nil || own.rev < rev {
		return "this server node to serve the set", time.Time{}, nil
	}
	docs, err := tx.Index.List(ctx, kindNode, "", "", store.MaxLimit)
	if err != nil {
		return "", time.Time{}, err
	}
	for i := range docs {
		if docs[i].Name == b.config.Node {
			continue
		}
		n, err := decode[nodeRecord](&docs[i])
		if err != nil {
			return "", time.Time{}, err
		}
		over := n.At.Add(b.config.Outage + b.config.Skew)
		if n.Left || n.Rev >= rev || !b.config.Now().Before(over) {
			continue
		}
		return fmt.Sprintf("server node %s to serve the set, or to be dead for %v", docs[i].Name, b.config.Outage), over, nil
	}
	return "", time.Time{}, nil
}

// noteEverywhere notes that every node serves what the set had at a revision.
func (b *Board) noteEverywhere(ctx context.Context, doc *store.Doc, rev uint64) error {
	s, err := decode[set](doc)
	if err != nil {
		return err
	}
	now := b.config.Now().UTC()
	for i := range s.Versions {
		for name, at := range s.Versions[i].At {
			if at.Seq != 0 && at.Everywhere.IsZero() {
				if at.Rev == 0 {
					at.Rev = doc.Rev
				}
				if at.Rev <= rev {
					at.Everywhere = now
				}
				s.Versions[i].At[name] = at
			}
		}
	}
	put := *doc
	if put.Body, err = json.Marshal(s); err != nil {
		return err
	}
	err = b.config.Store.Update(ctx, func(tx store.Tx) error {
		put.Rev = doc.Rev
		put.Rev, err = tx.Docs.Put(ctx, put)
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return nil // it is looked at again
	}
	if err != nil {
		return err
	}
	return b.showOwn(&put)
}

// Held returns the versions that are listed at any endpoint.
func (b *Board) Held(ctx context.Context, name key.Name) ([]provider.Held, error) {
	var held []provider.Held
	err := b.config.Store.View(ctx, func(tx store.Tx) error {
		held = nil
		s, _, err := readSet(ctx, tx, name)
		if err != nil {
			return err
		}
		for i := range s.Versions {
			v := &s.Versions[i]
			for _, endpoint := range slices.Sorted(maps.Keys(v.At)) {
				at := v.At[endpoint]
				if !at.Listed && at.Seq == 0 {
					continue
				}
				held = append(held, provider.Held{
					Endpoint: endpoint, Version: v.Number, Accepted: at.Listed,
					Attributes: map[string]string{"kid": v.KeyID, "alg": v.Algorithm, "jwk": string(v.JWK), "issuer": s.Issuer},
				})
			}
		}
		return nil
	})
	return held, err
}

// Drop forgets a version that is listed nowhere; it fails while it is listed. A key
// without versions has no set any more.
func (b *Board) Drop(ctx context.Context, name key.Name, number key.Version) error {
	var doc store.Doc
	err := b.config.Store.Update(ctx, func(tx store.Tx) error {
		s, read, err := readSet(ctx, tx, name)
		if err != nil {
			return err
		}
		doc = read
		v := s.version(number)
		if v == nil {
			return nil
		}
		for endpoint, at := range v.At {
			if at.Listed {
				return fmt.Errorf("%s is still published at %s", number, endpoint)
			}
		}
		s.Versions = slices.DeleteFunc(s.Versions, func(v version) bool { return v.Number == number })
		if len(s.Versions) == 0 {
			for _, issuer := range s.issuers() {
				if err := release(ctx, tx, name, issuer); err != nil {
					return err
				}
			}
			// Caches may still hold a set of each endpoint.
			s = set{Seq: s.Seq, CacheLife: s.CacheLife, LongLife: s.LongLife, LongUntil: s.LongUntil, LongestLife: s.LongestLife, Endpoints: s.Endpoints}
		}
		if doc.Body, err = json.Marshal(s); err != nil {
			return err
		}
		doc.Rev, err = tx.Docs.Put(ctx, doc)
		return err
	})
	if err != nil || doc.Rev == 0 {
		return err
	}
	return b.showOwn(&doc)
}

// check refuses a version without a public key by which it could be verified.
func (v *version) check() error {
	if _, err := parseKey(v); err != nil {
		return fmt.Errorf("%s cannot be published: %w", v.Number, err)
	}
	return nil
}
