package secret_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/secret"
)

const plaintext = "hunter2-correct-horse"

// TestNothingPrintsTheBytes prints a value, and structs that hold one in
// exported and unexported fields, in every way the standard library knows.
func TestNothingPrintsTheBytes(t *testing.T) {
	v := secret.NewString(plaintext)
	type holder struct {
		Public  secret.Value
		private secret.Value
		list    []secret.Value
		byName  map[string]secret.Value
	}
	h := holder{v, v, []secret.Value{v}, map[string]secret.Value{"a": v}}
	encodings := []string{plaintext, fmt.Sprintf("%x", plaintext), fmt.Sprintf("%X", plaintext), fmt.Sprint([]byte(plaintext))}

	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%t", "%T", "%p"} {
		for _, operand := range []any{v, &v, h, &h, []holder{h}, map[string]*holder{"h": &h}} {
			fmt.Fprintf(&out, verb+"\n", operand)
		}
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("m", "v", v, "p", &v, "h", h, "g", slog.GroupValue(slog.Any("v", v)))
	}
	for _, want := range encodings {
		if strings.Contains(out.String(), strings.Trim(want, "[]")) {
			t.Errorf("the output contains %q", want)
		}
	}
	if !strings.Contains(out.String(), secret.Redacted) {
		t.Errorf("the output never says %q", secret.Redacted)
	}
}

func TestEncodersRefuse(t *testing.T) {
	v := secret.NewString(plaintext)
	if _, err := json.Marshal(struct{ V secret.Value }{v}); !errors.Is(err, secret.ErrEncode) {
		t.Errorf("json: got %v, want ErrEncode", err)
	}
	if _, err := json.Marshal(map[string]any{"v": &v}); !errors.Is(err, secret.ErrEncode) {
		t.Errorf("json of a pointer: got %v, want ErrEncode", err)
	}
	if err := gob.NewEncoder(&bytes.Buffer{}).Encode(v); !errors.Is(err, secret.ErrEncode) {
		t.Errorf("gob: got %v, want ErrEncode", err)
	}
}

func TestValue(t *testing.T) {
	source := []byte(plaintext)
	v := secret.New(source)
	source[0] = 'X'
	if v.RevealString() != plaintext {
		t.Errorf("New did not copy: %q", v.RevealString())
	}
	if !v.Equal(secret.NewString(plaintext)) || v.Equal(secret.NewString("other")) || v.Equal(secret.Value{}) {
		t.Error("Equal is wrong")
	}
	if v.Len() != len(plaintext) || (secret.Value{}).Len() != 0 {
		t.Error("Len is wrong")
	}
	v.Zero()
	if v.Equal(secret.NewString(plaintext)) || v.Len() != len(plaintext) {
		t.Error("Zero did not clear the bytes in place")
	}
}
