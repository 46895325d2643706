package postgres_test

import (
	"testing"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/storetest"
	"github.com/keyturn/keyturn/test/pgtest"
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
	url := newDatabase(t)
	conn := pgtest.Connect(t, url)
	storetest.Run(t, func(t *testing.T) store.Store {
		// Emptying a database takes a tenth of the time of making one.
		_, err := conn.Exec(t.Context(), `SET session_replication_role = replica; -- the triggers that keep history are off
			DELETE FROM keyturn.docs; DELETE FROM keyturn.events; DELETE FROM keyturn.jobs; DELETE FROM keyturn.log_records;
			DELETE FROM keyturn.log_hashes; DELETE FROM keyturn.materials; DELETE FROM keyturn.shreds; UPDATE keyturn.counters SET rev = 0, fence = 0`)
		must(t, err)
		return reopenable{open(t, url), url}
	})
}
