package engine

import (
	"fmt"
	"testing"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// TestDraftsAreFoundByTheirBytes: what was just written is found again without
// decoding it, but never stands for what another transaction wrote under a revision
// that was rolled back.
func TestDraftsAreFoundByTheirBytes(t *testing.T) {
	var c stateCache
	large := rotation.State{Seq: 7, Presenters: make([]rotation.Presenter, worthCaching)}
	ours, theirs := store.Doc{Rev: 5, Body: []byte("ours")}, store.Doc{Rev: 5, Body: []byte("theirs")}
	c.wrote("a", &ours, large)
	if state, ok := c.written("a", &ours); !ok || state.Seq != 7 {
		t.Error("a state that was just written is not found")
	}
	if _, ok := c.written("a", &theirs); ok {
		t.Error("a state stands for what somebody else wrote")
	}
	if _, ok := c.get("a", 5); ok {
		t.Error("a state counts as committed")
	}
	c.put("a", 5, large)
	if _, ok := c.written("a", &ours); ok || len(c.drafts) > 0 {
		t.Error("a draft is kept although its state is committed")
	}
	c.wrote("b", &ours, rotation.State{})
	for i := range 3 * maxDrafts {
		c.wrote(key.Name(fmt.Sprint("c", i)), &ours, large)
	}
	if _, ok := c.written("b", &ours); ok || len(c.drafts) > maxDrafts {
		t.Errorf("%d drafts are kept, or one of a small state", len(c.drafts))
	}
}
