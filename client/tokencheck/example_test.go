package tokencheck_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/keyturn/keyturn/client/tokencheck"
)

// A service lets in whoever shows a token for it with the right scope.
func ExampleChecker_Handler() {
	checker, err := tokencheck.Open(context.Background(), tokencheck.Config{
		Issuer: "https://keys.example.com/orders", Audience: "orders",
		Reader: "orders-api", Origins: []string{"https://orders.example.com"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer checker.Close()
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := tokencheck.From(r.Context())
		_, _ = fmt.Fprintln(w, "hello,", claims.Subject)
	})
	mux := http.NewServeMux()
	mux.Handle("GET /v1/orders", checker.Handler(api, "orders:read"))
	log.Print(http.ListenAndServe("127.0.0.1:8080", mux))
}
