package emergency_test

import (
	"testing"

	"github.com/keyturn/keyturn/internal/emergency"
)

func TestSelector(t *testing.T) {
	labels := map[string]string{"tier": "1", "team": "orders", "empty": ""}
	for text, want := range map[string]bool{
		"": true, "tier=1": true, "tier = 1 , team=orders": true, "tier=2": false, "tier=1,team=x": false, "tier!=2": true, "tier!=1": false,
		"tier": true, "!tier": false, "none": false, "!none": true, "none!=1": true, "none=": false, "empty=": true, "empty": true,
	} {
		s, err := emergency.ParseSelector(text)
		if err != nil || s.Matches(labels) != want {
			t.Errorf("%q: %v, %v; want %v", text, s.Matches(labels), err, want)
		}
	}
	for _, text := range []string{",", "=1", "!=1", "a=b=c", "!a=b", "a b=c", "tier=1,", "!!a"} {
		if s, err := emergency.ParseSelector(text); err == nil {
			t.Errorf("%q is taken as %q", text, s)
		}
	}
}

func FuzzSelector(f *testing.F) {
	f.Add("tier=1,team!=x,!a,b", "tier", "1")
	f.Fuzz(func(t *testing.T, text, label, value string) {
		s, err := emergency.ParseSelector(text)
		if err != nil {
			return
		}
		again, err := emergency.ParseSelector(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q is read as %q, and that as %q, %v", text, s, again, err)
		}
		labels := map[string]string{label: value}
		if s.Matches(labels) != again.Matches(labels) {
			t.Errorf("%q and %q disagree", text, s)
		}
		if s.Empty() && !s.Matches(nil) {
			t.Errorf("%q chooses not everything", text)
		}
	})
}
