package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

const (
	// askedEvery is how much the time on disk at which a key was asked for may lag.
	askedEvery = 24 * time.Hour
	// refusedFor is after how long a key is tried again that the centre does not let the
	// relay present.
	refusedFor = time.Hour
	// maxRefused bounds what is remembered of such keys.
	maxRefused = 10_000
)

// keys are those that the relay presents as a party, or tries to.
//
// What its parties are registered for at the centre always includes what it may hand
// out: a key is removed from the cache before a party watches without it.
type keys struct {
	cache   *cache
	config  *Config
	now     func() time.Time
	parties []*party
	// writing orders the writes of the cache.
	writing sync.Mutex

	mu     sync.Mutex
	by     map[key.Name]*entry
	inside []int // how many keys each party has
	// relayed are those that are only relayed, until when.
	relayed map[key.Name]time.Time
	full    bool
	// news is closed and replaced when a version arrives.
	news chan struct{}
}

// entry is one key; guarded by the lock of keys.
type entry struct {
	party int
	// held is what is durable in the cache; nil: nothing yet.
	held *material
	// asked is when a client asked last, stored what the cache says of it.
	asked, stored time.Time
	// accepted: the centre takes the party for this key.
	accepted bool
	// going: it is being removed from the cache.
	going bool
	// answer: the centre waits for the acknowledgement of what is held.
	answer bool
}

func newKeys(c *cache, config *Config, now func() time.Time) *keys {
	return &keys{
		cache: c, config: config, now: now, by: map[key.Name]*entry{}, inside: make([]int, config.Parties),
		relayed: map[key.Name]time.Time{}, news: make(chan struct{}),
	}
}

// load reads the cache. A document that does not open is not served; the key is watched
// all the same, since the relay is registered for it.
func (k *keys) load(ctx context.Context) error {
	return k.cache.list(ctx, kindKey, func(doc *store.Doc) error {
		name, err := key.ParseName(doc.Name)
		record, damaged := decodeKey(doc.Body, len(k.inside))
		if err != nil || damaged != nil {
			k.config.Logger.ErrorContext(ctx, "a key in the cache cannot be read; it is fetched again when it is asked for", "key", doc.Name)
			return nil //nolint:nilerr // the others are served
		}
		held, err := k.cache.openKey(ctx, name, &record)
		if errors.Is(err, errForeign) {
			k.config.Logger.ErrorContext(ctx, "a key in the cache is not served; it is fetched again", "key", doc.Name, "error", err)
			held, err = nil, nil
		}
		if err != nil {
			return fmt.Errorf("open %s of the cache: %w", name, err)
		}
		k.by[name] = &entry{party: record.Party - 1, held: held, asked: record.Asked, stored: record.Asked, accepted: true}
		k.inside[record.Party-1]++
		return nil
	})
}

// ask notes that the centre has let a client have keys.
func (k *keys) ask(ctx context.Context, names []key.Name) {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		if e := k.by[name]; e != nil {
			e.asked = now
			continue
		}
		if until, is := k.relayed[name]; is && now.Before(until) {
			continue
		}
		at := slices.IndexFunc(k.inside, func(n int) bool { return n < client.MaxKeys })
		if at < 0 {
			if !k.full {
				k.config.Logger.WarnContext(ctx, "more keys are asked for than the gateway's parties can present; the others are relayed only", "keys", len(k.by), "parties", len(k.inside))
			}
			k.full = true
			k.only(name, now)
			continue
		}
		delete(k.relayed, name)
		k.by[name] = &entry{party: at, asked: now}
		k.inside[at]++
		k.parties[at].wake()
	}
}

// only notes a key that is relayed only; the caller holds the lock.
func (k *keys) only(name key.Name, now time.Time) {
	if len(k.relayed) >= maxRefused {
		for other := range k.relayed {
			delete(k.relayed, other)
			break
		}
	}
	k.relayed[name] = now.Add(refusedFor)
}

