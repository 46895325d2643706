package notices

import (
	"fmt"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Occasion is why a partner is told something. The zero value is invalid.
type Occasion string

// The occasions.
const (
	// Planned: the next key will be made soon.
	Planned Occasion = "rotation-planned"
	// Test: somebody tries whether notices arrive.
	Test Occasion = "test"
	// Ready: the next key can be fetched.
	Ready Occasion = "successor-ready"
	// Reminder: the partner has not shown the next key, or still uses the old one.
	Reminder Occasion = "reminder"
	// Deadline: the time of the old key is nearly over.
	Deadline Occasion = "deadline"
	// Refused: the old key is not let in any more.
	Refused Occasion = "old-key-refused"
)

// Subject is the rotation of a partner's key as it stands.
type Subject struct {
	Key      key.Name
	Client   string
	Rotation key.RotationID
	From, To key.Version
	// Planned is when the next rotation begins, before there is one; else zero.
	Planned time.Time
	// Ready is when the next key became available; zero before.
	Ready time.Time
	// Deadline is when the old key's time is over; zero if that is not known.
	Deadline time.Time
	// Cut: the old key is refused at the deadline whoever uses it; else a human decides.
	Cut bool
	// Refused: the old key is not let in any more.
	Refused bool
}

// Notice is one thing to tell.
type Notice struct {
	Occasion Occasion
	// Number tells reminders apart; 0 for all others.
	Number int
}

// name is unique for each notice of a rotation.
func (n Notice) name() string { return fmt.Sprintf("%s-%d", n.Occasion, n.Number) }

// cause names the rotation: by its ID, or by the day on which it is planned.
func (s *Subject) cause() string {
	if !s.Planned.IsZero() {
		return "planned-" + s.Planned.UTC().Format(time.DateOnly)
	}
	return s.Rotation.String()
}

// Times say when a partner is told.
type Times struct {
	// Remind is the time between reminders, and how long before the deadline the
	// partner is told; 0: neither.
	Remind time.Duration
	// Ahead is how long before a planned rotation the partner is told of it, and
	// reminded from then on; 0: not at all.
	Ahead time.Duration
}

// Plan says which notices are due by now, those that were sent long ago included.
func Plan(s *Subject, times Times, now time.Time) []Notice {
	remind := times.Remind
	if s.From == 0 {
		return nil // there is no old key that somebody has to replace
	}
	if !s.Planned.IsZero() {
		first := s.Planned.Add(-times.Ahead)
		if times.Ahead <= 0 || now.Before(first) || !now.Before(s.Planned) {
			return nil
		}
		notice := Notice{Occasion: Planned}
		if remind > 0 {
			notice.Number = int(now.Sub(first) / remind)
		}
		return []Notice{notice}
	}
	if s.Ready.IsZero() {
		return nil
	}
	list := []Notice{{Occasion: Ready}}
	if s.Refused {
		return append(list, Notice{Occasion: Refused})
	}
	if remind <= 0 {
		return list
	}
	if n := int(now.Sub(s.Ready) / remind); n > 0 {
		list = append(list, Notice{Occasion: Reminder, Number: n}) // the latest only: a server that was down reminds once
	}
	if !s.Deadline.IsZero() && !now.Before(s.Deadline.Add(-remind)) {
		list = append(list, Notice{Occasion: Deadline})
	}
	return list
}
