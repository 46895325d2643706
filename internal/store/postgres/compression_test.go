package postgres_test

import (
	"testing"

	"github.com/keyturn/keyturn/test/pgtest"
)

// TestLargeDocumentsUseLZ4: where the server of PostgreSQL can, documents are
// compressed fast rather than well.
func TestLargeDocumentsUseLZ4(t *testing.T) {
	url := newDatabase(t)
	open(t, url)
	var method string
	must(t, pgtest.Connect(t, url).QueryRow(t.Context(),
		`SELECT attcompression::text FROM pg_attribute WHERE attrelid = 'keyturn.docs'::regclass AND attname = 'body'`).Scan(&method))
	if method != "l" {
		t.Errorf("documents are compressed by %q", method)
	}
}
