package relay

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// material is a version of a key that the relay was told to present; never changed.
type material struct {
	name       key.Name
	version    key.Version
	epoch      uint64
	rotation   string
	attributes map[string]string
	secrets    map[string]secret.Value
	published  time.Time
}

var errAssignment = errors.New("the centre sent an assignment that makes no sense")

// materialOf takes the secrets of an assignment over and clears the message's copy.
func materialOf(a *keyturnv1.Assignment) (*material, error) {
	name, err := key.ParseName(a.GetKey())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAssignment, err)
	}
	if a.GetVersion() == 0 || a.GetEpoch() == 0 {
		return nil, fmt.Errorf("%w: %s has version %d and epoch %d; both must be greater than 0", errAssignment, name, a.GetVersion(), a.GetEpoch())
	}
	m := &material{name: name, version: key.Version(a.GetVersion()), epoch: a.GetEpoch(), rotation: a.GetRotationId(), attributes: a.GetAttributes()}
	if at := a.GetPublishedAt(); at.IsValid() {
		m.published = at.AsTime()
	}
	m.take(a.GetSecrets())
	return m, nil
}

// take copies secrets and clears what they were copied from.
func (m *material) take(plain map[string][]byte) {
	m.secrets = make(map[string]secret.Value, len(plain))
	for field, value := range plain {
		m.secrets[field] = secret.New(value)
		clear(value)
	}
}

// reveal returns copies of the secrets.
func (m *material) reveal() map[string][]byte {
	plain := make(map[string][]byte, len(m.secrets))
	for field, value := range m.secrets {
		plain[field] = append([]byte(nil), value.Reveal()...)
	}
	return plain
}

// wire is the material as a client gets it.
func (m *material) wire() *keyturnv1.Assignment {
	a := &keyturnv1.Assignment{
		Key: string(m.name), Version: uint64(m.version), Epoch: m.epoch, RotationId: m.rotation,
		Attributes: maps.Clone(m.attributes), Secrets: m.reveal(),
	}
	if !m.published.IsZero() {
		a.PublishedAt = timestamppb.New(m.published)
	}
	return a
}
