// Package enginetest is what tests of the engine and of its neighbours stand on: the
// configuration of an engine on an empty store, and a system in memory.
package enginetest
