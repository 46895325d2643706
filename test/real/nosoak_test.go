//go:build !soak

package real

// soaking: every point is tried on every store; without it some of them on PostgreSQL.
const soaking = false
