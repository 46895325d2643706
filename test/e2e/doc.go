// Package e2e runs the built program as its users do: a server from a
// configuration file, and the command line against it, on a real PostgreSQL.
package e2e
