package rpc

import (
	"fmt"
	"testing"
	"time"
)

// TestAskersAreBounded: one asks no more than a scanner does, another is not kept from
// it, and there are not more of them than are remembered.
func TestAskersAreBounded(t *testing.T) {
	var a askers
	now := time.Now()
	asked := 0
	for {
		wait, ok := a.admit("one", 500, now)
		if !ok {
			if wait < time.Second || wait > 3*time.Second {
				t.Errorf("to wait %v", wait)
			}
			break
		}
		if asked += 500; asked > askedAtOnce {
			t.Fatal("no end")
		}
	}
	if asked != askedAtOnce {
		t.Errorf("%d at once, want %d", asked, askedAtOnce)
	}
	if _, ok := a.admit("two", 500, now); !ok {
		t.Error("another is kept from asking")
	}
	asked = 0
	for range 100 {
		now = now.Add(100 * time.Millisecond)
		if _, ok := a.admit("one", 500, now); ok {
			asked += 500
		}
	}
	if asked > 10*askedPerSecond || asked < 9*askedPerSecond {
		t.Errorf("%d in ten seconds, want %d", asked, 10*askedPerSecond)
	}
	for i := range 3 * maxAskers {
		a.admit(fmt.Sprint(i), askedAtOnce, now)
	}
	if len(a.by) > maxAskers {
		t.Errorf("%d are remembered", len(a.by))
	}
	if _, ok := a.admit("late", 1, now.Add(time.Hour)); !ok {
		t.Error("those who ask no longer are in the way")
	}
}
