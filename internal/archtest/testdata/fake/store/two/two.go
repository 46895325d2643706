package two // want comment

import "sync"

var filled = map[string]int{"a": 1}

var table = [...]string{"a"}

var err = someError()

func someError() error { return nil }

var (
	later   int                      // want variable
	literal = "x"                    // want variable
	pointer = &struct{}{}            // want variable
	cache   = map[string]int{}       // want variable
	made    = make(map[string]int)   // want variable
	fresh   = new(int)               // want variable
	lock    = sync.Mutex{}           // want variable
)

func init() {} // want init
