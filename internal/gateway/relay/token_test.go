package relay

import "testing"

// TestIDOfAToken: of what is no token of the centre no part is shown.
func TestIDOfAToken(t *testing.T) {
	for text, want := range map[string]string{
		"Bearer kt_0123456789abcdef_c2VjcmV0": "0123456789abcdef",
		"Bearer kt_0123456789abcdef":          "",
		"Bearer eyJh_bGciOiJFZERTQSJ9_x":      "",
		"Bearer kt_Secret_x":                  "",
		"kt_0123456789abcdef_c2VjcmV0":        "",
		"":                                    "",
	} {
		if got := idOf(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
