package httpkeys

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// probeName is how our own tries call themselves; they do not count as use.
const probeName = "keyturn-probe"

// maxAnswer bounds what is read of one answer, in bytes.
const maxAnswer = 1 << 20

// system implements provider.System, provider.Meter and io.Closer.
type system struct {
	settings

	http *http.Client
}

// Mint implements provider.Issuer. It only makes up a key: nobody hears of it
// before Keyturn has sealed and stored it.
func (*system) Mint(_ context.Context, call provider.Call, request provider.MintRequest) (provider.Material, error) {
	return provider.Material{
		Attributes: map[string]string{"id": keyID(call.Key, request.Number)},
		Secrets:    map[string]secret.Value{"key": secret.NewString("kg_" + rand.Text())},
	}, nil
}

// keyID names a version at the service. Each version has a name of its own, so
// two of them can be accepted side by side.
func keyID(name key.Name, version key.Version) string { return string(name) + "@" + version.String() }

// Accept implements provider.Verifier. PUT may be repeated.
func (s *system) Accept(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	hash := sha256.Sum256(version.Material.Secrets["key"].Reveal())
	body, err := json.Marshal(map[string]string{"sha256": hex.EncodeToString(hash[:])})
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	_, err = s.admin(ctx, http.MethodPut, endpoint, call, version.Number, body)
	return err
}

// Refuse implements provider.Verifier. DELETE may be repeated; the version can
// come back, because Keyturn still has its material.
func (s *system) Refuse(ctx context.Context, call provider.Call, endpoint string, version provider.Version) error {
	_, err := s.admin(ctx, http.MethodDelete, endpoint, call, version.Number, nil)
	return err
}

// Probe implements provider.Verifier: it calls the service as a client would.
func (s *system) Probe(ctx context.Context, _ provider.Call, endpoint string, version provider.Version) (provider.Verdict, error) {
	where, err := s.endpoint(endpoint, "whoami")
	if err != nil {
		return 0, err
	}
	header := http.Header{"X-Api-Key": {version.Material.Secrets["key"].RevealString()}, "User-Agent": {probeName}}
	status, _, err := s.do(ctx, http.MethodGet, where, header, nil)
	switch {
	case err != nil:
		return 0, err
	case status == http.StatusOK:
		return provider.Accepted, nil
	case status == http.StatusUnauthorized:
		return provider.Refused, nil
	}
	// 403, 429, 503 say nothing about the key.
	return 0, fmt.Errorf("%s answered a try with status %d", endpoint, status)
}

// Usage implements provider.Meter: who used the version in the last minute.
func (s *system) Usage(ctx context.Context, call provider.Call, version provider.Version) (provider.Usage, error) {
	var usage provider.Usage
	for endpoint := range s.regions {
		answer, err := s.admin(ctx, http.MethodGet, endpoint, call, version.Number, nil)
		if err != nil {
			return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, provider.At(endpoint, err)) // a part is not a count
		}
		var clients map[string]int // requests by client
		if err := json.Unmarshal(answer, &clients); err != nil {
			return provider.Usage{}, fmt.Errorf("%w: %s sent no JSON object of numbers", provider.ErrNoData, endpoint)
		}
		for client, requests := range clients {
			if client == probeName || requests == 0 {
				continue
			}
			usage.Sessions += requests
			if len(usage.Holders) < provider.MaxHolders {
				usage.Holders = append(usage.Holders, provider.Holder{Endpoint: endpoint, Application: client, Sessions: requests})
			}
		}
	}
	return usage, nil
}

// Close implements io.Closer.
func (s *system) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

// admin calls the admin API about one version.
func (s *system) admin(ctx context.Context, method, endpoint string, call provider.Call, version key.Version, body []byte) ([]byte, error) {
	where, err := s.endpoint(endpoint, "keys", url.PathEscape(keyID(call.Key, version)))
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(s.adminTokenFile) // each time, so that it can rotate
	if err != nil {
		return nil, provider.Hint(fmt.Errorf("read the admin token: %w", err), "the server must be able to read adminTokenFile")
	}
	status, answer, err := s.do(ctx, method, where, http.Header{
		"Authorization": {"Bearer " + string(bytes.TrimSpace(token))},
		"Fence":         {strconv.FormatUint(call.Fence, 10)},
	}, body)
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return nil, provider.Permanent(fmt.Errorf("%s refused the admin token with status %d", endpoint, status), "put a valid token into adminTokenFile")
	case status/100 != 2:
		return nil, fmt.Errorf("%s answered %s with status %d", endpoint, method, status)
	}
	return answer, nil
}

func (s *system) do(ctx context.Context, method string, where *url.URL, header http.Header, body []byte) (status int, answer []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, method, where.String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("make a request: %w", err)
	}
	request.Header = header
	response, err := s.http.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("call the service: %w", err)
	}
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	return response.StatusCode, answer, errors.Join(err, response.Body.Close())
}
