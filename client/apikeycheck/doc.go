// Package apikeycheck verifies API keys in the process that was shown them, by a
// snapshot that the server pushes: without a request, and while no server answers.
//
// Guarantees:
//
//   - Check reads memory only, does not allocate and does not block.
//   - What is known is as of the server's last word, which comes every second. After
//     Config.MaxAge without one, or without a report that was taken, Check answers
//     ErrUnsure. A key that was refused at
//     the server is refused here as soon as the change arrives, and after MaxAge at
//     the latest; the server counts it as refused no earlier.
//   - A key that is not known is refused only when the server was heard of within
//     the last seconds; else it may be new, and Check answers ErrUnsure.
//   - With Config.Cache a restarted process lets keys in before a server answers, for as
//     long as the process before would have. A change is in the cache before it is
//     confirmed to the server: no key that counts as refused there is let in after a
//     restart, whenever the process ends. Times in the cache may be some seconds behind,
//     and lie never ahead.
//   - A clock that is set back prolongs nothing: the process measures by its own clock as
//     well, and does not use a cache of a time to come. Nor does standing still: what
//     waited for it meanwhile is fetched anew.
//   - The process holds keyed hashes, no keys. Whoever reads its memory can verify
//     keys, and show none.
//   - Uses are reported in batches, each at least once: what could not be reported is
//     kept, and what was taken without an answer is reported again.
//
// Rates are kept by each process for itself: n verifiers let in n times as many.
package apikeycheck
