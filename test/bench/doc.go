// Package bench measures Keyturn against the limit of the machine it runs on.
//
// Each benchmark measures ours and the floor in the same run: the floor does the
// same work outside (log-ins, durable commits, messages over TLS) with nothing
// around it, so that the ratio of the two says what Keyturn adds, also on a noisy
// or slow machine. Run it with make bench, or with -cpuprofile to see where the
// time goes: the server runs in the process of the benchmark, agents do not.
//
// Guarantees: a benchmark that cannot measure fails; it never reports a guess.
// A stated limit that is missed is printed, and fails the run only when it is
// missed by more than wideMargin and KEYTURN_BENCH_STRICT=1.
//
// Environment: KEYTURN_BENCH_JSON is the file that results are appended to, one
// object a line. KEYTURN_BENCH_BIN is a built keyturn; without it one is built.
// KEYTURN_BENCH_PEER is the command line of another server to compare the idle
// process with, and KEYTURN_BENCH_PEER_READY the URL that answers 200 once it is
// ready. KEYTURN_BENCH_OPENBAO is the path of an OpenBao, which is started in
// development mode to compare its creation of tokens.
package bench
