package emergency_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// join attaches a party that presents keys, and lets it say that it uses what it is told.
func (w *world) join(t *testing.T, id string, labels map[string]string, names ...key.Name) {
	t.Helper()
	w.joinFrom(t, "", id, labels, names...)
}

// joinFrom is join from an address.
func (w *world) joinFrom(t *testing.T, address, id string, labels map[string]string, names ...key.Name) {
	t.Helper()
	var holdings []engine.Holding
	for _, name := range names {
		holdings = append(holdings, engine.Holding{Key: name})
	}
	if _, err := w.Attach(t.Context(), audit.Actor{ID: id, Kind: "agent"}, engine.PartyRecord{ID: id, Kind: "agent", Labels: labels, Address: address}, holdings); err != nil {
		t.Fatal(err)
	}
}

func (w *world) read(t *testing.T, who string, name key.Name) {
	t.Helper()
	w.readFrom(t, "", who, name)
}

func (w *world) readFrom(t *testing.T, address, who string, name key.Name) {
	t.Helper()
	if _, _, err := w.Reveal(t.Context(), audit.Actor{ID: who, Kind: "user"}, address, name, 0, key.Current); err != nil {
		t.Fatal(err)
	}
}

func keysOf(group *emergency.Group) []string {
	var list []string
	for _, m := range group.Members {
		list = append(list, strings.TrimPrefix(string(m.Key), "prod/"))
	}
	return list
}

func whyOf(group *emergency.Group) string {
	text := ""
	for _, m := range group.Members {
		text += fmt.Sprintln(m.Key, m.Why)
	}
	return text
}