// known is what a party holds, of every key of a list of names.
type known struct {
	name    key.Name
	version key.Version
	epoch   uint64
}

// of returns the keys of a party: those that the centre has accepted, and others.
func (k *keys) of(party int) (accepted, others []key.Name) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, e := range k.by {
		switch {
		case e.party != party:
		case e.accepted:
			accepted = append(accepted, name)
		default:
			others = append(others, name)
		}
	}
	slices.Sort(accepted)
	slices.Sort(others)
	return accepted, others
}

func (k *keys) known(names []key.Name) []known {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]known, 0, len(names))
	for _, name := range names {
		one := known{name: name}
		if e := k.by[name]; e != nil && e.held != nil {
			one.version, one.epoch = e.held.version, e.held.epoch
		}
		list = append(list, one)
	}
	return list
}

// accept notes that the centre takes a party for keys.
func (k *keys) accept(names []key.Name) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		if e := k.by[name]; e != nil {
			e.accepted = true
		}
	}
}

// take makes what the centre told durable, and from then on hands it out. It returns
// the error of the cache: then nothing of it counts, and nothing is acknowledged.
func (k *keys) take(ctx context.Context, told []*material) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	k.mu.Lock()
	var fresh []*material
	records := map[key.Name]*keyRecord{}
	for _, m := range told {
		e := k.by[m.name]
		switch {
		case e == nil || e.held != nil && m.epoch < e.held.epoch:
		case e.held != nil && m.epoch == e.held.epoch:
			e.answer = true // it was told again, since the acknowledgement is missing
		default:
			fresh = append(fresh, m)
			records[m.name] = &keyRecord{Party: e.party + 1, Asked: e.asked}
		}
	}
	k.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	for _, m := range fresh {
		record := records[m.name]
		var err error
		if *record, err = k.cache.sealKey(ctx, m, record.Party, record.Asked); err != nil {
			return fmt.Errorf("seal %s %s: %w", m.name, m.version, err)
		}
	}
	err := k.cache.store.Update(ctx, func(tx store.Tx) error {
		for _, m := range fresh {
			if err := put(ctx, tx, kindKey, string(m.name), records[m.name]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write %d versions to the cache: %w", len(fresh), err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range fresh {
		if e := k.by[m.name]; e != nil {
			e.held, e.answer, e.stored = m, true, records[m.name].Asked
		}
	}
	close(k.news)
	k.news = make(chan struct{})
	return nil
}

// answers are the acknowledgements that the centre waits for, of one party: those that
// may go out, and how many may not because of somebody that the relay has served.
func (k *keys) answers(party int, owed *owed) (due []known, held int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, e := range k.by {
		switch {
		case e.party != party || !e.answer || e.held == nil:
		case owed.holds(name, e.held.version):
			held++
		case len(due) < client.MaxKeys:
			due = append(due, known{name, e.held.version, e.held.epoch})
		}
	}
	return due, held
}

// answered notes that acknowledgements are durable.
func (k *keys) answered(list []known) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range list {
		if e := k.by[one.name]; e != nil && e.held != nil && e.held.epoch == one.epoch {
			e.answer = false
		}
	}
}

// watch returns a channel that is closed when a version arrives.
func (k *keys) watch() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.news
}

// offer returns what a party is to be handed that knows so much: of each key what is
// held, unless the party has that version or was told later. Each is noted in owed
// before another version can take its place.
func (k *keys) offer(knows []known, note func(*material)) []*material {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []*material
	for _, one := range knows {
		e := k.by[one.name]
		if e == nil || e.going || e.held == nil || e.held.version == one.version || e.held.epoch <= one.epoch {
			continue
		}
		note(e.held)
		list = append(list, e.held)
	}
	return list
}

// lacks reports whether a party that knows so much would lack a version.
func (k *keys) lacks(knows []known) (key.Name, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range knows {
		if e := k.by[one.name]; one.version == 0 && (e == nil || e.going || e.held == nil) {
			return one.name, true
		}
	}
	return "", false
}

