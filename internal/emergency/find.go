package emergency

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// Selection says which keys are meant; what is set must hold together. The zero
// value is invalid: all keys are named by a selector that they all fit.
type Selection struct {
	// Selector is on the keys' labels, as in ParseSelector.
	Selector string `json:"selector,omitempty"`
	// ReadBy is a party or a token, Host a host: keys that they were told or read
	// since Since, and with CouldRead those that they could have read.
	ReadBy string `json:"readBy,omitempty"`
	Host   string `json:"host,omitempty"`
	// Address is an IP address, or a network as 10.0.0.0/8: the same for what was read
	// from there, by whomever, and for parties that connected from there.
	Address   string    `json:"address,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	CouldRead bool      `json:"couldRead,omitempty"`
}

// String says in words what is selected. It is the same for a repeated request.
func (s Selection) String() string {
	var parts []string
	for _, part := range []struct{ name, value string }{{"labels", s.Selector}, {"read by", s.ReadBy}, {"host", s.Host}, {"address", s.Address}} {
		if part.value != "" {
			parts = append(parts, part.name+" "+part.value)
		}
	}
	if s.CouldRead {
		parts = append(parts, "or could be")
	}
	return strings.Join(parts, ", ")
}

// scanned is how many keys are read at once.
const scanned = 1000

// check reports what is wrong with a selection.
func (s *Selection) check(selector Selector) error {
	readers := 0
	for _, by := range []string{s.ReadBy, s.Host, s.Address} {
		if by != "" {
			readers++
		}
	}
	switch {
	case readers > 1:
		return fmt.Errorf("%w: read_by, host, address: they exclude each other; declare several groups", engine.ErrInvalid)
	case readers == 0 && s.CouldRead:
		return fmt.Errorf("%w: could_read: it belongs to read_by, host or address; set one of them", engine.ErrInvalid)
	case readers == 0 && selector.Empty():
		return fmt.Errorf("%w: selector: it is missing; write for example tier=1,team=orders", engine.ErrInvalid)
	}
	_, err := s.network()
	return err
}

// byReaders reports whether keys are selected by who has read them.
func (s *Selection) byReaders() bool { return s.ReadBy != "" || s.Host != "" || s.Address != "" }

// network is what Address means; the zero value if it is empty.
func (s *Selection) network() (netip.Prefix, error) {
	if s.Address == "" {
		return netip.Prefix{}, nil
	}
	if at, err := netip.ParseAddr(s.Address); err == nil && at.Zone() == "" {
		at = at.Unmap()
		return netip.PrefixFrom(at, at.BitLen()), nil
	}
	network, err := netip.ParsePrefix(s.Address)
	if err != nil || network != network.Masked() || network.Addr().Is4In6() {
		return network, fmt.Errorf("%w: address: %q is no IP address and no network; write for example 10.0.3.7 or 10.0.3.0/24", engine.ErrInvalid, s.Address)
	}
	return network, nil
}

// find sets the members of a group, by name, each with the reasons, and what was
// looked at.
func (s *Service) find(ctx context.Context, request *Request, group *Group) error {
	selector, err := ParseSelector(request.Selector)
	if err == nil {
		err = request.check(selector)
	}
	if err != nil {
		return err
	}
	why := func(key.Name) []string { return []string{"labels " + selector.String()} }
	if request.byReaders() {
		found, could, looked, err := s.given(ctx, request)
		if err != nil {
			return err
		}
		group.Looked, group.Since = &looked, looked.Since
		why = func(name key.Name) []string {
			list := found[name]
			if could != nil && len(list) == 0 {
				if reason, ok := could(name); ok {
					list = []string{reason}
				}
			}
			return list
		}
	}
	for after := ""; ; {
		keys, err := s.config.Engine.Labelled(ctx, after, scanned)
		if err != nil {
			return err
		}
		for _, k := range keys {
			after = string(k.Name)
			if !selector.Matches(k.Labels) || request.Visible != nil && !request.Visible(k.Name) {
				continue
			}
			reasons := why(k.Name)
			if len(reasons) == 0 {
				continue
			}
			if len(group.Members) == MaxKeys {
				return fmt.Errorf("%w: selector: more than %d keys fit; narrow it, and declare several groups", engine.ErrInvalid, MaxKeys)
			}
			group.Members = append(group.Members, Member{Key: k.Name, Why: reasons})
		}
		if len(keys) < scanned {
			break
		}
	}
	if len(group.Members) == 0 {
		return s.nothing(request, group.Looked)
	}
	return nil
}

// nothing is the error of a selection without a key. What was looked at is told: that
// nothing was found where nothing could be seen is no comfort.
func (s *Service) nothing(request *Request, looked *Looked) error {
	if looked == nil {
		return fmt.Errorf("%w: no key fits %s; see the labels with keyturn key list", engine.ErrNotFound, request.Selection)
	}
	text := fmt.Sprintf("no key was found for %s in entries %d to %d of the audit log, since %s, nor with those registered now", request.Selection, looked.From, looked.To, stamp(looked.Since))
	if len(looked.Incomplete) > 0 {
		text += "; that proves nothing: " + strings.Join(looked.Incomplete, "; ")
	}
	return fmt.Errorf("%w: %s; names are those of keyturn party list and keyturn token list", engine.ErrNotFound, text)
}

func compareNames(a, b key.Name) int { return cmp.Compare(a, b) }
