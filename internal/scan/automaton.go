package scan

import (
	"errors"
	"math"
)

// automaton finds texts in another in one pass (Aho and Corasick, 1975), whatever the
// case of letters of ASCII: one step for each byte, failure links resolved, in a table
// of classes of bytes. Its methods may be called concurrently.
type automaton struct {
	// class is that of a byte: texts tell no more of them apart.
	class [256]uint8
	// next is the state after a state and a class of byte. A state is where its row
	// begins. Those that many bytes lead to have the first rows, and those in which
	// texts end the last ones: from ending on.
	next   []uint32
	ending uint32
	width  uint32
	// texts are those that end in a state, from ending on, by the number of the row.
	texts [][]int32
	// lead is how many bytes before one may belong to a text that ends with it.
	lead int
}

const (
	// lanes parts of a text are walked through side by side: a step has to wait for the
	// one before, and that of another lane has not.
	lanes = 4
	// lane is how long such a part is. It begins lead bytes early.
	lane = 2 << 10
)

// hit is a state in which texts end, and behind which byte of its lane.
type hit struct{ at, state uint32 }

// hits are those of each lane, kept from one walk to the next.
type hits [lanes][]hit

// trie is an automaton that is built: rows in the order in which they were made.
type trie struct {
	width uint32
	next  []uint32
	texts [][]int32
}

// grow adds a row and returns its number.
func (t *trie) grow() uint32 {
	t.next = append(t.next, make([]uint32, t.width)...)
	t.texts = append(t.texts, nil)
	return uint32(len(t.texts) - 1)
}

// newAutomaton returns one for texts in lower case.
func newAutomaton(texts []string) (*automaton, error) {
	a := &automaton{}
	known := 0
	for _, text := range texts {
		a.lead = max(a.lead, len(text)-1)
		for i := range len(text) {
			if c := text[i]; a.class[c] == 0 {
				known++
				a.class[c], a.class[upperByte(c)] = uint8(known), uint8(known)
			}
		}
	}
	if known > math.MaxUint8 || a.lead >= lane {
		return nil, errors.New("the texts have too many different bytes, or one is too long")
	}
	t := &trie{width: uint32(known + 1)}
	t.grow()
	for which, text := range texts {
		state := uint32(0)
		for i := range len(text) {
			at := state*t.width + uint32(a.class[text[i]])
			if t.next[at] == 0 {
				to := t.grow()
				t.next[at] = to
			}
			state = t.next[at]
		}
		t.texts[state] = append(t.texts[state], int32(which))
	}
	a.lay(t, t.link())
	return a, nil
}

// link has each state without a way on go where the longest end of it that begins a
// text goes. It returns the states, those first that few bytes lead to.
func (t *trie) link() []uint32 {
	fail := make([]uint32, len(t.texts))
	order := []uint32{0}
	for _, state := range t.next[:t.width] {
		if state != 0 {
			order = append(order, state)
		}
	}
	for i := 1; i < len(order); i++ {
		state := order[i]
		t.texts[state] = append(t.texts[state], t.texts[fail[state]]...)
		for class := range t.width {
			at, behind := state*t.width+class, t.next[fail[state]*t.width+class]
			if to := t.next[at]; to != 0 {
				fail[to] = behind
				order = append(order, to)
			} else {
				t.next[at] = behind
			}
		}
	}
	return order
}

// lay writes the rows in their order, those last in which texts end.
func (a *automaton) lay(t *trie, order []uint32) {
	a.width = t.width
	row := make([]uint32, len(order))
	placed := uint32(0)
	for _, ending := range []bool{false, true} {
		if ending {
			a.ending = placed
		}
		for _, state := range order {
			if (len(t.texts[state]) > 0) != ending {
				continue
			}
			row[state] = placed
			placed += a.width
			if ending {
				a.texts = append(a.texts, t.texts[state])
			}
		}
	}
	a.next = make([]uint32, placed)
	for state, to := range row {
		for class := range a.width {
			a.next[to+class] = row[t.next[uint32(state)*t.width+class]]
		}
	}
}

// walk calls found for each of the texts that is in a text, with where it ends, in the
// order of the ends. Its hits are no other walk's at the same time.
func (a *automaton) walk(text string, h *hits, found func(end int, which int32)) {
	at := min(a.lead, len(text))
	a.step(text, 0, at, found)
	for ; len(text)-at >= lanes*lane; at += lanes * lane {
		a.abreast(text[at-a.lead:at+lanes*lane], h)
		for i := range h {
			for _, hit := range h[i] {
				for _, which := range a.ends(hit.state) {
					found(at+i*lane+int(hit.at), which)
				}
			}
		}
	}
	a.step(text, at, len(text), found)
}

func (a *automaton) ends(state uint32) []int32 { return a.texts[(state-a.ending)/a.width] }

// step walks through text[from:to], one byte after the other.
func (a *automaton) step(text string, from, to int, found func(end int, which int32)) {
	state := uint32(0)
	for i := max(0, from-a.lead); i < to; i++ {
		if state = a.next[state+uint32(a.class[text[i]])]; state >= a.ending && i >= from {
			for _, which := range a.ends(state) {
				found(i+1, which)
			}
		}
	}
}

// abreast walks through the lanes of a text, the first of which begins behind its lead.
func (a *automaton) abreast(text string, h *hits) {
	next, ending, class := a.next, a.ending, &a.class
	var s0, s1, s2, s3 uint32
	t0 := text[:a.lead]
	t1, t2, t3 := text[lane:][:len(t0)], text[2*lane:][:len(t0)], text[3*lane:][:len(t0)]
	for i := range len(t0) {
		s0, s1 = next[s0+uint32(class[t0[i]])], next[s1+uint32(class[t1[i]])]
		s2, s3 = next[s2+uint32(class[t2[i]])], next[s3+uint32(class[t3[i]])]
	}
	text = text[a.lead:]
	h0, h1, h2, h3 := h[0][:0], h[1][:0], h[2][:0], h[3][:0]
	t0, t1, t2, t3 = text[:lane], text[lane:][:lane], text[2*lane:][:lane], text[3*lane:][:lane]
	for i := range lane {
		s0, s1 = next[s0+uint32(class[t0[i]])], next[s1+uint32(class[t1[i]])]
		s2, s3 = next[s2+uint32(class[t2[i]])], next[s3+uint32(class[t3[i]])]
		if s0 >= ending {
			h0 = append(h0, hit{uint32(i + 1), s0})
		}
		if s1 >= ending {
			h1 = append(h1, hit{uint32(i + 1), s1})
		}
		if s2 >= ending {
			h2 = append(h2, hit{uint32(i + 1), s2})
		}
		if s3 >= ending {
			h3 = append(h3, hit{uint32(i + 1), s3})
		}
	}
	*h = hits{h0, h1, h2, h3}
}