// TestReadBy: what a party was told or presents and what a token read is found, with
// the entry, the time and the version; what it could have read on request only; and
// nothing of others.
func TestReadBy(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		begun := time.Now()
		names := w.orders(t, 6)
		w.issued = []emergency.Token{
			{ID: "t1", Name: "ci", Keys: []string{"prod/orders/db04", "prod/other/*"}, Speaks: true},
			{ID: "t2", Name: "dora", Keys: []string{"**"}},
			{ID: "t4", Name: "fleet", Keys: []string{"none"}, Speaks: true},
			{ID: "t3", Name: "web-1", Party: "web-1", Labels: map[string]string{"host": "rack7"}, Keys: []string{"prod/orders/db05"}},
		}
		w.join(t, "web-1", map[string]string{"host": "rack7"}, names[0])
		w.join(t, "web-2", nil, names[1])
		w.join(t, "fleet/9", nil, names[5])
		time.Sleep(time.Hour)
		w.read(t, "ci", names[2])
		w.read(t, "dora", names[3])
		late := time.Now()
		time.Sleep(time.Hour)
		for _, test := range []struct {
			selection emergency.Selection
			want      string
			why       string
		}{
			{emergency.Selection{ReadBy: "web-1"}, "orders/db00", "v1 told to web-1"},
			{emergency.Selection{ReadBy: "web-2"}, "orders/db01", "v1 told to web-2"},
			{emergency.Selection{ReadBy: "ci"}, "orders/db02", "v1 read by ci"},
			{emergency.Selection{ReadBy: "t1"}, "orders/db02", "v1 read by ci"},
			{emergency.Selection{ReadBy: "ci", CouldRead: true}, "orders/db02 orders/db04 other/db", "token t1 of ci covers prod/orders/db04"},
			{emergency.Selection{ReadBy: "ci", CouldRead: true, Selector: "team=orders"}, "orders/db02 orders/db04", "covers"},
			{emergency.Selection{ReadBy: "dora", Since: late.Add(-time.Second)}, "orders/db03", "v1 read by dora"},
			{emergency.Selection{Host: "rack7"}, "orders/db00", "v1 told to web-1"},
			{emergency.Selection{Host: "rack7", CouldRead: true}, "orders/db00 orders/db05", "token t3"},
			// Whoever has the token may have been that party, and the other way round.
			{emergency.Selection{ReadBy: "t4"}, "orders/db05", "v1 told to fleet/9"},
			{emergency.Selection{ReadBy: "fleet/9"}, "orders/db05", "v1 told to fleet/9"},
			{emergency.Selection{Host: "fleet"}, "orders/db05", "v1 told to fleet/9"},
			// What it was told long before it still has.
			{emergency.Selection{ReadBy: "web-1", Since: late.Add(time.Second)}, "orders/db00", "web-1 presents v1 now"},
		} {
			if test.selection.Since.IsZero() {
				test.selection.Since = begun
			}
			group, err := w.Find(t.Context(), alice, emergency.Request{Selection: test.selection})
			if err != nil || strings.Join(keysOf(&group), " ") != test.want || !strings.Contains(whyOf(&group), test.why) {
				t.Errorf("%+v: %v\n%s", test.selection, err, whyOf(&group))
			}
			if l := group.Looked; err == nil && (l == nil || len(l.Incomplete) > 0 || l.To == 0) {
				t.Errorf("%+v: looked at %+v", test.selection, l)
			}
		}
		// The entry that a reason names is the one.
		group, err := w.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{ReadBy: "ci", Since: begun}})
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range w.entries(t, audit.ActionRead) {
			if entry.Actor.ID == "ci" && !strings.HasPrefix(group.Members[0].Why[0], fmt.Sprintf("entry %d, %s: ", entry.Seq, entry.At.Format(time.RFC3339))) {
				t.Errorf("entry %d is called %q", entry.Seq, group.Members[0].Why[0])
			}
		}
		for _, bad := range []struct {
			request emergency.Request
			want    error
		}{
			{emergency.Request{Selection: emergency.Selection{ReadBy: "ci", Since: late.Add(time.Second)}}, engine.ErrNotFound},
			{emergency.Request{Selection: emergency.Selection{ReadBy: "nobody", Since: begun}}, engine.ErrNotFound},
			{emergency.Request{Selection: emergency.Selection{ReadBy: "ci", Host: "rack7"}}, engine.ErrInvalid},
			{emergency.Request{Selection: emergency.Selection{Selector: "team=orders", CouldRead: true}}, engine.ErrInvalid},
			{emergency.Request{Selection: emergency.Selection{ReadBy: "ci", Since: time.Now().Add(time.Hour)}}, engine.ErrInvalid},
			{emergency.Request{Selection: emergency.Selection{ReadBy: "ci", Since: begun}, Back: time.Hour}, engine.ErrInvalid},
		} {
			if _, err := w.Find(t.Context(), alice, bad.request); !errors.Is(err, bad.want) {
				t.Errorf("%+v: %v", bad.request, err)
			}
		}
		// A caller that may not see a key is not told of it.
		some := emergency.Request{Selection: emergency.Selection{ReadBy: "ci", CouldRead: true, Since: begun}, Visible: func(name key.Name) bool { return name == names[4] }}
		if group, err := w.Find(t.Context(), alice, some); err != nil || !slices.Equal(keysOf(&group), []string{"orders/db04"}) {
			t.Errorf("%v, %v", keysOf(&group), err)
		}
	})
}

