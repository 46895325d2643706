package notices_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

const day = 24 * time.Hour

func began() time.Time { return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) }

func subject() notices.Subject {
	return notices.Subject{
		Key: "partners/acme", Client: "ACME", Rotation: key.NewRotationID(began(), [10]byte{1}), From: 1, To: 2, Ready: began(), Deadline: began().Add(30 * day),
	}
}

// planned is a rotation that begins in twenty days.
func planned(s *notices.Subject) {
	s.Rotation, s.To, s.Ready, s.Deadline, s.Planned = key.RotationID{}, 0, time.Time{}, time.Time{}, began().Add(20*day)
}

// ending is a key that ends in twenty days.
func ending(s *notices.Subject) {
	planned(s)
	s.Planned, s.Expires = time.Time{}, s.Planned
}

func TestNoticesThatAreDue(t *testing.T) {
	for _, test := range []struct {
		what   string
		change func(*notices.Subject)
		remind time.Duration
		after  time.Duration
		want   []notices.Notice
	}{
		{"at once", nil, 7 * day, 0, []notices.Notice{{Occasion: notices.Ready}}},
		{"before the first reminder", nil, 7 * day, 7*day - 1, []notices.Notice{{Occasion: notices.Ready}}},
		{"the third reminder", nil, 7 * day, 22 * day, []notices.Notice{{Occasion: notices.Ready}, {Occasion: notices.Reminder, Number: 3}}},
		{"before the deadline", nil, 7 * day, 23 * day, []notices.Notice{{Occasion: notices.Ready}, {Occasion: notices.Reminder, Number: 3}, {Occasion: notices.Deadline}}},
		{"no reminders", nil, 0, 29 * day, []notices.Notice{{Occasion: notices.Ready}}},
		{"no deadline", func(s *notices.Subject) { s.Deadline = time.Time{} }, 20 * day, 29 * day, []notices.Notice{{Occasion: notices.Ready}, {Occasion: notices.Reminder, Number: 1}}},
		{"refused", func(s *notices.Subject) { s.Refused = true }, 7 * day, 22 * day, []notices.Notice{{Occasion: notices.Ready}, {Occasion: notices.Refused}}},
		{"the first key of all", func(s *notices.Subject) { s.From = 0 }, 7 * day, 22 * day, nil},
		{"long before the start", planned, 3 * day, 9 * day, nil},
		{"before the start", planned, 3 * day, 10 * day, []notices.Notice{{Occasion: notices.Planned}}},
		{"nearer to the start", planned, 3 * day, 17 * day, []notices.Notice{{Occasion: notices.Planned, Number: 2}}},
		{"once before the start", planned, 0, 17 * day, []notices.Notice{{Occasion: notices.Planned}}},
		{"at the start", planned, 3 * day, 20 * day, nil},
		{"long before the end", ending, 3 * day, 9 * day, nil},
		{"before the end", ending, 3 * day, 10 * day, []notices.Notice{{Occasion: notices.Expiring}}},
		{"nearer to the end", ending, 3 * day, 17 * day, []notices.Notice{{Occasion: notices.Expiring, Number: 2}}},
		{"at the end", ending, 3 * day, 20 * day, []notices.Notice{{Occasion: notices.Expired}}},
		{"long after the end", ending, 3 * day, 27 * day, nil},
		{"the end of a key that nobody has", func(s *notices.Subject) { ending(s); s.From = 0 }, 3 * day, 17 * day, nil},
		{"not ready", func(s *notices.Subject) { s.Ready = time.Time{} }, 7 * day, 22 * day, nil},
	} {
		s := subject()
		if test.change != nil {
			test.change(&s)
		}
		if got := notices.Plan(&s, notices.Times{Remind: test.remind, Ahead: 10 * day}, began().Add(test.after)); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.what, got, test.want)
		}
	}
}

// TestNextNotice: what lies ahead is told at the times that Next gives, one after the
// other, and nothing is missing between two.
func TestNextNotice(t *testing.T) {
	for what, change := range map[string]func(*notices.Subject){"a rotation": planned, "an end": ending} {
		for _, remind := range []time.Duration{0, 3 * day} {
			s, times := subject(), notices.Times{Remind: remind, Ahead: 10 * day}
			change(&s)
			var told []int
			last := ""
			for now := began(); !now.IsZero(); now = notices.Next(&s, times, now) {
				if before := fmt.Sprint(notices.Plan(&s, times, now.Add(-time.Nanosecond))); !now.Equal(began()) && before != last {
					t.Errorf("%s: before %v there is %v, and %v was the last", what, now, before, last)
				}
				last = fmt.Sprint(notices.Plan(&s, times, now))
				told = append(told, int(now.Sub(began())/day))
			}
			want := []int{0, 10, 20}
			if remind > 0 {
				want = []int{0, 10, 13, 16, 19, 20}
			}
			if !slices.Equal(told, want) {
				t.Errorf("%s: looked at on days %v, want %v", what, told, want)
			}
		}
	}
	s := subject()
	if next := notices.Next(&s, notices.Times{Remind: day, Ahead: day}, began()); !next.IsZero() {
		t.Errorf("a rotation under way: %v", next)
	}
}

// journal enters into a list.
type journal struct {
	store   store.Store
	entries []audit.Entry
}

