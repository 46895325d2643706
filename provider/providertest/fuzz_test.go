package providertest

import "testing"

// TestLeads: a path leads to what is there, or to a field that is missing.
func TestLeads(t *testing.T) {
	config := map[string]any{"a": 1.0, "b": map[string]any{"c.d": "x", "e": nil}, "l": []any{"x", map[string]any{}}, "": 2.0}
	for path, want := range map[string]bool{
		"": true, "a": true, "b": true, "b.c.d": true, "b.e": true, "b.missing": true, "missing": true, "l": true, "l[0]": true, "l[1].missing": true,
		"a.x": false, "b.e.x": false, "l[2]": false, "l[-1]": false, "l[x]": false, "l.x": false, "l[0].x": false, "missing.x": false, "missing[0]": false, "b[0]": false,
	} {
		if leads(config, path) != want {
			t.Errorf("%q: %t", path, !want)
		}
	}
}
