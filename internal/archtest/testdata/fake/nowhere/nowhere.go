// Package nowhere has no place.
package nowhere // want floor

// TODO: find one. (want leftover)

const word = "TODO in a string is data"
