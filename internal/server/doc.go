// Package server wires Keyturn's server: it is the only place that names
// implementations of stores, keepers and providers.
//
// Guarantees: TLS always, 1.2 or newer; bodies, header sizes, times and rates
// are bounded; a stop lets calls under way end; files that hold secrets are
// created with mode 0600 and refused when others can read them.
package server
