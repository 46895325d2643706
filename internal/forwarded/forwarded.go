// Package forwarded is how a gateway says for whom it sends a request on: two
// headers, which the gateway writes and the centre reads.
//
// Guarantees: Parse accepts what Set writes, and gives back the same; it never
// returns an address that nobody vouches for; of two headers where one is meant it
// takes none. Functions may be called concurrently.
package forwarded

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/keyturn/keyturn/secret"
)

const (
	// Gateway is the header with the gateway's own token; in an answer, with Refused
	// as its value, it says that the gateway was refused and not its client.
	Gateway = "Keyturn-Gateway"
	// ClientAddress is the header with the IP address that the client connected from.
	ClientAddress = "Keyturn-Client-Address"
	// Refused is the value of Gateway in answers.
	Refused = "refused"
)

// ErrInvalid is wrapped by every error of Parse.
var ErrInvalid = errors.New("invalid headers of a gateway")

// Claim is what a gateway says of a request.
type Claim struct {
	// Token is the gateway's own.
	Token secret.Value
	// Client is where the request comes from: an address without a zone; one of IPv4 is
	// in its own form.
	Client netip.Addr
}

// Set writes the headers of a request that a gateway sends on, in place of what the
// client may have written there. A client without an address cannot be vouched for:
// Parse refuses it.
func Set(h http.Header, token string, client netip.Addr) {
	h.Set(Gateway, token)
	h.Set(ClientAddress, client.Unmap().WithZone("").String())
}

// Parse reads the headers of a request. ok is false when it has none of them. It
// fails with ErrInvalid when one is there without the other, is there twice, or is
// malformed; whether the token is good is not its concern.
func Parse(h http.Header) (claim Claim, ok bool, err error) {
	tokens, addresses := h.Values(Gateway), h.Values(ClientAddress)
	switch {
	case len(tokens) == 0 && len(addresses) == 0:
		return Claim{}, false, nil
	case len(tokens) == 0:
		return Claim{}, false, fmt.Errorf("%w: %s: it is believed beside %s only, which is missing; only a gateway sends it, and a proxy between it and the server must let both through", ErrInvalid, ClientAddress, Gateway)
	case len(addresses) == 0:
		return Claim{}, false, fmt.Errorf("%w: %s: it is missing; a gateway sends it beside %s", ErrInvalid, ClientAddress, Gateway)
	case len(tokens) > 1 || len(addresses) > 1:
		return Claim{}, false, fmt.Errorf("%w: %s, %s: each may be there once; one gateway does not stand behind another", ErrInvalid, Gateway, ClientAddress)
	case tokens[0] == "":
		return Claim{}, false, fmt.Errorf("%w: %s: it is empty; set it to the gateway's token", ErrInvalid, Gateway)
	}
	client, err := netip.ParseAddr(addresses[0])
	if err != nil || client.Zone() != "" || client.IsUnspecified() {
		return Claim{}, false, fmt.Errorf("%w: %s: %q is not the IP address of a client; write for example 10.0.3.7", ErrInvalid, ClientAddress, clip(addresses[0]))
	}
	return Claim{Token: secret.NewString(tokens[0]), Client: client.Unmap()}, true, nil
}

// clip bounds what an error quotes.
func clip(s string) string { return s[:min(len(s), 64)] }

// IsRefusal reports whether an answer, by its headers or the metadata of its error,
// is the refusal of a gateway and says nothing of its client.
func IsRefusal(h http.Header) bool { return h.Get(Gateway) == Refused }
