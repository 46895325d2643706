package emergency

import (
	"cmp"
	"context"
	"fmt"
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
	ReadBy    string    `json:"readBy,omitempty"`
	Host      string    `json:"host,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	CouldRead bool      `json:"couldRead,omitempty"`
}

// String says in words what is selected. It is the same for a repeated request.
func (s Selection) String() string {
	var parts []string
	for _, part := range []struct{ name, value string }{{"labels", s.Selector}, {"read by", s.ReadBy}, {"host", s.Host}} {
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

// find returns the keys of a selection by name, each with the reasons.
func (s *Service) find(ctx context.Context, request *Request) ([]Member, error) {
	if request.ReadBy != "" || request.Host != "" || request.CouldRead {
		return nil, fmt.Errorf("%w: read_by, host, could_read: this server selects keys by their labels only; use selector", engine.ErrInvalid)
	}
	selector, err := ParseSelector(request.Selector)
	if err != nil {
		return nil, err
	}
	if selector.Empty() {
		return nil, fmt.Errorf("%w: selector: it is missing; write for example tier=1,team=orders", engine.ErrInvalid)
	}
	var members []Member
	for after := ""; ; {
		keys, err := s.config.Engine.Labelled(ctx, after, scanned)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			after = string(k.Name)
			if !selector.Matches(k.Labels) || request.Visible != nil && !request.Visible(k.Name) {
				continue
			}
			if len(members) == MaxKeys {
				return nil, fmt.Errorf("%w: selector: more than %d keys fit; narrow it, and declare several groups", engine.ErrInvalid, MaxKeys)
			}
			members = append(members, Member{Key: k.Name, Why: []string{"labels " + selector.String()}})
		}
		if len(keys) < scanned {
			break
		}
	}
	if len(members) == 0 {
		return nil, fmt.Errorf("%w: no key fits %s; see the labels with keyturn key list", engine.ErrNotFound, request.Selection)
	}
	return members, nil
}

func compareNames(a, b key.Name) int { return cmp.Compare(a, b) }
