package forge_test

import (
	"testing"

	"github.com/keyturn/keyturn/provider/providertest"
)

// FuzzConfig: see providertest.FuzzConfig.
func FuzzConfig(f *testing.F) {
	const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
	providertest.FuzzConfig(
		f, driver(),
		`{"forge":"gitea","api":"https://git.example.com/api/v1","repository":"acme/shop","admin":{"file":"/run/token"},"ssh":{"address":"git.example.com:22","hostKeys":["`+hostKey+`"]}}`,
		`{"forge":"github","api":"https://api.github.com","repository":"acme/shop","readOnly":false,"usageDelay":"2d","admin":{"key":"ops/forge","field":"value"},"ssh":{"address":"[::1]:22","user":"git","hostKeys":["`+hostKey+`"]}}`,
		`{"forge":"gitlab","api":"ftp://x","repository":"..","admin":{"file":"x","field":"y"},"ssh":{"address":"a","user":"-","hostKeys":[1]}}`,
		`{"forge":1,"api":null,"admin":[],"ssh":7}`,
	)
}