func (j *journal) Transact(ctx context.Context, _ audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error {
	return j.store.Update(ctx, func(tx store.Tx) error {
		return fn(tx, func(e audit.Entry) { j.entries = append(j.entries, e) })
	})
}

// sender fails as long as it is told to.
type sender struct {
	err  error
	sent []string
}

func (s *sender) Send(_ context.Context, to, id string, m *notices.Message) error {
	if s.err != nil {
		return s.err
	}
	s.sent = append(s.sent, to+" "+string(m.Occasion)+" "+id)
	return nil
}

// TestOutbox: what is noted is sent once, however often and by how many nodes it is
// noted; what fails is tried again, a bounded number of times; both are audited.
func TestOutbox(t *testing.T) {
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "keyturn.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Stop() }() // the test ends
	now := began()
	j := &journal{store: s}
	mail, hook := &sender{err: errors.New("no route to host")}, &sender{}
	node := func() *notices.Outbox {
		return notices.New(notices.Config{
			Store: s, Journal: j, Actor: audit.Actor{ID: "keyturn", Kind: "server"}, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
			Senders: map[string]notices.Sender{"email": mail, "webhook": hook}, Chance: func() float64 { return 1 },
		})
	}
	a, b := node(), node()
	who := []notices.Recipient{{By: "email", To: "keys@acme.example"}, {By: "webhook", To: "https://acme.example/keys"}, {By: "pigeon", To: "roof"}}
	one := subject()
	round := func() {
		t.Helper()
		for _, outbox := range []*notices.Outbox{a, b, a} {
			if err := errors.Join(outbox.Note(t.Context(), &one, who, notices.Times{Remind: 7 * day}), outbox.Deliver(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
	}
	round()
	if len(hook.sent) != 1 || len(mail.sent) != 0 || len(j.entries) != 1 || j.entries[0].Action != notices.ActionSent || j.entries[0].Target != "webhook https://acme.example/keys" {
		t.Fatalf("after the first round: %v, %v, %+v", hook.sent, mail.sent, j.entries)
	}
	mail.err = nil
	round()
	if len(mail.sent) != 0 {
		t.Error("it was tried again at once")
	}
	now = now.Add(time.Hour)
	round()
	round()
	if len(mail.sent) != 1 || !strings.HasPrefix(mail.sent[0], "keys@acme.example successor-ready partners/acme@1/") {
		t.Errorf("after the mail server is back: %v", mail.sent)
	}
	for range 40 {
		now = now.Add(3 * time.Hour)
		round()
	}
	failed := 0
	for _, entry := range j.entries {
		if entry.Action == notices.ActionFailed && entry.Target == "pigeon roof" {
			failed++
		}
	}
	if failed != 1 || len(hook.sent) != 1 || len(mail.sent) != 1 {
		t.Errorf("in the end: %d failures, %v, %v", failed, hook.sent, mail.sent)
	}
}

// TestPausesBetweenTries: they grow, are spread, and are as long as the recipient
// wants; a failure that is final ends them.
func TestPausesBetweenTries(t *testing.T) {
	busy := &notices.RetryError{After: 10 * time.Minute, Err: errors.New("busy")}
	for _, test := range []struct {
		what   string
		errs   []error
		chance float64
		want   []time.Duration
	}{
		{"growing", []error{errors.New("a"), errors.New("b"), errors.New("c"), nil}, 0, []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute}},
		{"spread", []error{errors.New("a"), errors.New("b"), nil}, 1, []time.Duration{75 * time.Second, 150 * time.Second}},
		{"as wanted", []error{busy, nil}, 0, []time.Duration{10 * time.Minute}},
		{"wanted too long", []error{&notices.RetryError{After: 1000 * time.Hour, Err: busy}, nil}, 0, []time.Duration{2 * time.Hour}},
		{"final", []error{fmt.Errorf("gone: %w", notices.ErrFinal)}, 0, nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "keyturn.db")})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Stop() }() // the test ends
			now, j, to := began(), &journal{store: s}, &sender{}
			outbox := notices.New(notices.Config{
				Store: s, Journal: j, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
				Senders: map[string]notices.Sender{"email": to}, Chance: func() float64 { return test.chance },
			})
			one := subject()
			if n, err := outbox.Tell(t.Context(), audit.Actor{ID: "ann", Kind: "user"}, &one, notices.Test, []notices.Recipient{{By: "email", To: "a@b.example"}}); err != nil || n != 1 {
				t.Fatal(n, err)
			}
			var got []time.Duration
			for i, failure := range test.errs {
				to.err = failure
				if err := outbox.Deliver(t.Context()); err != nil {
					t.Fatal(err)
				}
				list, err := outbox.List(t.Context(), one.Key, 10)
				if err != nil || len(list) != 1 || list[0].Tries != i+1 || (list[0].Failure == "") != (failure == nil) {
					t.Fatalf("after try %d: %+v, %v", i+1, list, err)
				}
				if next := list[0].Next; !next.IsZero() {
					got = append(got, next.Sub(now))
					now = next
				} else if list[0].Sent.IsZero() == (failure == nil) {
					t.Errorf("in the end: %+v", list[0])
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("pauses %v, want %v", got, test.want)
			}
			if len(j.entries) != 2 || j.entries[0].Action != notices.ActionAsked {
				t.Errorf("entries: %+v", j.entries)
			}
		})
	}
}
