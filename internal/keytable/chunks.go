package keytable

import (
	"fmt"
	"strings"
)

// chunks is a list that grows without moving what it holds: no time at which two
// copies are in memory.
type chunks[T any] struct {
	list []*[chunkSize]T
	n    uint32
}

const chunkSize = 1024

// grow adds one and returns its number.
func (c *chunks[T]) grow() uint32 {
	if c.n%chunkSize == 0 {
		c.list = append(c.list, new([chunkSize]T))
	}
	c.n++
	return c.n - 1
}

func (c *chunks[T]) at(i uint32) *T { return &c.list[i/chunkSize][i%chunkSize] }

// take returns the number of a free one, or of a new one.
func take[T any](free *[]uint32, all *chunks[T]) uint32 {
	if n := len(*free); n > 0 {
		at := (*free)[n-1]
		*free = (*free)[:n-1]
		return at
	}
	return all.grow()
}

func planName(rules *Rules) string {
	return fmt.Sprintf("%g/%d/%q", rules.PerSecond, rules.Burst, strings.Join(rules.Scopes, "\x00"))
}
