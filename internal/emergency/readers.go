package emergency

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// Fleet is what a Service needs of the parties.
type Fleet interface {
	// Parties lists registered parties by ID, after the given one, at most limit.
	Parties(ctx context.Context, after string, limit int) ([]engine.PartyRecord, error)
	// Assigned returns what a presenter of the key is told to present; ok is false when
	// it does not present it.
	Assigned(ctx context.Context, name key.Name, id string) (tell engine.Tell, unwell, ok bool, err error)
}

// Token is a token that may read secrets.
type Token struct {
	ID   string
	Name string
	// Party and Labels are those of the party that it belongs to; empty if it belongs
	// to none.
	Party  string
	Labels map[string]string
	// Keys are the patterns of the keys that it covers.
	Keys []string
	// Speaks: while it belongs to no party it may speak for those that are named after it.
	Speaks bool
	// Gateway: it is that of a gateway, which sees what the parties get that connect
	// through it.
	Gateway bool
}

// hostLabel is the label by which a party says on which host it is.
const hostLabel = "host"

// readers are the parties and tokens that a selection means by their reading.
type readers struct {
	// label names them for people.
	label string
	// names are IDs of parties and names of tokens; those beneath one of beneath count too.
	names   map[string]bool
	beneath []string
	// host is the host that they are on, network where they connect from, if that is
	// what is meant.
	host    string
	network netip.Prefix
	parties []engine.PartyRecord
	tokens  []Token
	// gateways are those of the tokens that are gateways', relayed the parties that
	// connect through them now, and through those that did, by the audit log, with the
	// gateway.
	gateways map[string]bool
	relayed  []engine.PartyRecord
	through  map[string]string
	// issued are all tokens that there are, lent those that the gateways were shown.
	issued, lent []Token
}

// is reports whether somebody whom the log names is one of them.
func (r *readers) is(name string) bool {
	return name != "" && (r.names[name] || slices.ContainsFunc(r.beneath, func(of string) bool { return isBeneath(of, name) }))
}

// at reports whether an address is where the readers are.
func (r *readers) at(address string) bool {
	if address == "" || !r.network.IsValid() {
		return false
	}
	at, err := netip.ParseAddr(address)
	return err == nil && r.network.Contains(at)
}

// isBeneath reports whether a name is that of a host or token, or of something on it.
func isBeneath(of, name string) bool {
	return name == of || strings.HasPrefix(name, of+"/")
}

// lend takes in the tokens of those who connected through the gateways: these were
// shown them with every request.
func (r *readers) lend() {
	for i := range r.issued {
		t := &r.issued[i]
		for party := range r.through {
			if t.Party == party || t.Party == "" && t.Speaks && isBeneath(t.Name, party) {
				r.lent = append(r.lent, *t)
				break
			}
		}
	}
}

// presenter returns one of the parties that present a key, or nothing.
func (r *readers) presenter(name key.Name) string {
	for _, list := range [][]engine.PartyRecord{r.parties, r.relayed} {
		for i := range list {
			if slices.Contains(list[i].Keys, name) {
				return list[i].ID
			}
		}
	}
	return ""
}

// sees reports whether what a party gets reaches the readers: it is one of them, or
// connects through one, which how then says.
func (r *readers) sees(party string) (how string, ok bool) {
	if gateway := r.through[party]; gateway != "" && !r.is(party) {
		return " through gateway " + gateway, true
	}
	return "", r.is(party)
}

// relay takes in the parties that connect through the gateways among the readers.
func (r *readers) relay(candidates []engine.PartyRecord) {
	for i := range r.tokens {
		if r.tokens[i].Gateway {
			r.gateways[r.tokens[i].Name] = true
		}
	}
	for i := range candidates {
		if p := &candidates[i]; r.gateways[p.Gateway] && !r.names[p.ID] {
			r.through[p.ID] = p.Gateway
			r.relayed = append(r.relayed, *p)
		}
	}
}

