//go:build !soak

package relay_test

// seeds is how many interleavings are drawn.
const seeds = 15
