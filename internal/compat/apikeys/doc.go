// Package apikeys is the HTTP side of API keys: plain JSON, so that any service
// and any client can speak to it without a library.
//
// Guarantees: whatever is wrong with a key, the answer is the same bytes. A body is
// bounded. Nothing is decided here.
package apikeys
