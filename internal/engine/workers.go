package engine

import (
	"sync"
	"time"
)

const (
	// slowAfter is after how long an effect that still runs counts as slow: another
	// worker takes its place, so that hosts that hang take no worker from others.
	slowAfter = time.Second
	// maxParked bounds the slow effects that run beside the workers.
	maxParked = 1024
)

// workers counts the effects that run.
type workers struct {
	// most is from how many on a claim may have been cut short.
	most int
	// freed receives when a worker has become free after a claim may have been cut
	// short; of other effects that end the store tells.
	freed chan struct{}

	mu           sync.Mutex
	busyN, slowN int
}

func newWorkers(most int) *workers { return &workers{most: most, freed: make(chan struct{}, 1)} }

// busy is how many effects run, without the slow ones.
func (ws *workers) busy() int {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.busyN
}

func (ws *workers) start() *worker {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.busyN++
	return &worker{all: ws}
}

// worker is one of them. Its methods are called by its goroutine alone.
type worker struct {
	all *workers
	// parked: it is slow, and does not count any more. It ends with its effect.
	parked bool
}

// park gives the worker's place to another one, if it may.
func (w *worker) park() {
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	if w.parked || w.all.slowN >= maxParked {
		return
	}
	w.parked = true
	w.all.slowN++
	w.free()
}

func (w *worker) end() {
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	if w.parked {
		w.all.slowN--
		return
	}
	w.free()
}

func (w *worker) free() {
	full := w.all.busyN >= w.all.most
	w.all.busyN--
	if !full {
		return
	}
	select {
	case w.all.freed <- struct{}{}:
	default:
	}
}
