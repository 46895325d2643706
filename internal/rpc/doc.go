// Package rpc is the thin transport: it turns calls of the API into calls of the
// engine, the hub and the identity registry, and their errors into codes.
//
// Guarantees: every call but Join is authenticated, and authorised before
// anything else is done; what is denied is entered into the audit log; one
// function maps errors to codes; secrets leave only in the answers of Watch,
// Poll, GetSecret, Join and CreateToken.
package rpc
