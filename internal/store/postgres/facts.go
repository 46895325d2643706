package postgres

import (
	"maps"

	"github.com/keyturn/keyturn/key"
)

// facts is what this node knows to be stored: the revisions of documents and the
// last events of keys. It is true as long as the commit lock is held, and for as
// long as no other node has written since, which the next transaction learns
// when it begins.
type facts struct {
	docs   map[docName]int64 // revision; 0: there is no such document
	events map[key.Name]uint64
}

type docName struct{ kind, name string }

// maxFacts bounds each of the two maps.
const maxFacts = 10_000

func newFacts() *facts {
	return &facts{docs: make(map[docName]int64), events: make(map[key.Name]uint64)}
}

// setDoc does nothing in a View, whose tx knows no facts.
func (f *facts) setDoc(kind, name string, rev int64) {
	if f != nil {
		f.docs[docName{kind, name}] = rev
	}
}

func (f *facts) forget() {
	clear(f.docs)
	clear(f.events)
}

// add adds what a transaction knows.
func (f *facts) add(other *facts) {
	if len(f.docs)+len(other.docs) > maxFacts {
		clear(f.docs)
	}
	if len(f.events)+len(other.events) > maxFacts {
		clear(f.events)
	}
	maps.Copy(f.docs, other.docs)
	maps.Copy(f.events, other.events)
}

func (t *tx) knownDoc(kind, name string) (rev int64, known bool) {
	at := docName{kind, name}
	if rev, known = t.known.docs[at]; !known {
		rev, known = t.store.writer.known.docs[at]
	}
	return rev, known
}

func (t *tx) lastEvent(name key.Name) (seq uint64, known bool) {
	if seq, known = t.known.events[name]; !known {
		seq, known = t.store.writer.known.events[name]
	}
	return seq, known
}
