package client

import "testing"

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
