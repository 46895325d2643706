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

func inBubble(t *testing.T, test func(*testing.T)) { synctest.Test(t, test) }

func inAir(t *testing.T, test func(*testing.T)) { test(t) }

func TestWrapped(t *testing.T) {
	inBubble(t, func(t *testing.T) { time.Sleep(time.Hour) })
	inAir(t, func(t *testing.T) { time.Sleep(time.Hour) }) // want sleep
}
