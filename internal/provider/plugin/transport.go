package plugin

import (
	"context"

	"github.com/keyturn/keyturn/provider"
)

// Transport carries a request to one plugin and brings its answer back.
//
// Call returns by the deadline of ctx, reads at most MaxAnswer bytes of an answer
// and one more, keeps no reference to the request, and may be called
// concurrently. Its errors have no secret of the request in them; what the plugin
// wrote elsewhere they quote through request.Scrub. Errors that wrap
// provider.ErrSilent or a network's error say that the plugin gave no answer.
type Transport interface {
	Call(ctx context.Context, env provider.Env, request Request) ([]byte, error)
}

// Request is one request on its way.
type Request struct {
	// ID is unique, Method what is asked.
	ID, Method string
	// Body is the message. It holds secrets.
	Body []byte
	// Scrub knows them.
	Scrub *Scrubber
}
