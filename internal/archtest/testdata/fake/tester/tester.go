// Package tester serves tests.
package tester
