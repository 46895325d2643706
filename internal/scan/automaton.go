package scan

import "errors"

// automaton finds texts in another in one pass (Aho and Corasick, 1975), whatever the
// case of letters of ASCII: one step for each byte, failure links resolved, in a table
// of classes of bytes. Its methods may be called concurrently.
type automaton struct {
	// class is that of a byte: texts tell no more of them apart.
	class [256]uint8
	// next is the state after a state and a class of byte; ends is set in it if texts
	// end there.
	next []uint32
	// texts are those that end in a state.
	texts [][]int32
}

// classes is how many classes of bytes there are at most, and ends a bit that no
// number of a state has.
const (
	classes = 64
	ends    = 1 << 31
)

// newAutomaton returns one for texts in lower case.
func newAutomaton(texts []string) (*automaton, error) {
	a := &automaton{}
	known := uint8(0)
	for _, text := range texts {
		for i := range len(text) {
			if c := text[i]; a.class[c] == 0 {
				known++
				a.class[c], a.class[upperByte(c)] = known, known
			}
		}
	}
	if known >= classes {
		return nil, errors.New("the texts have too many different bytes")
	}
	a.grow()
	for which, text := range texts {
		state := uint32(0)
		for i := range len(text) {
			at := state*classes + uint32(a.class[text[i]])
			if a.next[at] == 0 {
				a.next[at] = a.grow()
			}
			state = a.next[at]
		}
		a.texts[state] = append(a.texts[state], int32(which))
	}
	a.link()
	return a, nil
}

// grow adds a state.
func (a *automaton) grow() uint32 {
	a.next = append(a.next, make([]uint32, classes)...)
	a.texts = append(a.texts, nil)
	return uint32(len(a.texts) - 1)
}

// link has each state without a way on go where the longest end of it that begins a
// text goes.
func (a *automaton) link() {
	fail := make([]uint32, len(a.texts))
	var queue []uint32
	for _, state := range a.next[:classes] {
		if state != 0 {
			queue = append(queue, state)
		}
	}
	for len(queue) > 0 {
		state := queue[0]
		queue = queue[1:]
		a.texts[state] = append(a.texts[state], a.texts[fail[state]]...)
		for class := range uint32(classes) {
			at, behind := state*classes+class, a.next[fail[state]*classes+class]
			if to := a.next[at]; to != 0 {
				fail[to] = behind
				queue = append(queue, to)
			} else {
				a.next[at] = behind
			}
		}
	}
	for at, to := range a.next {
		if len(a.texts[to]) > 0 {
			a.next[at] |= ends
		}
	}
}

// walk calls found for each of the texts that is in a text, with where it ends.
func (a *automaton) walk(text string, found func(end int, which int32)) {
	state := uint32(0)
	for i := range len(text) {
		state = a.next[state&^ends*classes+uint32(a.class[text[i]])]
		if state&ends != 0 {
			for _, which := range a.texts[state&^ends] {
				found(i+1, which)
			}
		}
	}
}
