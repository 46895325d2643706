package store

import (
	"context"
	"slices"
	"sync"
)

// Topics is a set of topics, one bit each.
type Topics uint8

// AllTopics has every topic.
const AllTopics = Topics(1<<TopicDocs | 1<<TopicJobs | 1<<TopicLog)

// Add adds a topic.
func (t *Topics) Add(topic Topic) { *t |= 1 << topic }

// Has reports whether the set has the topic.
func (t Topics) Has(topic Topic) bool { return t&(1<<topic) != 0 }

// Watches holds who waits for which topic in this process: what implementations
// of Store.Watch are made of. It wakes them in the order in which they came. Its
// methods may be called concurrently; the zero value holds nobody.
type Watches struct {
	mu   sync.Mutex
	list []watch
}

type watch struct {
	c     chan struct{}
	topic Topic
}

// Add returns a channel that receives after Wake named the topic, coalesced, until
// ctx ends; then it is closed.
func (w *Watches) Add(ctx context.Context, topic Topic) <-chan struct{} {
	c := make(chan struct{}, 1) // one pending wake-up stands for all
	w.mu.Lock()
	w.list = append(w.list, watch{c, topic})
	w.mu.Unlock()
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.list = slices.DeleteFunc(w.list, func(other watch) bool { return other.c == c })
		close(c)
	})
	return c
}

// Wake wakes those who wait for one of the topics. It does not block.
func (w *Watches) Wake(touched Topics) {
	if touched == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.list {
		if !touched.Has(one.topic) {
			continue
		}
		select {
		case one.c <- struct{}{}:
		default:
		}
	}
}
