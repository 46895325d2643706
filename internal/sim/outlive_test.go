package sim

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestCallsComeInTimeOrNever: where systems compare no fences, what an ended server has
// sent changes nothing any more once its time is over, although everything stalled
// meanwhile. Where they compare them it may come at any time.
func TestCallsComeInTimeOrNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, unfenced := range []bool{true, false} {
			for _, stalled := range []time.Duration{0, callLasts, callLate} {
				arrived, sent := 0, 0
				for seed := range uint64(20) {
					w := newWorld(t.Context(), seed, nil)
					w.plan.unfenced = unfenced
					w.waiting = []*request{{label: "a call", began: time.Now(), effect: func() error { arrived++; return nil }}}
					time.Sleep(time.Second)
					w.outlive()
					synctest.Wait()
					if len(w.waiting) == 1 {
						continue // it was lost with its server
					}
					sent++
					late := w.waiting[1]
					time.Sleep(max(stalled, time.Until(late.after)))
					w.mu.Lock()
					w.release(late)
					w.mu.Unlock()
					synctest.Wait()
				}
				want := sent
				if unfenced && stalled > 0 {
					want = 0
				}
				if sent == 0 || arrived != want {
					t.Errorf("unfenced %v, stalled for %v: %d of %d calls arrived, want %d", unfenced, stalled, arrived, sent, want)
				}
			}
		}
	})
}
