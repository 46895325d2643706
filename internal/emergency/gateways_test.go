package emergency_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/emergency"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// joinThrough is joinFrom, through a gateway.
func (w *world) joinThrough(t *testing.T, gateway, address, id string, names ...key.Name) {
	t.Helper()
	var holdings []engine.Holding
	for _, name := range names {
		holdings = append(holdings, engine.Holding{Key: name})
	}
	party := engine.PartyRecord{ID: id, Kind: "agent", Address: address, Gateway: gateway}
	if _, err := w.Attach(t.Context(), audit.Actor{ID: id, Kind: "agent"}, party, holdings); err != nil {
		t.Fatal(err)
	}
}

// TestReadThroughAGateway: what a gateway handed out by itself counts as read by the
// party and from its address; and the gateway has what it presents, what it handed out,
// and what those got that connect, or did, through it.
func TestReadThroughAGateway(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		begun := time.Now()
		names := w.orders(t, 8)
		w.issued = []emergency.Token{
			{ID: "g1", Name: "eu", Keys: []string{"prod/orders/db00", "prod/orders/db01", "prod/orders/db06"}, Speaks: true, Gateway: true},
			{ID: "t1", Name: "web-1", Party: "web-1", Keys: []string{"prod/orders/db05"}},
			{ID: "t2", Name: "other", Keys: []string{"prod/orders/db07"}, Speaks: true},
		}
		w.joinFrom(t, "10.0.9.1", "eu/a", nil, names[0])
		w.joinThrough(t, "eu", "10.0.3.7", "web-1", names[2])
		w.joinThrough(t, "eu", "10.0.3.8", "web-3", names[3])
		w.joinThrough(t, "", "10.0.3.9", "web-4", names[4])
		time.Sleep(time.Hour)
		// It goes another way from now on, and changes nothing else.
		w.joinThrough(t, "", "10.0.3.8", "web-3", names[3])
		if moves := w.entries(t, audit.ActionMove); len(moves) != 1 || moves[0].Detail["gateway-before"] != "eu" || moves[0].Detail["gateway"] != "" {
			t.Errorf("%+v", moves)
		}
		told := audit.Entry{
			Action: audit.ActionHandout, Target: "web-2", Key: names[1], Version: 1, Outcome: audit.OutcomeOK,
			Detail: map[string]string{"address": "10.0.3.6", "gateway": "eu/a", "count": "1"},
		}
		if err := w.Record(t.Context(), audit.Actor{ID: "eu", Kind: "gateway"}, told); err != nil {
			t.Fatal(err)
		}
		const seen = "orders/db00 orders/db01 orders/db02 orders/db03"
		for _, test := range []struct {
			selection emergency.Selection
			want, why string
		}{
			{emergency.Selection{Address: "10.0.3.6"}, "orders/db01", "v1 handed out to web-2 at 10.0.3.6 by gateway eu/a"},
			{emergency.Selection{ReadBy: "web-2"}, "orders/db01", "handed out to web-2"},
			{emergency.Selection{ReadBy: "eu"}, seen, "v1 told to eu/a"},
			{emergency.Selection{ReadBy: "g1"}, seen, "web-1 presents v1 through gateway eu now"},
			{emergency.Selection{ReadBy: "eu/a"}, seen, "v1 told to web-3 through gateway eu"},
			{emergency.Selection{Host: "eu"}, seen, "handed out to web-2"},
			{emergency.Selection{Address: "10.0.9.1"}, seen, "v1 told to eu/a"},
			{emergency.Selection{Address: "10.0.9.1", CouldRead: true}, seen + " orders/db05 orders/db06", "token t1 of web-1 covers"},
			{emergency.Selection{ReadBy: "web-1"}, "orders/db02", "v1 told to web-1"},
		} {
			test.selection.Since = begun
			group, err := w.Find(t.Context(), alice, emergency.Request{Selection: test.selection})
			if err != nil || strings.Join(keysOf(&group), " ") != test.want || !strings.Contains(whyOf(&group), test.why) || len(group.Looked.Incomplete) > 0 {
				t.Errorf("%+v: %v, %+v\n%s", test.selection, err, group.Looked, whyOf(&group))
			}
		}
	})
}

// TestGatewaysThatHaveNotTold: while a gateway is away nobody knows what it has handed
// out, and that is said.
func TestGatewaysThatHaveNotTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		begun := time.Now()
		names := w.orders(t, 1)
		w.read(t, "ci", names[0])
		w.config.Untold = func(context.Context) ([]string, error) { return []string{"gateway eu was not seen"}, nil }
		s := emergency.New(w.config)
		group, err := s.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{ReadBy: "ci", Since: begun}})
		if err != nil || !slices.Contains(group.Looked.Incomplete, "gateway eu was not seen") {
			t.Errorf("%+v, %v", group.Looked, err)
		}
		if group, err = s.Find(t.Context(), alice, emergency.Request{Selection: emergency.Selection{Selector: "team=orders"}}); err != nil || group.Looked != nil {
			t.Errorf("by labels nobody needs to be asked: %+v, %v", group.Looked, err)
		}
	})
}
