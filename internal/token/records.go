package token

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// The kinds of documents.
const (
	// kindSet: what is published of a key, by its name.
	kindSet = "signing-set"
	// kindIssuer: the key that has an issuer, by the issuer's path.
	kindIssuer = "signing-issuer"
	// kindFetch: when a verifier last fetched its set, by key and endpoint.
	kindFetch = "signing-fetch"
	// kindNode: what a server node serves, by its name.
	kindNode = "signing-node"
	// kindUse: until when tokens of a version may live, by key, version and process.
	kindUse = "signing-use"
)

// set is what is published of a key.
type set struct {
	Issuer    string        `json:"issuer"`
	TokenLife time.Duration `json:"tokenLife"`
	CacheLife time.Duration `json:"cacheLife"`
	// LongestLife is the longest that TokenLife ever was.
	LongestLife time.Duration `json:"longestLife,omitempty"`
	// Governed: what the key's config says was passed on when it was applied. A change
	// of what is listed leaves it alone, since it may have begun before.
	Governed bool `json:"governed,omitempty"`
	// Former are issuers of before, whose sets are served on for a time.
	Former []former `json:"former,omitempty"`
	// External: applications sign, not the server.
	External bool `json:"external,omitempty"`
	// Seq grows with every change of what is listed.
	Seq uint64 `json:"seq"`
	// LongLife is a longer cache life of before; sets with it may be held until LongUntil.
	LongLife  time.Duration `json:"longLife,omitempty"`
	LongUntil time.Time     `json:"longUntil,omitzero"`
	// Endpoints by name.
	Endpoints map[string]endpoint `json:"endpoints,omitempty"`
	// Versions in the order of their numbers.
	Versions []version `json:"versions,omitempty"`
}

// former is an issuer that the key had before.
type former struct {
	Issuer string `json:"issuer"`
	// Until is when the last token with it has expired.
	Until time.Time `json:"until"`
}

// endpoint is who reads a set.
type endpoint struct {
	// Served: the endpoint had a key at some time, so that caches may hold a set.
	Served bool           `json:"served,omitempty"`
	Shared bool           `json:"shared,omitempty"`
	From   []netip.Prefix `json:"from,omitempty"`
}

// version is one public key.
type version struct {
	Number    key.Version     `json:"number"`
	KeyID     string          `json:"kid"`
	Algorithm string          `json:"alg"`
	JWK       json.RawMessage `json:"jwk"`
	// At is where it is listed, by endpoint.
	At map[string]listing `json:"at"`
}

// listing is how a version stands at an endpoint.
type listing struct {
	Listed bool   `json:"listed,omitempty"`
	Fence  uint64 `json:"fence"`
	// Seq is that of the first set in which this is so; 0 when it was always so.
	Seq uint64 `json:"seq,omitempty"`
	// Rev is a revision of the document in which this was so; 0 stands for its present
	// one. What is written to it later, such as a fence, need not be served anywhere.
	Rev uint64 `json:"rev,omitempty"`
	// First: nobody could hold another set of this endpoint.
	First bool `json:"first,omitempty"`
	// Everywhere is when every node was known to serve it so; zero until then.
	Everywhere time.Time `json:"everywhere,omitzero"`
	// Cache is how long caches may live that were filled before.
	Cache time.Duration `json:"cache,omitempty"`
}

func (s *set) version(number key.Version) *version {
	for i := range s.Versions {
		if s.Versions[i].Number == number {
			return &s.Versions[i]
		}
	}
	return nil
}

// fetch is the last one of a verifier.
type fetch struct {
	Seq     uint64    `json:"seq"`
	At      time.Time `json:"at"`
	Address string    `json:"address"`
}

// nodeRecord is what a server node says of itself.
type nodeRecord struct {
	// Rev: it serves all that was written up to this revision.
	Rev uint64 `json:"rev"`
	// At is when it said so: it serves nothing from Outage after it on.
	At   time.Time `json:"at"`
	Left bool      `json:"left,omitempty"`
}

// use is what a process knows of the tokens of a version.
type use struct {
	// Until is when the last token that it may have signed expires.
	Until time.Time `json:"until"`
	// Node is the server node, Expiries how many tokens expire by when.
	Node     string   `json:"node"`
	Issued   uint64   `json:"issued,omitempty"`
	Expiries []expiry `json:"expiries,omitempty"`
}

// expiry is how many tokens have expired by a time and not by the one before.
type expiry struct {
	By     time.Time `json:"by"`
	Tokens uint64    `json:"tokens"`
}

func decode[T any](doc *store.Doc) (T, error) {
	var record T
	if err := json.Unmarshal(doc.Body, &record); err != nil {
		return record, fmt.Errorf("stored document %s %s is damaged: %w", doc.Kind, doc.Name, err)
	}
	return record, nil
}

func fetchName(name key.Name, endpoint string) string { return string(name) + "@" + endpoint }

func usePrefix(name key.Name, v key.Version) string { return fmt.Sprintf("%s@%d/", name, uint64(v)) }

// issuerPath is the part of an issuer by which its sets are found.
func issuerPath(issuer string) string {
	_, rest, _ := strings.Cut(issuer, "://")
	_, path, ok := strings.Cut(rest, "/")
	if !ok {
		return ""
	}
	return "/" + path
}
