// Package signals makes visible what the engine does: metrics, one trace per
// rotation, log lines and pages. It is the engine's Observer.
//
// Guarantees:
//
//   - Observing never blocks. What is told goes into a bounded queue; what does not
//     fit is dropped and counted in keyturn_signals_dropped_total.
//   - The trace ID is the rotation ID. Span IDs follow from the rotation, the phase
//     and the effect, so that a tree stays whole across restarts and server nodes.
//     Traces are never sampled out.
//   - The number of series is bounded whatever the number of keys, parties, regions
//     and cohorts: see Config.MaxKeys.
//   - A hold pages once per rotation and reason, whatever happens to the receiver in
//     between, and is resolved when it ends.
//   - Signals hold no secret: the material of versions never comes here.
//
// Metrics, spans and pages are told after the commit and can be lost when the
// process dies; the audit log cannot. Gauges are read from the engine and are
// right again after a restart.
package signals