// refuse drops keys that the centre does not let the relay present.
func (k *keys) refuse(ctx context.Context, names []key.Name, why error) error {
	for _, name := range names {
		k.config.Logger.WarnContext(ctx, "the centre does not let the gateway present a key; it is relayed only", "key", string(name), "error", why)
	}
	if err := k.drop(ctx, names, func(key.Name, *entry) bool { return true }); err != nil {
		return err
	}
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		k.only(name, now)
	}
	return nil
}

// drop removes keys, first from the cache: what no party is registered for any more must
// not be handed out, not even after a crash. still says whether a key is to go.
func (k *keys) drop(ctx context.Context, names []key.Name, still func(key.Name, *entry) bool) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	k.mu.Lock()
	var going []key.Name
	for _, name := range names {
		if e := k.by[name]; e != nil && still(name, e) {
			e.going = true
			going = append(going, name)
		}
	}
	k.mu.Unlock()
	err := k.cache.store.Update(ctx, func(tx store.Tx) error {
		for _, name := range going {
			if err := put(ctx, tx, kindKey, string(name), nil); err != nil {
				return err
			}
		}
		return nil
	})
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range going {
		e := k.by[name]
		if err != nil {
			e.going = false
			continue
		}
		delete(k.by, name)
		k.inside[e.party]--
		k.full = false
	}
	if err != nil {
		return fmt.Errorf("remove %d keys from the cache: %w", len(going), err)
	}
	return nil
}

// named are those of some keys of which an error of the centre says "key NAME".
func named(names []key.Name, text string) []key.Name {
	said := map[string]bool{}
	for _, rest := range strings.Split(text, "key ")[1:] {
		end := strings.IndexFunc(rest, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789._-/", r) })
		if end < 0 {
			end = len(rest)
		}
		said[strings.TrimRight(rest[:end], ".")] = true
	}
	var list []key.Name
	for _, name := range names {
		if said[string(name)] {
			list = append(list, name)
		}
	}
	return list
}

// tidy drops keys that nobody asks for, and writes when the others were asked for.
func (k *keys) tidy(ctx context.Context, owed *owed) error {
	now := k.now()
	stale := func(name key.Name, e *entry) bool { return now.Sub(e.asked) >= k.config.KeepKeys && !owed.any(name) }
	k.mu.Lock()
	var old []key.Name
	lag := map[key.Name]time.Time{}
	for name, e := range k.by {
		switch {
		case stale(name, e):
			old = append(old, name)
		case e.held != nil && e.asked.Sub(e.stored) >= askedEvery:
			lag[name] = e.asked
		}
	}
	maps.DeleteFunc(k.relayed, func(_ key.Name, until time.Time) bool { return !now.Before(until) })
	k.mu.Unlock()
	for part := range slices.Chunk(old, pageOf) {
		if err := k.drop(ctx, part, stale); err != nil {
			return err
		}
	}
	if len(old) > 0 {
		for _, p := range k.parties {
			p.wake()
		}
	}
	for name, asked := range lag {
		if err := k.touch(ctx, name, asked); err != nil {
			return err
		}
	}
	return nil
}

// touch writes when a key was asked for.
func (k *keys) touch(ctx context.Context, name key.Name, asked time.Time) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	err := k.cache.store.Update(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindKey, string(name))
		if err != nil {
			return err
		}
		record, err := decodeKey(doc.Body, len(k.inside))
		if err != nil {
			return err
		}
		record.Asked = asked
		return put(ctx, tx, kindKey, string(name), record)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("note that %s was asked for: %w", name, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.by[name]; e != nil {
		e.stored = asked
	}
	return nil
}

// numbers are the keys that are held, and those that are relayed only.
func (k *keys) numbers() (held, relayed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.by {
		if e.held != nil {
			held++
		}
	}
	return held, len(k.relayed)
}
