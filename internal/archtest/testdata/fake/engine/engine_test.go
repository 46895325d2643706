package engine

import (
	"testing"
	"testing/synctest"
	"time"

	_ "fake.example/m/store/one"
)

func TestSkip(t *testing.T) {
	t.Skip("not today") // want skip
	time.Sleep(1)       // want sleep
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
	})
	open(value{}).Reveal()
	_ = time.Now()
}
