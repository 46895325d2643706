package postgres

import (
	"context"
	"sync"

	"github.com/keyturn/keyturn/internal/store"
)

// topics is a set of topics, one bit each.
type topics uint8

const allTopics = topics(1<<store.TopicDocs | 1<<store.TopicJobs | 1<<store.TopicLog)

func (t *topics) add(topic store.Topic) { *t |= 1 << topic }

func (t topics) has(topic store.Topic) bool { return t&(1<<topic) != 0 }

// watches holds who waits for which topic in this process.
type watches struct {
	mu sync.Mutex
	by map[chan struct{}]store.Topic
}

func newWatches() *watches { return &watches{by: make(map[chan struct{}]store.Topic)} }

func (w *watches) add(ctx context.Context, topic store.Topic) <-chan struct{} {
	c := make(chan struct{}, 1) // one pending wake-up stands for all
	w.mu.Lock()
	w.by[c] = topic
	w.mu.Unlock()
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.by, c)
		close(c)
	})
	return c
}

func (w *watches) wake(touched topics) {
	if touched == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for c, topic := range w.by {
		if !touched.has(topic) {
			continue
		}
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
