// Package sum is something to make mistakes in.
package sum

type summer struct{ count int }

func (s *summer) add(numbers ...int) (total int) {
	for _, n := range numbers {
		total += n
	}
	return total
}

func (s *summer) note() { s.count++ }
