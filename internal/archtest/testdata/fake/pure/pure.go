// Package pure decides. It allows outside.example/good only.
package pure

import (
	_ "context"   // want pure
	_ "math/rand" // want pure
	_ "net/http"  // want pure
	_ "net/url"
	_ "os/exec" // want pure
	clock "time"

	_ "fake.example/m/base"
	_ "outside.example/bad" // want floor
	_ "outside.example/good/below"
)

var _ = clock.Now // want pure

var _ = clock.Second

func wait() { clock.Sleep(clock.Second) } // want pure
