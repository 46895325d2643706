//go:build race

package apikeycheck_test

// underRaceDetector: pools drop what they are given at random.
const underRaceDetector = true
