// Package sqlkey connects database/sql to a key whose versions change: new
// connections log in with the current version, and connections of another
// version are retired.
//
// Guarantees:
//   - Retirement never fails a query. A connection is never closed while it is
//     in use: the query, the transaction or the sql.Conn that holds it goes on
//     to its end, and then it is discarded.
//   - A connection of another version that is idle is closed within about
//     a second of the change, also when nobody uses the pool. After that only work that
//     is still under way keeps an old version in use; [Connector.Versions] tells.
//   - A new version becomes current only after a log-in with it has succeeded;
//     until then everybody keeps the old one, and the server hears of the failure.
//   - A log-in that is refused because the credential was just replaced is
//     repeated with the newer one (bounded).
//   - The wrapped driver keeps its abilities: an optional interface of
//     database/sql/driver that changes how database/sql behaves is present
//     exactly if the driver has it. Inside sql.Conn.Raw use [Unwrap] to get at
//     the driver's own connection.
package sqlkey
