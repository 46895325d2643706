package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// Mint implements provider.Issuer. It speaks to no server.
//
// The attributes are username, host, port, database and, where the config says
// so, sslmode: host and port are the primary's. The secret is password.
func (s *system) Mint(_ context.Context, _ provider.Call, request provider.MintRequest) (provider.Material, error) {
	user, err := s.settings.freeUser(request)
	if err != nil {
		return provider.Material{}, err
	}
	attributes := map[string]string{
		"username": user,
		"host":     s.settings.primary.host,
		"port":     strconv.Itoa(int(s.settings.primary.port)),
		"database": s.settings.database,
	}
	if mode := s.settings.primary.tls.mode; mode != "" {
		attributes["sslmode"] = mode
	}
	return provider.Material{Attributes: attributes, Secrets: map[string]secret.Value{"password": newPassword()}}, nil
}

// freeUser takes the users in turn, beginning with the one whose turn it is by
// the version's number. A single user is always free: its new version takes the
// place of the old one.
func (s settings) freeUser(request provider.MintRequest) (string, error) {
	if s.strategy == singleUser {
		return s.users[0], nil
	}
	taken := func(user string) bool {
		return slices.ContainsFunc(request.Live, func(v provider.Version) bool { return v.Material.Attributes["username"] == user })
	}
	turn := 0
	if request.Number > 0 {
		turn = int((request.Number - 1) % key.Version(len(s.users)))
	}
	for i := range s.users {
		if user := s.users[(turn+i)%len(s.users)]; !taken(user) {
			return user, nil
		}
	}
	return "", provider.Hint(fmt.Errorf("postgres: all %d users hold a version: %w", len(s.users), provider.ErrNoRoom),
		"wait until the oldest version is revoked and its quarantine is over, or add a role to users")
}

// username returns the login role of a version.
func username(v provider.Version) (string, error) {
	user := v.Material.Attributes["username"]
	if problem, _ := roleNameProblem(user); problem != "" {
		return "", provider.Permanent(fmt.Errorf("postgres: %v has no usable attribute \"username\": %s", v.Number, problem), "the version was not minted by this provider")
	}
	return user, nil
}
