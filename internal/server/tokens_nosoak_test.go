//go:build !soak

package server_test

const (
	// rotationsUnderLoad is how often the key rotates under load.
	rotationsUnderLoad = 1
	// cutOff: a node loses the store instead of being stopped.
	cutOff = false
)
