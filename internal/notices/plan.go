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
	// Expiring: the key ends soon, and no rotation prolongs it.
	Expiring Occasion = "key-expires"
	// Expired: the key has ended.
	Expired Occasion = "key-expired"
)

// Subject is the rotation of a partner's key as it stands.
type Subject struct {
	Key      key.Name
	Client   string
	Rotation key.RotationID
	From, To key.Version
	// Planned is when the next rotation begins, before there is one; else zero.
	Planned time.Time
	// Expires is when the key ends, on whatever rotates; else zero.
	Expires time.Time
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

// cause names the rotation: by its ID, or by the day on which it is planned; or the
// end of the key, by its day.
func (s *Subject) cause() string {
	switch {
	case !s.Planned.IsZero():
		return "planned-" + s.Planned.UTC().Format(time.DateOnly)
	case !s.Expires.IsZero():
		return "expires-" + s.Expires.UTC().Format(time.DateOnly)
	}
	return s.Rotation.String()
}

// Times say when a partner is told.
type Times struct {
	// Remind is the time between reminders, and how long before the deadline the
	// partner is told; 0: neither.
	Remind time.Duration
	// Ahead is how long before a planned rotation, or the end of the key, the partner
	// is told of it, and reminded from then on; 0: not at all.
	Ahead time.Duration
}

// expiredTold is for how long after its end a partner is told that its key has ended:
// what ended before anybody would have told it is no news.
const expiredTold = 7 * 24 * time.Hour

// ahead is what is told of something that lies ahead until it comes.
func (t Times) ahead(occasion Occasion, at, now time.Time) []Notice {
	first := at.Add(-t.Ahead)
	if t.Ahead <= 0 || now.Before(first) || !now.Before(at) {
		return nil
	}
	notice := Notice{Occasion: occasion}
	if t.Remind > 0 {
		notice.Number = int(now.Sub(first) / t.Remind)
	}
	return []Notice{notice}
}

// Next returns when there is something new to tell of what lies ahead: of a planned
// rotation, or of the end of the key. It is zero when nothing more will be.
func Next(s *Subject, times Times, now time.Time) time.Time {
	at := s.Planned
	if at.IsZero() {
		at = s.Expires
	}
	if at.IsZero() || s.From == 0 || times.Ahead <= 0 || !now.Before(at) {
		return time.Time{}
	}
	first := at.Add(-times.Ahead)
	if now.Before(first) {
		return first
	}
	if times.Remind > 0 {
		since := now.Sub(first)
		if next := first.Add(since - since%times.Remind + times.Remind); next.Before(at) {
			return next
		}
	}
	return at
}

// Plan says which notices are due by now, those that were sent long ago included.
func Plan(s *Subject, times Times, now time.Time) []Notice {
	remind := times.Remind
	if s.From == 0 {
		return nil // there is no old key that somebody has to replace
	}
	switch {
	case !s.Planned.IsZero():
		return times.ahead(Planned, s.Planned, now)
	case !s.Expires.IsZero() && !now.Before(s.Expires):
		if now.Sub(s.Expires) >= expiredTold {
			return nil
		}
		return []Notice{{Occasion: Expired}}
	case !s.Expires.IsZero():
		return times.ahead(Expiring, s.Expires, now)
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
