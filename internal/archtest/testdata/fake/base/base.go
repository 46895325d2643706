// Package base stands on the ground.
package base

import (
	_ "fake.example/m/store" // want floor
	_ "net/url"

	_ "outside.example/anything" // want floor
)
