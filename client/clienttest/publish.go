package clienttest

import (
	"crypto/rand"
	"maps"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Value is a version of a key that parties are to present.
type Value struct {
	Key key.Name
	// Version is the one after the present version when it is 0. It may go back.
	Version key.Version
	// Attributes are the public fields.
	Attributes map[string]string
	// Secrets are the secret fields, in plaintext: this is a test.
	Secrets map[string]string
}

// Login returns a value with a user name and a password.
func Login(name key.Name, username, password string) Value {
	return Value{
		Key:        name,
		Attributes: map[string]string{client.FieldUsername: username},
		Secrets:    map[string]string{client.FieldPassword: password},
	}
}

// Set publishes values together: every party gets them in one answer. It returns
// the number of the last one's version.
func (s *Server) Set(values ...Value) key.Version {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var last key.Version
	for _, v := range values {
		if !v.Key.Valid() {
			s.tb.Errorf("clienttest: %q is no key name", v.Key)
			return 0
		}
		last = s.setLocked(v)
	}
	s.wakeLocked()
	return last
}

func (s *Server) setLocked(v Value) key.Version {
	old := s.keys[v.Key]
	if old == nil {
		old = &client.Assignment{}
	}
	if v.Version == 0 {
		v.Version = old.Version + 1
	}
	a := client.Assignment{
		Key: v.Key, Version: v.Version, Epoch: old.Epoch + 1,
		Attributes: maps.Clone(v.Attributes), Secrets: make(map[string]secret.Value, len(v.Secrets)),
		PublishedAt: time.Now().UTC(),
	}
	_, _ = rand.Read(a.Rotation[:]) // never fails since Go 1.24
	for field, plain := range v.Secrets {
		a.Secrets[field] = secret.NewString(plain)
	}
	s.keys[v.Key] = &a
	return v.Version
}

// Rotate publishes the next version of a key: the same fields, with a new random
// value for each secret. It returns the version's number.
func (s *Server) Rotate(name key.Name) key.Version {
	s.tb.Helper()
	s.mu.Lock()
	old := s.keys[name]
	s.mu.Unlock()
	if old == nil {
		s.tb.Errorf("clienttest: key %s was never set", name)
		return 0
	}
	next := Value{Key: name, Attributes: old.Attributes, Secrets: make(map[string]string, len(old.Secrets))}
	for field := range old.Secrets {
		next.Secrets[field] = rand.Text()
	}
	return s.Set(next)
}

// Push sends assignments to every open stream exactly as they are, without
// remembering them: for epochs out of order and other mischief.
func (s *Server) Push(assignments ...client.Assignment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pushes = append(s.pushes, assignments)
	s.wakeLocked()
}

// Current returns what is published of a key.
func (s *Server) Current(name key.Name) client.Assignment {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.keys[name]
	if p == nil {
		s.tb.Errorf("clienttest: key %s was never set", name)
		return client.Assignment{}
	}
	return *p
}