// TestReadFromAnAddress: what was read from there is found, by whomever, and what
// parties have that are there, were there, or left from there; and nothing of others.
func TestReadFromAnAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		begun := time.Now()
		names := w.orders(t, 7)
		w.issued = []emergency.Token{{ID: "t1", Name: "ci", Keys: []string{"prod/orders/db06"}}}
		w.joinFrom(t, "10.0.3.7", "web-1", nil, names[0])
		w.joinFrom(t, "10.0.3.8", "web-2", nil, names[1])
		w.joinFrom(t, "10.0.4.1", "web-3", nil, names[2])
		w.joinFrom(t, "in-process", "signer", nil, names[5])
		time.Sleep(time.Hour)
		w.readFrom(t, "10.0.3.7", "ci", names[3])
		w.readFrom(t, "2001:db8::7", "ci", names[4])
		time.Sleep(time.Hour)
		moved := time.Now()
		time.Sleep(time.Second)
		// It moves, and stays as it is otherwise; another one leaves.
		history := len(w.entries(t, "presenter.told"))
		w.joinFrom(t, "10.0.4.2", "web-1", nil, names[0])
		w.joinFrom(t, "10.0.4.2", "web-1", nil, names[0])
		w.joinFrom(t, "", "web-1", nil, names[0])
		if moves := w.entries(t, audit.ActionMove); len(moves) != 1 || moves[0].Target != "web-1" || moves[0].Detail["address"] != "10.0.4.2" || moves[0].Detail["before"] != "10.0.3.7" {
			t.Errorf("moves %+v", moves)
		}
		if n := len(w.entries(t, "presenter.told")); n != history {
			t.Errorf("a party that moves is told %d times", n-history)
		}
		if err := w.Detach(t.Context(), alice, "web-2", "stolen", nil); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			selection emergency.Selection
			want      string
			why       string
		}{
			{emergency.Selection{Address: "10.0.3.7"}, "orders/db00 orders/db03", "v1 read by ci from 10.0.3.7"},
			{emergency.Selection{Address: "10.0.3.7", Since: moved}, "orders/db00", "web-1 presents v1 now"},
			{emergency.Selection{Address: "10.0.4.2"}, "orders/db00", "v1 told to web-1"},
			{emergency.Selection{Address: "10.0.3.8", Since: moved}, "orders/db01", "web-2 presented it until then"},
			{emergency.Selection{Address: "10.0.3.0/24"}, "orders/db00 orders/db01 orders/db03", "v1 told to web-2"},
			{emergency.Selection{Address: "10.0.4.0/24"}, "orders/db00 orders/db02", "v1 told to web-3"},
			{emergency.Selection{Address: "2001:db8::/64"}, "orders/db04", "from 2001:db8::7"},
			{emergency.Selection{Address: "10.0.3.7", CouldRead: true}, "orders/db00 orders/db03 orders/db04 orders/db06", "token t1 of ci covers"},
		} {
			if test.selection.Since.IsZero() {
				test.selection.Since = begun
			}
			group, err := w.Find(t.Context(), alice, emergency.Request{Selection: test.selection})
			if err != nil || strings.Join(keysOf(&group), " ") != test.want || !strings.Contains(whyOf(&group), test.why) || len(group.Looked.Incomplete) > 0 {
				t.Errorf("%+v: %v, %+v\n%s", test.selection, err, group.Looked, whyOf(&group))
			}
		}
		for address, want := range map[string]error{"10.9.9.9": engine.ErrNotFound, "web-1": engine.ErrInvalid, "10.0.3.7/24": engine.ErrInvalid, "fe80::1%eth0": engine.ErrInvalid} {
			if _, err := w.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{Address: address, Since: begun}}); !errors.Is(err, want) {
				t.Errorf("%s: %v", address, err)
			}
		}
		if _, err := w.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{Address: "10.0.3.7", Host: "web-1"}}); !errors.Is(err, engine.ErrInvalid) {
			t.Error(err)
		}
		// What has no address is told of.
		w.read(t, "ci", names[3])
		w.join(t, "old", nil, names[3])
		group, err := w.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{Address: "10.0.3.7", Since: begun}})
		if err != nil || len(group.Looked.Incomplete) != 2 || !strings.Contains(fmt.Sprint(group.Looked.Incomplete), "1 reads, the first of them entry") {
			t.Errorf("%+v, %v", group.Looked, err)
		}
	})
}

// TestReadByALeaver: a party that is not there any more is found by what the log says.
func TestReadByALeaver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		names := w.orders(t, 3)
		w.join(t, "web-1", nil, names[0], names[1])
		time.Sleep(time.Hour)
		told := time.Now()
		time.Sleep(time.Second)
		if err := w.Detach(t.Context(), alice, "web-1", "stolen", nil); err != nil {
			t.Fatal(err)
		}
		group, err := w.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{ReadBy: "web-1", Since: told}})
		if err != nil || strings.Join(keysOf(&group), " ") != "orders/db00 orders/db01" || !strings.Contains(whyOf(&group), "web-1 presented it until then") {
			t.Errorf("%v\n%s", err, whyOf(&group))
		}
	})
}

