package emergency

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

const (
	// maxLooked is how many entries of the audit log one selection reads: the newest.
	maxLooked = 1_000_000
	// lookedAtOnce is how many are read from one snapshot.
	lookedAtOnce = 1000
	// maxWhy is how many reasons are given for a key.
	maxWhy = 5
	// lookBack is how far is looked back unless it is said.
	lookBack = 30 * 24 * time.Hour
)

// Looked says which part of the audit log a selection is made from.
type Looked struct {
	// From is the number of the first entry, To that behind the last, Since from when on
	// the log was wanted.
	From  uint64    `json:"from"`
	To    uint64    `json:"to"`
	Since time.Time `json:"since"`
	// Incomplete says what could not be found out: keys may be missing. Empty when
	// nothing is.
	Incomplete []string `json:"incomplete,omitempty"`
}

// lack notes what could not be found out.
func (l *Looked) lack(format string, args ...any) {
	l.Incomplete = append(l.Incomplete, fmt.Sprintf(format, args...))
}

// finding is why keys belong to a selection.
type finding map[key.Name][]string

// add notes a reason. Of too many the first ones stay, and the last one.
func (f finding) add(name key.Name, why string) {
	list := f[name]
	switch {
	case slices.Contains(list, why):
	case len(list) == maxWhy:
		list[maxWhy-1] = why
	default:
		f[name] = append(list, why)
	}
}

// seen is what the log says of readers.
type seen struct {
	finding
	// crowds are tellings of many parties at once, whose names the log leaves out.
	crowds map[key.Name][]audit.Entry
	// backups are entries of readers that took a copy of everything, revoked those of
	// their tokens that were revoked.
	backups, revoked []string
}

// since is from when on the log is looked at.
func (s *Service) since(request *Request) (time.Time, error) {
	now := s.now()
	switch {
	case !request.Since.IsZero() && request.Back != 0:
		return now, fmt.Errorf("%w: since, since_time: they exclude each other; leave one out", engine.ErrInvalid)
	case request.Back < 0 || request.Since.After(now):
		return now, fmt.Errorf("%w: since: it is in the future", engine.ErrInvalid)
	case !request.Since.IsZero():
		return request.Since.UTC(), nil
	case request.Back > 0:
		return now.Add(-request.Back), nil
	}
	return now.Add(-lookBack), nil
}

// look reads the part of the audit log for what the readers were given.
func (s *Service) look(ctx context.Context, r *readers, looked *Looked) (seen, error) {
	found := seen{finding: finding{}, crowds: map[key.Name][]audit.Entry{}}
	if len(r.gateways) > 0 {
		err := s.entries(ctx, looked, []string{"party."}, func(e *audit.Entry) {
			for _, gateway := range []string{e.Detail[audit.DetailGateway], e.Detail[audit.DetailGatewayBefore]} {
				if r.gateways[gateway] {
					r.through[e.Target] = gateway
				}
			}
		})
		if err != nil {
			return found, err
		}
	}
	actions := []string{string(audit.ActionRead), string(audit.ActionHandout), "presenter.", "backup.begin", "token.revoke"}
	err := s.entries(ctx, looked, actions, func(e *audit.Entry) { found.take(r, e) })
	return found, err
}

// connected is who was at an address, by the audit log.
type connected struct {
	// parties connected from there, or got something there from a gateway, readers read
	// from there by their tokens.
	parties, readers map[string]bool
}

// connected reads the part of the audit log for who was at the address that is meant.
func (s *Service) connected(ctx context.Context, request *Request, looked *Looked) (*connected, error) {
	shown := &connected{parties: map[string]bool{}, readers: map[string]bool{}}
	network, err := request.network()
	if err != nil || !network.IsValid() {
		return shown, err
	}
	r := &readers{network: network}
	var nowhere uint64
	var first audit.Entry
	err = s.entries(ctx, looked, []string{string(audit.ActionRead), string(audit.ActionHandout), "party."}, func(e *audit.Entry) {
		there := r.at(e.Detail[audit.DetailAddress]) || r.at(e.Detail[audit.DetailBefore])
		switch {
		case e.Action == audit.ActionRead && e.Detail[audit.DetailAddress] == "":
			if nowhere++; nowhere == 1 {
				first = *e
			}
		case e.Action == audit.ActionRead && there:
			shown.readers[e.Actor.ID] = true
		case there:
			shown.parties[e.Target] = true
		}
	})
	if nowhere > 0 {
		looked.lack("%d reads, the first of them entry %d, were noted without an address", nowhere, first.Seq)
	}
	return shown, err
}

// entries calls visit for the entries of the part of the log that is looked at whose
// action begins with one of the prefixes.
func (s *Service) entries(ctx context.Context, looked *Looked, prefixes []string, visit func(*audit.Entry)) error {
	for at := looked.From; at < looked.To; {
		var records [][]byte
		err := s.config.Store.View(ctx, func(tx store.Tx) error {
			var err error
			records, _, err = tx.Log.Records(ctx, at, int(min(lookedAtOnce, looked.To-at)))
			return err
		})
		if err != nil {
			return fmt.Errorf("read the audit log from entry %d on: %w", at, err)
		}
		if len(records) == 0 {
			return fmt.Errorf("%w: entry %d of the audit log is missing; run keyturn audit verify", engine.ErrState, at)
		}
		for _, record := range records {
			if matters(record, prefixes) {
				entry, err := audit.Decode(record)
				if err != nil {
					return fmt.Errorf("entry %d: %w", at, err)
				}
				visit(&entry)
			}
			at++
		}
	}
	return nil
}

