package client

import (
	"context"
	"errors"
	"testing"
)

// TestLateOutcomeIsRepeated: an assignment that the server sends again is answered
// with what Ack told last, not with what the handler had returned before.
func TestLateOutcomeIsRepeated(t *testing.T) {
	c := newClient(Config{}, nil)
	box := newInbox([]Known{{Key: "orders", Version: 1, Epoch: 1}})
	closeBox := c.open(box)
	assignment := Assignment{Key: "orders", Version: 2, Epoch: 2}
	box.add([]Assignment{assignment})
	box.take()
	box.done(Outcome{Key: "orders", Version: 2, Epoch: 2, Code: Failed, Using: 1})

	c.amend([]Outcome{{Key: "orders", Version: 1, Epoch: 1, Code: Applied, Using: 1}, {Key: "other", Epoch: 2}})
	if _, again := box.add([]Assignment{assignment}); len(again) != 1 || again[0].Code != Failed {
		t.Fatalf("an older outcome took the place of a newer one: %+v", again)
	}
	c.amend([]Outcome{{Key: "orders", Version: 2, Epoch: 2, Code: Applied, Using: 2}})
	if _, again := box.add([]Assignment{assignment}); len(again) != 1 || again[0].Code != Applied {
		t.Errorf("the later outcome is not repeated: %+v", again)
	}
	if known := box.known(); known[0].Version != 2 {
		t.Errorf("the server would be told of version %v", known[0].Version)
	}

	closeBox()
	c.amend([]Outcome{{Key: "orders", Version: 2, Epoch: 2, Code: Failed, Using: 1}})
	if box.known()[0].Version != 2 {
		t.Error("a watch that has ended is still told")
	}
}

// TestOutcomesAreOrdered: every outcome has a larger order than the one before it,
// also one of an earlier process, and one that is repeated keeps its own.
func TestOutcomesAreOrdered(t *testing.T) {
	before := newClient(Config{}, nil).number()
	var sent []uint64
	cfg, err := Config{Address: "https://keyturn.example:8443"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(cfg, nil)
	fail := true
	c.acks.send = func(_ context.Context, outcomes []Outcome) error {
		for _, o := range outcomesToWire(outcomes) {
			sent = append(sent, o.GetOrder())
		}
		if fail = !fail; !fail {
			return errors.New("the answer is lost")
		}
		return nil
	}
	for range 2 {
		c.random = func() float64 { return 0 }
		if err := c.Ack(t.Context(), []Outcome{{Key: "orders", Version: 2, Epoch: 2, Code: Applied, Using: 2}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(sent) != 4 || sent[0] <= before || sent[1] != sent[0] || sent[2] <= sent[1] || sent[3] != sent[2] {
		t.Errorf("orders %v after %d", sent, before)
	}
}