// TestReadInACrowd: the log has one entry for many parties that are told at once. Who
// presents the key was among them; who is gone cannot be judged, and that is said.
func TestReadInACrowd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		names := w.orders(t, 2)
		for i := range 70 {
			w.join(t, fmt.Sprint("web-", i), nil, names[0])
		}
		time.Sleep(time.Hour)
		begun := time.Now()
		time.Sleep(time.Second)
		if _, err := w.Rotate(t.Context(), alice, engine.RotateRequest{Key: names[0], Reason: "again"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		group, err := w.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{ReadBy: "web-3", Since: begun}})
		if err != nil || strings.Join(keysOf(&group), " ") != "orders/db00" || !strings.Contains(whyOf(&group), "v2 told to 70 parties at once; web-3 presents it") {
			t.Errorf("%v\n%s", err, whyOf(&group))
		}
		if _, err := w.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{ReadBy: "gone", Since: begun}}); err == nil || !strings.Contains(err.Error(), "proves nothing") {
			t.Error(err)
		}
		synctest.Wait()
	})
}

// TestIncompleteLog: a log that begins too late, or is too long to be read, is told of,
// and a group is declared from it only if that is accepted; the audit log says so.
func TestIncompleteLog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		names := w.orders(t, 2)
		w.read(t, "ci", names[0])
		request := emergency.Request{Selection: emergency.Selection{ReadBy: "ci"}, Reason: "stolen"}
		found, err := w.Find(t.Context(), alice, request)
		if err != nil || len(found.Members) != 1 || len(found.Looked.Incomplete) != 1 || !strings.Contains(found.Looked.Incomplete[0], "the audit log begins at") {
			t.Fatalf("%+v, %v", found.Looked, err)
		}
		if _, err := w.Declare(t.Context(), alice, request); !errors.Is(err, engine.ErrState) || !strings.Contains(err.Error(), "begins at") {
			t.Errorf("it was declared: %v", err)
		}
		if list, err := w.Groups(t.Context(), key.RotationID{}, 10); err != nil || len(list) != 0 {
			t.Fatalf("%v, %v", list, err)
		}
		request.AcceptIncomplete = true
		group, err := w.Declare(t.Context(), alice, request)
		if err != nil || len(group.Members) != 1 || group.Members[0].Trouble != "" {
			t.Fatalf("%+v, %v", group, err)
		}
		entry := w.entries(t, "emergency.declare")[0]
		if !strings.Contains(entry.Detail["incomplete"], "begins at") || !strings.Contains(entry.Detail["looked"], "entries 0 to ") || entry.Detail["selection"] != "read by ci" {
			t.Errorf("%+v", entry)
		}
		if member := w.entries(t, "emergency.member")[0]; !strings.Contains(member.Detail["why"], "v1 read by ci") {
			t.Errorf("%+v", member)
		}

		w.config.MaxLooked = 5
		short := emergency.New(w.config)
		if _, err := short.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{ReadBy: "ci"}}); err == nil || !strings.Contains(err.Error(), "only the newest 5 entries") {
			t.Errorf("a log of which the end was read only: %v", err)
		}
	})
}

// TestBackupIsReading: who took a backup could have read every key.
func TestBackupIsReading(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		begun := time.Now()
		w.orders(t, 2)
		if err := w.Record(t.Context(), audit.Actor{ID: "ops", Kind: "user"}, audit.Entry{Action: "backup.begin", Outcome: audit.OutcomeOK}); err != nil {
			t.Fatal(err)
		}
		request := emergency.Request{Selection: emergency.Selection{ReadBy: "ops", Since: begun}}
		if _, err := w.Find(t.Context(), alice, request); err == nil || !strings.Contains(err.Error(), "took a backup") {
			t.Error(err)
		}
		request.CouldRead = true
		if group, err := w.Find(t.Context(), alice, request); err != nil || len(group.Members) != 3 || len(group.Looked.Incomplete) != 0 {
			t.Errorf("%+v, %v", group, err)
		}
	})
}
