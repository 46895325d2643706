package apikeys

import (
	"context"
	"net/http"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/key"
)

// Uses tells how the versions of a key were used.
type Uses interface {
	Versions(ctx context.Context, name key.Name) ([]apikey.VersionUse, error)
	Clients(ctx context.Context, prefix, after string, limit int) ([]apikey.ClientUse, string, error)
}

// UsesConfig is what the handler needs; all fields are required.
type UsesConfig struct {
	Uses Uses
	// Principal returns who made a request, if it may read.
	Principal func(ctx context.Context) (authz.Principal, error)
	Refuse    func(w http.ResponseWriter, r *http.Request, err error)
}

// NewUses returns a handler that tells operators who used which version of the key
// that the query names, and when.
func NewUses(config UsesConfig) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		principal, err := config.Principal(r.Context())
		if err != nil {
			config.Refuse(w, r, err)
			return
		}
		name, err := key.ParseName(r.URL.Query().Get("key"))
		if err != nil {
			answer(w, http.StatusBadRequest, Problem{"key: " + err.Error()})
			return
		}
		var list []apikey.VersionUse
		if covers(&principal, name) {
			if list, err = config.Uses.Versions(r.Context(), name); err != nil {
				answer(w, http.StatusServiceUnavailable, Problem{"the uses cannot be read now; try again later"})
				return
			}
		}
		if len(list) == 0 {
			answer(w, http.StatusNotFound, Problem{"there is no API key of that name with a version, or your token does not cover it"})
			return
		}
		answer(w, http.StatusOK, struct {
			Key      key.Name            `json:"key"`
			Versions []apikey.VersionUse `json:"versions"`
		}{name, list})
	})
}

// clientPage is how many versions one answer lists.
const clientPage = 200

// NewClients returns a handler that lists the versions of API keys, whose they are,
// and when they were used last.
func NewClients(config UsesConfig) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		principal, err := config.Principal(r.Context())
		if err != nil {
			config.Refuse(w, r, err)
			return
		}
		query := r.URL.Query()
		list, next, err := config.Uses.Clients(r.Context(), query.Get("prefix"), query.Get("after"), clientPage)
		if err != nil {
			answer(w, http.StatusServiceUnavailable, Problem{"the uses cannot be read now; try again later"})
			return
		}
		covered := make([]apikey.ClientUse, 0, len(list))
		for i := range list {
			if covers(&principal, list[i].Key) {
				list[i].By, list[i].RefusedBy = nil, nil // these are told key by key
				covered = append(covered, list[i])
			}
		}
		answer(w, http.StatusOK, struct {
			Versions []apikey.ClientUse `json:"versions"`
			// Next goes on where this answer ends; empty at the end of the list.
			Next string `json:"next,omitempty"`
		}{covered, next})
	})
}
