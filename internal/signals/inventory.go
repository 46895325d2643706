package signals

import (
	"cmp"
	"context"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// inventory is what is known of every key, kept by what changed since the last
// look: an idle key costs a few bytes, and no time. Only keys whose rotations are
// open are kept whole.
type inventory struct {
	maxKeys int
	seed    maphash.Seed
	// revision up to which changes were taken.
	revision uint64

	// idle holds of each key when its current version was minted, in seconds since
	// 1970, 0 for none; by a hash of its name. Two keys of one hash would count as
	// one, which happens once in some ten million inventories of a million keys.
	idle map[uint64]uint32
	// more is what is to be counted of a key beside its age.
	more map[uint64]counted
	// open are the states of keys with open rotations.
	open map[key.Name]rotation.State
	// first are the first keys by name that have a current version.
	first []mintedAt

	unkeyed, unrefused, standing int
	// standingSince is when keys were first seen to stand still; zero when none does.
	standingSince time.Time
	// hours is how many current versions were minted in each hour since 1970.
	hours      map[int64]int
	presenters map[presenterGroup]int
	regions    map[string]bool
}

// counted is what one key adds to the sums.
type counted struct {
	presenters []presenterCount
	unrefused  int
	// standing is 1 for a key that stands still after a restore.
	standing int
}

type presenterCount struct {
	presenterGroup
	n int
}

func newInventory(maxKeys int) *inventory {
	return &inventory{
		maxKeys: maxKeys, seed: maphash.MakeSeed(), idle: map[uint64]uint32{}, more: map[uint64]counted{}, open: map[key.Name]rotation.State{},
		hours: map[int64]int{}, presenters: map[presenterGroup]int{}, regions: map[string]bool{},
	}
}

const (
	// pageSize is how many changes are read at once.
	pageSize = 250
	// hurry is how many pages are read without a pause; those of a start on a large
	// inventory leave most of a processor to others.
	hurry    = 40
	leisure  = 3
	restMost = time.Second
)

// catchUp takes all changes since the last call.
func (i *inventory) catchUp(ctx context.Context, source Source, now func() time.Time) error {
	for page := 0; ; page++ {
		began := now()
		changes, next, err := source.Changed(ctx, i.revision, pageSize)
		if err != nil {
			return err
		}
		for c := range changes {
			i.take(&changes[c])
		}
		i.revision = next
		if len(changes) < pageSize {
			return nil
		}
		if page < hurry {
			continue
		}
		rest := time.NewTimer(min(leisure*now().Sub(began), restMost))
		select {
		case <-ctx.Done():
			rest.Stop()
			return ctx.Err()
		case <-rest.C:
		}
	}
}

// take replaces what is known of a key.
func (i *inventory) take(k *engine.KeyState) {
	id := maphash.String(i.seed, string(k.Name))
	i.forget(id)
	delete(i.open, k.Name)
	if k.Deleted {
		i.setFirst(k.Name, time.Time{})
		return
	}
	var minted time.Time
	if current, ok := k.State.Version(k.State.Labelled(key.Current)); ok {
		minted = current.MintedAt
	}
	i.add(id, minted, countedOf(&k.State))
	i.setFirst(k.Name, minted)
	if len(k.State.Rotations) > 0 {
		i.open[k.Name] = k.State
	}
	for v := range k.State.Verifiers {
		i.seeRegion(k.State.Verifiers[v].Region)
	}
}

func (i *inventory) seeRegion(name string) {
	if len(i.regions) < maxRegionsSeen {
		i.regions[name] = true
	}
}

// add counts a key.
func (i *inventory) add(id uint64, minted time.Time, more counted) {
	seconds := uint32(0)
	if minted.IsZero() {
		i.unkeyed++
	} else {
		seconds = uint32(min(max(minted.Unix(), 1), 1<<32-1))
		i.hours[int64(seconds)/3600]++
	}
	i.idle[id] = seconds
	i.unrefused += more.unrefused
	i.standing += more.standing
	for _, group := range more.presenters {
		i.presenters[group.presenterGroup] += group.n
		i.seeRegion(group.region)
	}
	if more.unrefused > 0 || more.standing > 0 || len(more.presenters) > 0 {
		i.more[id] = more
	}
}

// forget takes a key out of the sums.
func (i *inventory) forget(id uint64) {
	seconds, known := i.idle[id]
	if !known {
		return
	}
	delete(i.idle, id)
	if seconds == 0 {
		i.unkeyed--
	} else if hour := int64(seconds) / 3600; i.hours[hour] > 1 {
		i.hours[hour]--
	} else {
		delete(i.hours, hour)
	}
	more := i.more[id]
	delete(i.more, id)
	i.unrefused -= more.unrefused
	i.standing -= more.standing
	for _, group := range more.presenters {
		if i.presenters[group.presenterGroup] -= group.n; i.presenters[group.presenterGroup] == 0 {
			delete(i.presenters, group.presenterGroup)
		}
	}
}

// setFirst keeps the first keys by name; a zero time takes one out.
func (i *inventory) setFirst(name key.Name, minted time.Time) {
	at, known := slices.BinarySearchFunc(i.first, name, func(m mintedAt, name key.Name) int { return cmp.Compare(m.key, name) })
	switch {
	case known && minted.IsZero():
		i.first = slices.Delete(i.first, at, at+1)
	case known:
		i.first[at].at = minted
	case minted.IsZero() || at == i.maxKeys:
	default:
		i.first = slices.Insert(i.first, at, mintedAt{key: name, at: minted})
		i.first = i.first[:min(len(i.first), i.maxKeys)]
	}
}

// countedOf is what a key adds to the sums.
func countedOf(state *rotation.State) counted {
	var c counted
	groups := map[presenterGroup]int{}
	for i := range state.Presenters {
		p := &state.Presenters[i]
		status := "behind"
		switch {
		case p.Failed:
			status = "failed"
		case p.Uses(p.Told):
			status = "acknowledged"
		}
		groups[presenterGroup{region: p.Region, state: status}]++
	}
	for group, n := range groups {
		c.presenters = append(c.presenters, presenterCount{group, n})
	}
	for i := range state.Versions {
		if state.Versions[i].State == key.Compromised && accepted(state, state.Versions[i].Number) {
			c.unrefused++
		}
	}
	if state.Standing() {
		c.standing = 1
	}
	return c
}

// view is what is shown of the inventory; it shares nothing with it.
func (i *inventory) view(began time.Time) *view {
	v := newView(began)
	v.minted, v.hours = slices.Clone(i.first), maps.Clone(i.hours)
	v.unkeyed, v.unrefused, v.standing = i.unkeyed, i.unrefused, i.standing
	switch {
	case i.standing == 0:
		i.standingSince = time.Time{}
	case i.standingSince.IsZero():
		i.standingSince = began
	}
	v.standingSince = i.standingSince
	v.presenters = maps.Clone(i.presenters)
	for name := range i.regions {
		v.regions.of(name)
	}
	return v
}
