package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/internal/passfile"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// sources are the places of this process that passwords are read from.
type sources struct {
	lookupEnv func(name string) (string, bool)
}

type resolver = func(context.Context, key.Name) (provider.Material, error)

// credential is a user name and its password.
type credential struct {
	user     string
	password secret.Value
}

// administrator returns the present administrator's credential. It is asked
// before every connection, since its key may have rotated.
func (s *system) administrator(ctx context.Context) (credential, error) {
	source := s.settings.password
	if source.key != "" {
		if s.resolve == nil {
			return credential{}, provider.Permanent(errors.New("postgres: adminPassword names a key, but this server lends none"), "use file or env")
		}
		material, err := s.resolve(ctx, source.key)
		switch {
		case err == nil:
			return s.fromKey(material)
		case !errors.Is(err, provider.ErrNoVersion) || source.file == "" && source.env == "":
			return credential{}, provider.Hint(fmt.Errorf("postgres: administrator's password from key %s: %w", source.key, err), "give adminPassword a file or env as well, for the time before the key's first version")
		}
	}
	password, err := s.sources.read(source)
	if err != nil {
		return credential{}, err
	}
	return credential{user: s.settings.adminUser, password: password}, nil
}

func (s *system) fromKey(material provider.Material) (credential, error) {
	c := credential{user: material.Attributes["username"], password: material.Secrets["password"]}
	if c.user == "" {
		c.user = s.settings.adminUser
	}
	if c.password.Len() == 0 {
		return credential{}, provider.Permanent(fmt.Errorf("postgres: key %s has no field \"password\"", s.settings.password.key), "refer to a key of the provider postgres")
	}
	return c, nil
}

func (s sources) read(source passwordSource) (secret.Value, error) {
	if source.file != "" {
		// Whoever mounts secrets for containers lets everybody in there read them.
		password, err := passfile.Read(source.file, 0)
		if err != nil {
			return secret.Value{}, provider.Hint(fmt.Errorf("postgres: administrator's password: %w", err), "the file must be readable for the server's user and hold the administrator's password, in one line")
		}
		return secret.NewString(password), nil
	}
	password, _ := s.lookupEnv(source.env)
	if password == "" {
		return secret.Value{}, provider.Hint(fmt.Errorf("postgres: administrator's password: environment variable %s is empty", source.env), "put the password of the administrator there")
	}
	return secret.NewString(password), nil
}
