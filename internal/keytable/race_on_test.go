//go:build race

package keytable_test

// underRaceDetector: pools drop what they are given at random.
const underRaceDetector = true
