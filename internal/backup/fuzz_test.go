package backup

import (
	"bytes"
	"errors"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
)

// FuzzRead wants that what is read is exactly what was written: a plaintext that
// is accepted is written again as the same bytes. Everything else is ErrInvalid or
// ErrFormat.
func FuzzRead(f *testing.F) {
	for _, n := range []int{0, 1, 5} {
		source, _ := sample(f, n)
		var plain bytes.Buffer
		if err := writeStream(f.Context(), &plain, source, &Manifest{Format: format}); err != nil {
			f.Fatal(err)
		}
		f.Add(plain.Bytes())
		f.Add(plain.Bytes()[:plain.Len()/2])
	}
	f.Add([]byte(magic + "\x02"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		reader, err := open(bytes.NewReader(plain))
		read := tables{}
		if err == nil {
			err = reader.Dump(t.Context(), func(rows func(store.Table) store.Rows) error {
				for _, table := range store.Tables() {
					for row, err := range rows(table) {
						if err != nil {
							return err
						}
						copied := make([]any, len(row))
						for i, value := range row {
							if b, ok := value.([]byte); ok {
								value = append([]byte{}, b...)
							}
							copied[i] = value
						}
						read[table.Name] = append(read[table.Name], copied)
					}
				}
				return nil
			})
		}
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrFormat) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		manifest := reader.Manifest()
		manifest.Tables = nil
		var again bytes.Buffer
		if err := writeStream(t.Context(), &again, read, &manifest); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(plain, again.Bytes()) {
			t.Fatalf("read %q, written again %q", plain, again.Bytes())
		}
	})
}
