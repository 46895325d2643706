package tokensource_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokensource"
)

// A pod exchanges the token of its service account and calls a service. Tokens are
// bound to a key of the process, which nobody can use who steals one.
func ExampleOpen() {
	ctx := context.Background()
	source, err := tokensource.Open(ctx, tokensource.Config{
		Issuer:    "https://keys.example.com/orders",
		Audiences: []string{"orders"}, Scopes: []string{"orders:read"},
		Subject: client.TokenFile("/var/run/secrets/tokens/keyturn"),
		DPoP:    true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	transport, err := source.Transport(nil, "orders.example.com")
	if err != nil {
		log.Panic(err)
	}
	orders := &http.Client{Transport: transport}
	response, err := orders.Get("https://orders.example.com/v1/orders")
	if err != nil {
		log.Panic(err, source.Status())
	}
	defer response.Body.Close()
	fmt.Println(response.Status)
}

// A library that knows golang.org/x/oauth2 gets its tokens in that form.
func ExampleSource_OAuth2() {
	source, err := tokensource.Open(context.Background(), tokensource.Config{
		Issuer: "https://keys.example.com/orders", Secret: client.TokenEnv("API_KEY"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	token, err := source.OAuth2(context.Background()).Token()
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(token.Type(), token.Expiry)
}
