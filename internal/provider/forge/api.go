package forge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const (
	maxAnswer = 4 << 20 // bytes of one page
	maxPages  = 50
	pageSize  = 50 // Gitea gives no more, GitHub 100
)

// deployKey is a deploy key as both APIs have it.
type deployKey struct {
	ID       int64  `json:"id"`
	Title    string `json:"title"`
	Key      string `json:"key"`
	ReadOnly bool   `json:"read_only"`
	// LastUsed is GitHub's alone.
	LastUsed *time.Time `json:"last_used"`
}

// is reports whether it is the public key of a version; forges drop the comment.
func (k deployKey) is(public string) bool { return body(k.Key) == body(public) && public != "" }

// body is kind and key of an SSH public key, without comment.
func body(public string) string {
	fields := strings.Fields(public)
	return strings.Join(fields[:min(2, len(fields))], " ")
}

// token returns the present access token.
func (s *system) token(ctx context.Context) (secret.Value, error) {
	admin := s.settings.admin
	if admin.key != "" {
		if s.resolve == nil {
			return secret.Value{}, provider.Permanent(errors.New("forge: admin names a key, but this server lends none"), "use file")
		}
		material, err := s.resolve(ctx, admin.key)
		if err != nil {
			return secret.Value{}, provider.Hint(fmt.Errorf("forge: the access token from key %s: %w", admin.key, err), "rotate that key first")
		}
		value := material.Secrets[admin.field]
		if value.Len() == 0 {
			return secret.Value{}, provider.Permanent(fmt.Errorf("forge: key %s has no secret %q", admin.key, admin.field), "name the right field in admin.field")
		}
		return value, nil
	}
	content, err := s.readFile(admin.file)
	if err != nil {
		return secret.Value{}, provider.Hint(fmt.Errorf("forge: the access token: %w", err), "make the file readable for the server's user")
	}
	defer clear(content)
	text := bytes.TrimSpace(content)
	if len(text) == 0 || bytes.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return secret.Value{}, provider.Hint(fmt.Errorf("forge: file %s has no access token", admin.file), "write the token into it, on one line")
	}
	return secret.New(text), nil
}

// statusError is an answer other than success.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d %q", e.status, e.text) }

// ask calls the API below the repository. into may be nil.
func (s *system) ask(ctx context.Context, method, what string, path []string, query string, send, into any) error {
	token, err := s.token(ctx)
	if err != nil {
		return provider.At(endpoint, err)
	}
	target := s.settings.api.JoinPath(append([]string{"repos", s.settings.owner, s.settings.repo}, path...)...)
	target.RawQuery = query
	var content io.Reader = http.NoBody
	if send != nil {
		encoded, err := json.Marshal(send)
		if err != nil {
			return fmt.Errorf("forge: %s: %w", what, err)
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), content)
	if err != nil {
		return fmt.Errorf("forge: %s: %w", what, err)
	}
	request.Header.Set("User-Agent", "keyturn")
	request.Header.Set("Content-Type", "application/json")
	switch s.settings.forge {
	case github:
		request.Header.Set("Authorization", "Bearer "+token.RevealString())
		request.Header.Set("Accept", "application/vnd.github+json")
		request.Header.Set("X-GitHub-Api-Version", "2022-11-28")
	case gitea:
		request.Header.Set("Authorization", "token "+token.RevealString())
		request.Header.Set("Accept", "application/json")
	}
	response, err := s.http.Do(request)
	if err != nil {
		return provider.At(endpoint, fmt.Errorf("forge: %s: %w", what, err))
	}
	defer func() { _ = response.Body.Close() }() // it was read
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return provider.At(endpoint, fmt.Errorf("forge: %s: %w", what, err))
	}
	if response.StatusCode/100 != 2 {
		return s.explain(what, response, answer)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return provider.At(endpoint, fmt.Errorf("forge: %s: the answer: %w", what, err))
	}
	return nil
}

// explain says what an answer means, and what to do.
func (s *system) explain(what string, response *http.Response, answer []byte) error {
	var said struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(answer, &said) // an answer that is no JSON says nothing
	status := &statusError{status: response.StatusCode, text: said.Message[:min(len(said.Message), 200)]}
	err := provider.At(endpoint, fmt.Errorf("forge: %s of %s/%s: %w", what, s.settings.owner, s.settings.repo, status))
	limited := response.Header.Get("Retry-After") != "" || response.Header.Get("X-Ratelimit-Remaining") == "0"
	switch {
	case status.status == http.StatusUnauthorized, status.status == http.StatusForbidden && !limited:
		return provider.Hint(fmt.Errorf("%w: %w", provider.ErrDenied, err), "admin must lead to a token that administers the repository")
	case status.status == http.StatusNotFound:
		return provider.Permanent(err, "mend api and repository; forges also answer 404 to a token that may not administer the repository")
	case status.status/100 == 3:
		return provider.Permanent(err, "write the address that the forge redirects to into api")
	}
	return err // limits and breakdowns pass
}

func isStatus(err error, status int) bool {
	e := new(statusError)
	return errors.As(err, &e) && e.status == status
}

// list returns every deploy key of the repository.
func (s *system) list(ctx context.Context) ([]deployKey, error) {
	var all []deployKey
	for page := 1; page <= maxPages; page++ {
		var some []deployKey
		query := fmt.Sprintf("page=%d&limit=%d&per_page=%d", page, pageSize, pageSize)
		if err := s.ask(ctx, http.MethodGet, "list the deploy keys", []string{"keys"}, query, nil, &some); err != nil {
			return nil, err
		}
		if len(some) == 0 {
			return all, nil
		}
		all = append(all, some...)
	}
	return nil, provider.At(endpoint, fmt.Errorf("forge: the list of deploy keys has more than %d pages", maxPages))
}

func (s *system) add(ctx context.Context, title, public string) error {
	return s.ask(ctx, http.MethodPost, "add a deploy key", []string{"keys"}, "", map[string]any{"title": title, "key": public, "read_only": s.settings.readOnly}, nil)
}

func (s *system) remove(ctx context.Context, id int64) error {
	err := s.ask(ctx, http.MethodDelete, "delete a deploy key", []string{"keys", strconv.FormatInt(id, 10)}, "", nil, nil)
	if isStatus(err, http.StatusNotFound) {
		return nil
	}
	return err
}
