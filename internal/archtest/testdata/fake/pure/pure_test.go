package pure_test

import (
	_ "os"

	_ "fake.example/m/engine" // want floor
	_ "fake.example/m/tester"
	_ "outside.example/anything"
)
