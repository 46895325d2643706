package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/keyturn/keyturn/client"
)

// An application opens its keys once and asks for the current version whenever
// it needs it.
func ExampleOpen() {
	ctx := context.Background()
	keys, err := client.Open(ctx, client.Config{
		Address:    "https://keyturn.example:8443",
		Token:      client.TokenFile("/etc/orders/keyturn.token"),
		CACertFile: "/etc/orders/keyturn-ca.pem",
		Party:      client.Party{Region: "eu-1", Labels: map[string]string{"cohort": "canary"}},
	}, "prod/orders/api")
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()

	api := keys.Key("prod/orders/api")
	stop := api.OnChange(func(c client.Credential) { fmt.Println("now at", c.Version) })
	defer stop()
	cred := api.Current()
	fmt.Println(cred.Username(), cred.Password()) // prints the password as [redacted]
}

// An applier tries a version before it becomes current. Its error goes to the
// server, which rolls the rotation back; the old version stays in use.
func ExampleHandle_OnApply() {
	var api *client.Handle
	stop := api.OnApply(func(ctx context.Context, next client.Credential) error {
		if next.Attribute("endpoint") == "" {
			return errors.New("the version names no endpoint")
		}
		return nil // or try to call it
	})
	defer stop() // when the application ends
	fmt.Println("serving with", api.Current().Version)
}

// A program that places credentials itself watches and answers with outcomes.
func ExampleClient_Watch() {
	c, err := client.New(client.Config{
		Address: "https://keyturn.example:8443",
		Token:   client.TokenEnv("KEYTURN_TOKEN"),
		Party:   client.Party{ID: "web-1", Kind: client.KindAgent},
	})
	if err != nil {
		log.Fatal(err)
	}
	known := []client.Known{{Key: "prod/orders/db", Version: 6, Epoch: 11}}
	err = c.Watch(context.Background(), known, func(ctx context.Context, batch []client.Assignment) []client.Outcome {
		outcomes := make([]client.Outcome, 0, len(batch))
		for _, a := range batch {
			outcomes = append(outcomes, client.Outcome{Key: a.Key, Version: a.Version, Epoch: a.Epoch, Code: client.Applied, Using: a.Version})
		}
		return outcomes
	})
	log.Print(err)
}