// readers finds whom a selection means among those registered now, and are those that
// the log has shown to be. Others are found in the log by their names.
func (s *Service) readers(ctx context.Context, request *Request, shown *connected, looked *Looked) (*readers, error) {
	network, err := request.network()
	if err != nil {
		return nil, err
	}
	tokens, whole, err := s.config.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	if !whole {
		looked.lack("there are too many tokens to look at all of them")
	}
	r := &readers{
		names: map[string]bool{}, gateways: map[string]bool{}, through: map[string]string{},
		issued: tokens, host: request.Host, network: network, label: request.Host + request.ReadBy + request.Address,
	}
	switch {
	case r.host != "":
		r.beneath = []string{r.host}
	case request.ReadBy != "":
		r.names[request.ReadBy] = true
		r.meant(tokens, request.ReadBy)
	default:
		maps.Copy(r.names, shown.parties)
		if request.CouldRead { // their tokens may be in the same hands
			for name := range shown.readers {
				r.meant(tokens, name)
			}
		}
	}
	unknown := 0
	var behind []engine.PartyRecord
	for after := ""; ; {
		page, err := s.config.Fleet.Parties(ctx, after, scanned)
		if err != nil {
			return nil, err
		}
		for i := range page {
			after = page[i].ID
			if r.network.IsValid() && page[i].Address == "" {
				unknown++
			}
			if r.is(page[i].ID) || r.host != "" && page[i].Labels[hostLabel] == r.host || r.at(page[i].Address) {
				r.names[page[i].ID] = true
				r.parties = append(r.parties, page[i])
			} else if page[i].Gateway != "" {
				behind = append(behind, page[i])
			}
		}
		if len(page) < scanned {
			break
		}
	}
	if unknown > 0 {
		looked.lack("%d parties have not connected since addresses are noted", unknown)
	}
	for i := range tokens {
		if t := &tokens[i]; r.owns(t) {
			r.names[t.Name] = true
			r.tokens = append(r.tokens, *t)
		}
	}
	r.relay(behind)
	return r, nil
}

// meant takes in whom a token of that name or ID stands for: itself, its party, and
// parties named after it, for which it may speak.
func (r *readers) meant(tokens []Token, name string) {
	for i := range tokens {
		t := &tokens[i]
		switch {
		case t.ID != name && t.Name != name:
			continue
		case t.Party != "":
			r.names[t.Party] = true
		case t.Speaks:
			r.beneath = append(r.beneath, t.Name)
		}
		r.names[t.Name] = true
	}
}

// owns reports whether a token is that of a reader, or one that a reader may use.
func (r *readers) owns(t *Token) bool {
	switch {
	case r.is(t.Name), r.host != "" && t.Labels[hostLabel] == r.host:
		return true
	case t.Party != "":
		return r.is(t.Party)
	case !t.Speaks:
		return false
	}
	for name := range r.names {
		if isBeneath(t.Name, name) {
			return true
		}
	}
	return false
}

// holds notes the versions that readers present now: whenever they were told, they
// have them.
func (s *Service) holds(ctx context.Context, r *readers, found finding, couldRead bool) error {
	all := slices.Concat(r.parties, r.relayed)
	for i := range all {
		party := &all[i]
		how, _ := r.sees(party.ID)
		for _, name := range party.Keys {
			tell, _, ok, err := s.config.Fleet.Assigned(ctx, name, party.ID)
			if err != nil {
				return err
			}
			switch {
			case ok && tell.Version != 0:
				found.add(name, fmt.Sprintf("%s presents %v%s now", party.ID, tell.Version, how))
			case couldRead:
				found.add(name, fmt.Sprintf("%s may present it%s", party.ID, how))
			}
		}
	}
	return nil
}

// could returns why readers could have read a key, whether or not they did.
func (r *readers) could(name key.Name, backups []string) (why string, ok bool) {
	for _, list := range [][]Token{r.tokens, r.lent} {
		for i := range list {
			for _, pattern := range list[i].Keys {
				if authz.Match(pattern, name) {
					return fmt.Sprintf("token %s of %s covers %s", list[i].ID, list[i].Name, pattern), true
				}
			}
		}
	}
	if len(backups) > 0 {
		return backups[0], true
	}
	return "", false
}

// given returns why keys were, or could have been, read by those whom a selection
// means: could is nil unless the latter is asked for.
func (s *Service) given(ctx context.Context, request *Request) (found finding, could func(key.Name) (string, bool), looked Looked, err error) {
	since, err := s.since(request)
	if err != nil {
		return nil, nil, looked, err
	}
	looked = Looked{Since: since}
	if err := s.locate(ctx, &looked); err != nil {
		return nil, nil, looked, err
	}
	shown, err := s.connected(ctx, request, &looked)
	if err != nil {
		return nil, nil, looked, err
	}
	r, err := s.readers(ctx, request, shown, &looked)
	if err != nil {
		return nil, nil, looked, err
	}
	if s.config.Untold != nil {
		untold, err := s.config.Untold(ctx)
		if err != nil {
			return nil, nil, looked, err
		}
		looked.Incomplete = append(looked.Incomplete, untold...)
	}
	log, err := s.look(ctx, r, &looked)
	if err != nil {
		return nil, nil, looked, err
	}
	log.resolve(r, request.Visible, &looked)
	if err := s.holds(ctx, r, log.finding, request.CouldRead); err != nil {
		return nil, nil, looked, err
	}
	if request.CouldRead {
		looked.Incomplete = append(looked.Incomplete, log.revoked...)
		r.lend()
		return log.finding, func(name key.Name) (string, bool) { return r.could(name, log.backups) }, looked, nil
	}
	for _, backup := range log.backups {
		looked.lack("%s; could_read selects them", backup)
	}
	return log.finding, nil, looked, nil
}