// locate finds the entries from looked.Since on, by bisection: times in the log never
// go back.
func (s *Service) locate(ctx context.Context, looked *Looked) error {
	return s.config.Store.View(ctx, func(tx store.Tx) error {
		looked.Incomplete = nil
		var failed error
		at := func(n uint64) time.Time {
			records, _, err := tx.Log.Records(ctx, n, 1)
			if err == nil && len(records) == 0 {
				err = fmt.Errorf("%w: entry %d of the audit log is missing; run keyturn audit verify", engine.ErrState, n)
			}
			var entry audit.Entry
			if err == nil {
				entry, err = audit.Decode(records[0])
			}
			if err != nil && failed == nil {
				failed = err
			}
			return entry.At
		}
		_, size, err := tx.Log.Records(ctx, 0, 1)
		if err != nil {
			return err
		}
		if size == 0 {
			looked.lack("the audit log is empty: who read what is not known")
			return nil
		}
		looked.To = size
		if begins := at(0); begins.After(looked.Since) {
			looked.lack("the audit log begins at %s: what was read before is not known", stamp(begins))
		} else {
			looked.From = uint64(sort.Search(int(size), func(n int) bool { return !at(uint64(n)).Before(looked.Since) }))
		}
		if most := s.config.maxLooked(); size-looked.From > most {
			looked.From = size - most
			looked.lack("only the newest %d entries of the audit log were read, from %s on: choose a later time", most, stamp(at(looked.From)))
		}
		return failed
	})
}

// matters reports whether an entry may be one with such an action; it saves most of
// the decoding.
func matters(record []byte, prefixes []string) bool {
	_, action, _ := bytes.Cut(record, []byte(`,"action":"`))
	for _, prefix := range prefixes {
		if bytes.HasPrefix(action, []byte(prefix)) {
			return true
		}
	}
	return false
}

// take takes what an entry says of the readers.
func (f *seen) take(r *readers, e *audit.Entry) {
	place := fmt.Sprintf("entry %d, %s: ", e.Seq, stamp(e.At))
	switch string(e.Action) {
	case string(audit.ActionRead):
		address := e.Detail[audit.DetailAddress]
		if e.Outcome == audit.OutcomeOK && (r.is(e.Actor.ID) || r.at(address)) {
			if address != "" {
				address = " from " + address
			}
			f.add(e.Key, fmt.Sprintf("%s%v read by %s%s", place, e.Version, e.Actor.ID, address))
		}
	case string(audit.ActionHandout):
		address, gateway := e.Detail[audit.DetailAddress], e.Detail[audit.DetailGateway]
		if r.is(e.Target) || r.at(address) || r.is(e.Actor.ID) || r.is(gateway) {
			f.add(e.Key, fmt.Sprintf("%s%v handed out to %s at %s by gateway %s", place, e.Version, e.Target, address, gateway))
		}
	case "presenter.told":
		how, sees := r.sees(e.Target)
		switch {
		case e.Target == "":
			f.crowds[e.Key] = append(f.crowds[e.Key], *e)
		case sees:
			f.add(e.Key, fmt.Sprintf("%s%v told to %s%s", place, e.Version, e.Target, how))
		}
	case "presenter.acked":
		if how, sees := r.sees(e.Target); sees {
			f.add(e.Key, fmt.Sprintf("%s%v in use at %s%s", place, e.Version, e.Target, how))
		}
	case "presenter.left":
		if how, sees := r.sees(e.Target); sees {
			f.add(e.Key, fmt.Sprintf("%s%s presented it until then%s", place, e.Target, how))
		}
	case "backup.begin":
		if r.is(e.Actor.ID) {
			f.backups = append(f.backups, fmt.Sprintf("%s%s took a backup, which holds every key, encrypted for its recipients", place, e.Actor.ID))
		}
	case "token.revoke":
		if r.is(e.Detail["name"]) {
			f.revoked = append(f.revoked, fmt.Sprintf("%stoken %s of %s was revoked: which keys it covered is not known", place, e.Target, e.Detail["name"]))
		}
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// resolve says of tellings of many at once whether readers were among them: whoever
// presents the key counts.
func (f *seen) resolve(r *readers, visible func(key.Name) bool, looked *Looked) {
	for _, name := range slices.SortedFunc(maps.Keys(f.crowds), compareNames) {
		if visible != nil && !visible(name) {
			continue
		}
		list := f.crowds[name]
		who := r.presenter(name)
		if who == "" {
			if len(r.parties) == 0 {
				looked.lack("%s was told to many parties at once, for example in entry %d, whose names the log leaves out, and %s is not registered any more", name, list[0].Seq, r.label)
			}
			continue
		}
		for i := range list {
			f.add(name, fmt.Sprintf("entry %d, %s: %v told to %s parties at once; %s presents it", list[i].Seq, stamp(list[i].At), list[i].Version, list[i].Detail["presenters"], who))
		}
	}
}
