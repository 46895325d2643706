//go:build soak

package real

// soaking: every point is tried on every store.
const soaking = true
