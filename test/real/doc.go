// Package real tests Keyturn on real systems under real load: a PostgreSQL
// primary and a hot standby, applications that open new connections all the
// time, and the server as its users run it.
//
// Guarantees: nothing here stands in for a system that can be started; a missing
// one fails under CI=true.
package real
