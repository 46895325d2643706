package sqlite_test

import (
	"fmt"
	"os"
	"testing"
)

// children are what this test binary does when a test starts it again, because
// the test kills it or gives it a file system of its own.
var children = map[string]func(path string) error{
	"crash": crashChild,
	"full":  fullChild,
}

const childVariable = "KEYTURN_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if child, ok := children[os.Getenv(childVariable)]; ok {
		if err := child(os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
