// Package spelling finds what somebody meant who has misspelt a word. It is pure.
package spelling

import "strings"

// maxWord is how many bytes of a word are compared.
const maxWord = 64

// Nearest returns the known word that differs from another one by the fewest changes,
// and by at most most: insertions, deletions, replacements and swaps of neighbours,
// whatever the case. Of several the first counts; it is empty if there is none. The
// cost is bounded by the first 64 bytes of each word.
func Nearest(word string, known []string, most int) string {
	best, distance := "", most+1
	for _, k := range known {
		if d := changes(strings.ToLower(word), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	return best
}

func changes(a, b string) int {
	a, b = a[:min(len(a), maxWord)], b[:min(len(b), maxWord)]
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
