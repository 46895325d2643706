// Package console serves Keyturn's built-in pages.
//
// Guarantees: a page is static, the same for everybody, and knows nothing; what it
// shows and does it asks of the API, with the token that its reader gives it, so that
// roles, limits and the audit log apply as for every other client. The token is kept
// in a variable of the script alone: never in storage, in a cookie or in an address.
// Nothing is loaded from elsewhere; script and style are allowed by their hashes, and
// what the API says is shown as text only. Safe for concurrent use.
package console
