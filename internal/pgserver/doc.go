// Package pgserver starts private PostgreSQL servers from the programs that are
// installed on this machine: a primary and any number of hot standbys, for
// demonstrations, benchmarks and tests.
//
// Guarantees: everything lives in one temporary folder that Close removes; the
// servers listen on 127.0.0.1 at free ports and on nothing else, not even a Unix
// socket; every login needs SCRAM-SHA-256 with a password of 128 random bits or
// more; run as root, the servers run as the user "postgres", or as 65534 where
// that user does not exist; they end when the process that started them ends,
// even by SIGKILL.
//
// PostgreSQL 14 or newer is expected.
package pgserver
