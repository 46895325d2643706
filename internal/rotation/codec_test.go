package rotation

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// FuzzUnmarshalBody: what is read can be written, and reads as the same again;
// what is refused wraps ErrInvalid; and no body that is read makes Step panic or
// change its argument.
func FuzzUnmarshalBody(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "histories", "*.json"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var events []recorded
		if err := json.Unmarshal(text, &events); err != nil {
			f.Fatal(err)
		}
		for _, e := range events {
			f.Add(e.Type, []byte(e.Body))
		}
	}
	f.Add("begin", []byte(`{"kind":"manual","plan":{"stages":[]},"surprise":1}`))
	f.Add("tick", []byte(`{} {}`))
	f.Add("arrived", []byte(`{"joins":[{"id":"b","stage":0},{"id":"a","stage":1,"holding":1,"epoch":7},{"id":"b","stage":2}]}`))
	f.Fuzz(func(t *testing.T, eventType string, data []byte) {
		body, err := UnmarshalBody(eventType, data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || body != nil {
				t.Fatalf("%v does not wrap ErrInvalid, or comes with a body", err)
			}
			return
		}
		name, written, err := MarshalBody(body)
		if err != nil || name != eventType {
			t.Fatalf("%s, once read, cannot be written: %s, %v", eventType, name, err)
		}
		again, err := UnmarshalBody(name, written)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if _, twice, err := MarshalBody(again); err != nil || !bytes.Equal(written, twice) {
			t.Fatalf("%s reads as %s (%v)", written, twice, err)
		}
		var s State
		s, _, _ = Step(s, Event{At: epoch0(), Body: Configured{Verifiers: []VerifierRef{{ID: "a"}}}})
		before := s
		after, _, stepErr := Step(s, Event{At: epoch0().Add(time.Hour), Rotation: [16]byte{1}, Body: body})
		if !reflect.DeepEqual(s, before) {
			t.Fatal("Step changed its argument")
		}
		if stepErr == nil {
			for i := range after.Rotations {
				if len(after.Explain(&after.Rotations[i])) == 0 {
					t.Fatal("an open rotation waits for nothing")
				}
			}
		}
	})
}
