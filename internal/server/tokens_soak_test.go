//go:build soak

package server_test

// rotationsUnderLoad is how often the key rotates under load.
const rotationsUnderLoad = 20
