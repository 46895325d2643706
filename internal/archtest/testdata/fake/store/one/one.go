// Package one is one implementation.
package one

import (
	_ "fake.example/m/base"
	_ "fake.example/m/store"
	_ "fake.example/m/store/two" // want floor
)
