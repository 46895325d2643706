package bench

import (
	"fmt"
	"os"
	"testing"
)

// childVariable says which part this process plays instead of the benchmarks'.
const childVariable = "KEYTURN_BENCH_CHILD"

// scoreboard is what the benchmarks of this run measured.
var scoreboard = &board{}

func TestMain(m *testing.M) {
	if role := os.Getenv(childVariable); role != "" {
		if err := runChild(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if len(scoreboard.results) > 0 {
		fmt.Println()
		if err := scoreboard.print(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		if path := os.Getenv("KEYTURN_BENCH_JSON"); path != "" {
			if err := scoreboard.save(path); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	os.Exit(code)
}
