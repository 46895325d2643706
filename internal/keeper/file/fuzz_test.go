package file_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
)

// FuzzKeyFile: whatever stands in the key file, it is refused with its path and
// without its content, or it seals and unseals; reading never changes it.
func FuzzKeyFile(f *testing.F) {
	whole := filepath.Join(f.TempDir(), "kek.json")
	k := open(f, whole)
	if _, err := k.Rotate(f.Context()); err != nil {
		f.Fatal(err)
	}
	content, err := os.ReadFile(whole)
	must(f, err)
	f.Add(content)
	f.Add(content[:len(content)/2])
	f.Add(bytes.Replace(content, []byte("ENABLED"), []byte("DISABLED"), 1))
	f.Add(bytes.ReplaceAll(content, []byte("ENABLED"), []byte("DESTROYED")))
	f.Add(bytes.Replace(content, []byte("TINK"), []byte("RAW"), 1))
	f.Add(bytes.Replace(content, []byte("AesGcm"), []byte("AesEax"), 1))
	f.Add(bytes.Replace(content, []byte("primaryKeyId\":"), []byte("primaryKeyId\":1"), 1))
	f.Add(append(bytes.Clone(content), content...))
	f.Add([]byte(`{"primaryKeyId":1,"key":[]}`))
	f.Add([]byte(`{"key":[{"keyData":{"value":"c2VjcmV0IGtleSBieXRlcw=="}}]}`))
	f.Add([]byte("null"))
	f.Add([]byte(nil))
	f.Add(bytes.Repeat([]byte("["), 100_000))
	f.Add(bytes.Repeat([]byte(" "), 1<<20+1))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(dir, "kek.json")
		must(t, os.WriteFile(path, content, 0o600))
		k, err := file.Open(file.Config{Path: path, MustExist: true})
		if after, failed := os.ReadFile(path); failed != nil || !bytes.Equal(after, content) {
			t.Fatalf("reading changed the file (%v)", failed)
		}
		if err != nil {
			if k != nil || !strings.HasPrefix(err.Error(), "key file: ") {
				t.Fatalf("%v", err)
			}
			for _, value := range values(content) {
				if strings.Contains(err.Error(), value) {
					t.Fatalf("the error repeats the file: %v", err)
				}
			}
			return
		}
		kek, wrapped, err := k.Wrap(t.Context(), []byte("dek"), []byte("place"))
		if err != nil || kek != k.Primary() {
			t.Fatalf("what was opened does not seal: %q %v", kek, err)
		}
		got, err := k.Unwrap(t.Context(), kek, wrapped, []byte("place"))
		if err != nil || string(got) != "dek" {
			t.Fatalf("%q %v", got, err)
		}
	})
}

// values are the texts behind "value": in a keyset.
func values(content []byte) (list []string) {
	for piece := range strings.SplitSeq(string(content), `"value":"`) {
		if value, _, found := strings.Cut(piece, `"`); found && len(value) > 12 && !strings.ContainsAny(value, " {}") {
			list = append(list, value)
		}
	}
	return list
}

// FuzzKEK: no ID of a KEK is taken for another, however it is written.
func FuzzKEK(f *testing.F) {
	k := open(f, filepath.Join(f.TempDir(), "kek.json"))
	_, wrapped, err := k.Wrap(f.Context(), []byte("dek"), nil)
	must(f, err)
	number := strings.TrimPrefix(k.Primary(), "file:")
	for _, s := range []string{"", "file:", "0" + number, "file:0" + number, "file:+" + number, "File:" + number, " file:" + number, "file:" + number + "\n", "file:99999999999999999999", "file:-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if id == k.Primary() {
			return
		}
		if got, err := k.Unwrap(t.Context(), id, wrapped, nil); !errors.Is(err, keeper.ErrUnknownKEK) {
			t.Fatalf("%q opens as %q (%v)", id, got, err)
		}
		if err := k.Remove(t.Context(), id); !errors.Is(err, keeper.ErrUnknownKEK) {
			t.Fatalf("%q was removed (%v)", id, err)
		}
	})
}
