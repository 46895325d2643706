package apikey_test

import (
	"testing"

	"github.com/keyturn/keyturn/internal/provider/apikey"
	"github.com/keyturn/keyturn/provider/providertest"
)

// FuzzConfig: see providertest.FuzzConfig.
func FuzzConfig(f *testing.F) {
	providertest.FuzzConfig(
		f, apikey.New(apikey.Config{}),
		`{"client":"ACME Ltd.","prefix":"kt_live","scopes":["orders:read"],"rate":{"perSecond":50,"burst":100},"expires":"2027-12-31","keep":"sealed","late":"14d"}`,
		`{"client":"ACME","prefix":"kt_live","notify":{"email":["keys@acme.example"],"webhook":["https://acme.example/keys"],"remind":"7d","ahead":"36h"}}`,
		`{"client":"","prefix":"KT","scopes":["a","a",1],"rate":{"perSecond":-1,"burst":0.5},"notify":{},"keep":7,"expires":0}`,
	)
}
