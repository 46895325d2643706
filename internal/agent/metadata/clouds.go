package metadata

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	googlePrefix = "/computeMetadata/v1/instance/service-accounts/"
	azurePath    = "/metadata/identity/oauth2/token"
)

// google answers as Google's metadata server does; the service account is the name of
// the token. What is asked for must be what it has, neither more nor less.
func (h *Handler) google(w http.ResponseWriter, r *http.Request, rest string) *refusal {
	w.Header().Set("Metadata-Flavor", "Google")
	w.Header().Set("Server", "Metadata Server for VM")
	if values := r.Header.Values("Metadata-Flavor"); len(values) != 1 || values[0] != "Google" {
		return no(http.StatusForbidden, "the header Metadata-Flavor: Google is missing")
	}
	if r.Method != http.MethodGet {
		return no(http.StatusMethodNotAllowed, "ask with GET")
	}
	name, what, _ := strings.Cut(rest, "/")
	query := r.URL.Query()
	switch what {
	case "token":
		token, given, err := h.token(r, name)
		if err != nil {
			return err
		}
		if asked := strings.FieldsFunc(query.Get("scopes"), func(c rune) bool { return c == ',' || c == ' ' }); len(asked) > 0 && !same(asked, given.Scopes) {
			return no(http.StatusBadRequest, "the scopes must be those of the agent's configuration, or left out")
		}
		answer(w, http.StatusOK, h.bodyOf(&token))
	case "identity":
		token, given, err := h.token(r, name)
		if err != nil {
			return err
		}
		if !same([]string{query.Get("audience")}, given.Audiences) {
			return no(http.StatusBadRequest, "the audience must be that of the agent's configuration")
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprint(w, token.Value.RevealString())
	default:
		return no(http.StatusNotFound, "only token and identity are answered here")
	}
	return nil
}

// azure answers as Azure's instance metadata service does, for who sends the header
// Metadata, and where there is a secret as App Service does, for who shows that in the
// header X-IDENTITY-HEADER. The identity, client_id, is the name of the token; without
// it the resource decides. The resource must be the token's only audience.
func (h *Handler) azure(w http.ResponseWriter, r *http.Request) *refusal {
	if h.rules.Authorization.Len() > 0 {
		values := r.Header.Values("X-Identity-Header")
		if len(values) != 1 || subtle.ConstantTimeCompare([]byte(values[0]), h.rules.Authorization.Reveal()) != 1 {
			return no(http.StatusUnauthorized, "the header X-IDENTITY-HEADER must be what is in the agent's authorizationFile")
		}
	} else if values := r.Header.Values("Metadata"); len(values) != 1 || !strings.EqualFold(values[0], "true") {
		return no(http.StatusBadRequest, "the header Metadata: true is missing")
	}
	if r.Method != http.MethodGet {
		return no(http.StatusMethodNotAllowed, "ask with GET")
	}
	query := r.URL.Query()
	resource := query.Get("resource")
	name, err := h.identity(query.Get("client_id"), resource)
	if err != nil {
		return err
	}
	token, _, err := h.token(r, name)
	if err != nil {
		return err
	}
	left := strconv.Itoa(h.bodyOf(&token).Expires)
	answer(w, http.StatusOK, map[string]string{
		"access_token": token.Value.RevealString(), "client_id": name, "resource": resource, "token_type": token.Type,
		"expires_in": left, "ext_expires_in": left,
		"expires_on": strconv.FormatInt(token.Expires.Unix(), 10), "not_before": strconv.FormatInt(token.Issued.Unix(), 10),
	})
	return nil
}

// identity is the name of the token for a resource. Clients ask again after 404, as if
// the service were not there yet: what is not configured is a bad request.
func (h *Handler) identity(name, resource string) (string, *refusal) {
	if name != "" {
		given, ok := h.rules.Tokens[name]
		switch {
		case !ok:
			return "", no(http.StatusBadRequest, "the agent's configuration names no token as client_id does")
		case !same([]string{resource}, given.Audiences):
			return "", no(http.StatusBadRequest, "the resource must be the audience of the agent's configuration")
		}
		return name, nil
	}
	var names []string
	for name, given := range h.rules.Tokens {
		if same([]string{resource}, given.Audiences) {
			names = append(names, name)
		}
	}
	if len(names) != 1 {
		return "", no(http.StatusBadRequest, fmt.Sprintf("the resource is the only audience of %d tokens of the agent's configuration; where there are several, name one as client_id", len(names)))
	}
	return names[0], nil
}

func same(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
