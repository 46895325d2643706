package clienttest_test

import (
	"context"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/clienttest"
)

// A test of an application's own rotation.
func Example() {
	_ = func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Set(clienttest.Login("prod/orders/db", "orders_a", "first"))
		keys, err := client.Open(t.Context(), srv.Config(), "prod/orders/db")
		if err != nil {
			t.Fatal(err)
		}
		defer keys.Close()

		next := srv.Rotate("prod/orders/db")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if ack := srv.WaitAck(ctx, "prod/orders/db", next); ack.Code != client.Applied {
			t.Errorf("the application refused the new version: %s", ack.Detail)
		}
	}
}
