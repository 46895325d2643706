package signals

import (
	"context"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

const (
	// PartnerLate is the reason of tickets about partners that still use their old API
	// key a stated time after the next one was ready; they end when the partners do not.
	PartnerLate rotation.HoldReason = "partner-late"
	// PartnerRefused is the reason of pages about partners that show an API key which
	// is refused; they end an hour after the last time.
	PartnerRefused rotation.HoldReason = "partner-refused"
	// APIKeyExpiring is the reason of tickets about API keys that end soon by their own
	// configuration; they end with the keys, or when these get a later day.
	APIKeyExpiring rotation.HoldReason = "api-key-expiring" //nolint:gosec // the name of a reason
)

// maxPartners bounds the partners that have a page of their own.
const maxPartners = 100

// LatePartner is a partner that shows an old API key, or whose key ends soon.
type LatePartner struct {
	Key key.Name
	// Client is its name, for people.
	Client  string
	Version key.Version
	// Refused: the version is not let in any more; otherwise it still is.
	Refused bool
	// Expiring: the key ends soon.
	Expiring bool
	// Since is when that began.
	Since   time.Time
	Message string
	// Callers are who shows it, as far as that is known.
	Callers []string
}

// PartnerSource is a Source that knows which partners are late.
type PartnerSource interface {
	LatePartners(ctx context.Context, limit int) ([]LatePartner, error)
}

// takePartners notes the partners that show an old API key, or whose key ends soon.
func (v *view) takePartners(ctx context.Context, source Source) error {
	s, ok := source.(PartnerSource)
	if !ok {
		return nil
	}
	list, err := s.LatePartners(ctx, maxPartners)
	if err != nil {
		return err
	}
	for i := range list {
		p := &list[i]
		h := hold{key: p.Key, reason: PartnerLate, target: string(p.Key) + " " + p.Version.String(), message: p.Message, since: p.Since, parties: p.Callers}
		if len(p.Callers) > 0 {
			h.message += "; shown by " + strings.Join(p.Callers, ", ")
		}
		switch {
		case p.Refused:
			h.reason = PartnerRefused
			v.partners.refused++
		case p.Expiring:
			h.reason, h.target = APIKeyExpiring, string(p.Key)
			v.partners.expiring++
		default:
			v.partners.late++
		}
		v.holds = append(v.holds, h)
	}
	return nil
}

// seenPartners counts partners that show an old API key, or whose key ends soon.
type seenPartners struct{ late, refused, expiring int }

// PartnersSeen is told when somebody has shown a refused API key. It does not block.
func (s *Signals) PartnersSeen() { s.sweepSoon() }
