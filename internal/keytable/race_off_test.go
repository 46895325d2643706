//go:build !race

package keytable_test

const underRaceDetector = false
