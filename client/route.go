package client

import (
	"context"
	"net/http"
	"net/url"
)

// Route is the way to the servers of a Config, for programs that speak the API of
// package gen themselves: it stays with one server as long as that one answers, and
// goes to the next when it does not, as every client of this package does. It is safe
// for concurrent use and implements the HTTP client of generated code.
type Route struct {
	rt *roundTripper
}

// NewRoute returns a route; it does not connect yet. Of cfg it uses Address, RootCAs,
// CACertFile, HTTPClient, Now, and Token unless that is nil: without one the requests
// go out with the Authorization header that they have. The error wraps ErrConfig.
func NewRoute(cfg Config) (*Route, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	w, err := newWire(cfg)
	if err != nil {
		return nil, err
	}
	return &Route{rt: w.http}, nil
}

// Address is the base URL for generated clients. The requests go to it or to another
// server of the route.
func (r *Route) Address() string { return r.rt.servers.first.String() }

// Servers is how many servers there are.
func (r *Route) Servers() int { return r.rt.servers.number() }

// Do sends a request to the present server. One that cannot be reached, or stands
// behind a proxy that says so, is left for the next; not so when the context of the
// request was cancelled.
func (r *Route) Do(req *http.Request) (*http.Response, error) { return r.rt.Do(req) }

// Current names the present server.
func (r *Route) Current() *url.URL { return r.rt.servers.current() }

// Leave goes to the next server, unless from was left already.
func (r *Route) Leave(from *url.URL) { r.rt.servers.leave(from) }

// Ready asks the present server whether it serves.
func (r *Route) Ready(ctx context.Context) error {
	return (&wire{http: r.rt}).ready(ctx, r.Current())
}

// Renew makes later requests dial anew, for example because the connection seems to be
// dead. What is under way ends by itself.
func (r *Route) Renew() { r.rt.renew() }
