package postgres_test

import (
	"testing"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/storetest"
)

// reopenable is a store that the suite can close and open again.
type reopenable struct {
	*postgres.Store
	url string
}

func (r reopenable) Reopen(t *testing.T) store.Store {
	must(t, r.Stop())
	return open(t, r.url)
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		url := newDatabase(t)
		return reopenable{open(t, url), url}
	})
}
