// Package engine takes effect.
package engine

import (
	"time"

	_ "fake.example/m/base"
	_ "fake.example/m/client" // want floor
	_ "fake.example/m/middle" // want floor
	_ "fake.example/m/store"
	_ "fake.example/m/store/one" // want floor
	_ "fake.example/m/tester"    // want floor
)

// Now is a default, not a call.
var Now = time.Now

func age(t time.Time) time.Duration {
	_ = time.Now()       // want clock
	return time.Since(t) // want clock
}

type value struct{}

func (value) Reveal() []byte { return nil }

func open(v value) []byte { return v.Reveal() } // want reveal
