// Package memstore is a store in memory for simulated fleets: fast, without
// goroutines of its own, and with snapshots that can be put back.
//
// It keeps every guarantee of package store but durability: what was committed
// survives the engines that used it, not the process. Failing commits, full disks
// and crashes are the business of who wraps it.
package memstore
