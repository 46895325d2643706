package forge

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// The attributes and the secret of a version.
const (
	attributePublic      = "publicKey"
	attributeFingerprint = "fingerprint"
	attributeRepository  = "repository"
	secretPrivate        = "privateKey"
)

// title is what the forge shows of a version.
func title(name key.Name, v key.Version) string { return fmt.Sprintf("keyturn %s %s", name, v) }

// parseTitle returns the version that a title names, if it is one of this key's.
func parseTitle(text string, name key.Name) (key.Version, bool) {
	rest, ours := strings.CutPrefix(text, "keyturn "+string(name)+" v")
	var v key.Version
	if _, err := fmt.Sscanf(rest, "%d", &v); !ours || err != nil || title(name, v) != text {
		return 0, false
	}
	return v, true
}

// Mint implements provider.Issuer. Nobody hears of the key pair.
func (s *system) Mint(context.Context, provider.Call, provider.MintRequest) (provider.Material, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return provider.Material{}, fmt.Errorf("forge: draw a key pair: %w", err)
	}
	defer clear(private)
	shown, err := ssh.NewPublicKey(public)
	if err != nil {
		return provider.Material{}, fmt.Errorf("forge: encode the public key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return provider.Material{}, fmt.Errorf("forge: encode the private key: %w", err)
	}
	text := pem.EncodeToMemory(block)
	defer clear(block.Bytes)
	return provider.Material{
		Attributes: map[string]string{
			attributePublic:      strings.TrimSpace(string(ssh.MarshalAuthorizedKey(shown))),
			attributeFingerprint: ssh.FingerprintSHA256(shown),
			attributeRepository:  s.settings.owner + "/" + s.settings.repo,
		},
		Secrets: map[string]secret.Value{secretPrivate: secret.New(text)},
	}, nil
}

// at checks the endpoint and the version, and returns its public key.
func (s *system) at(where string, v provider.Version) (string, error) {
	if where != endpoint {
		return "", provider.Permanent(fmt.Errorf("forge: there is no endpoint %q", where), "apply the key again")
	}
	public := v.Material.Attributes[attributePublic]
	if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(public)); err != nil {
		return "", provider.Permanent(fmt.Errorf("forge: %v has no field %s: %w", v.Number, attributePublic, err), "the stored version is damaged; restore the database, or rotate")
	}
	return public, nil
}

// Accept implements provider.Verifier.
func (s *system) Accept(ctx context.Context, call provider.Call, where string, v provider.Version) error {
	public, err := s.at(where, v)
	if err != nil {
		return err
	}
	there, err := s.present(ctx, public)
	if err != nil || there {
		return err
	}
	err = s.add(ctx, title(call.Key, v.Number), public)
	if !isStatus(err, http.StatusUnprocessableEntity) {
		return err
	}
	// The forge has it already: here, by a call whose answer was lost, or elsewhere.
	if there, listErr := s.present(ctx, public); listErr != nil || there {
		return listErr
	}
	return provider.Permanent(err, "the forge has this key elsewhere, or takes no further one; cancel the rotation, look there, and begin another one")
}

// present reports whether the repository has the key, with the rights of the config.
// One with other rights is removed.
func (s *system) present(ctx context.Context, public string) (bool, error) {
	all, err := s.list(ctx)
	if err != nil {
		return false, err
	}
	there := false
	for _, k := range all {
		switch {
		case !k.is(public):
		case k.ReadOnly == s.settings.readOnly:
			there = true
		default:
			if err := s.remove(ctx, k.ID); err != nil {
				return false, err
			}
		}
	}
	return there, nil
}

// Refuse implements provider.Verifier. The deploy key is deleted; it can come back,
// because Keyturn still has its material. A transfer under way is not cut off.
func (s *system) Refuse(ctx context.Context, _ provider.Call, where string, v provider.Version) error {
	public, err := s.at(where, v)
	if err != nil {
		return err
	}
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	for _, k := range all {
		if k.is(public) {
			if err := s.remove(ctx, k.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// Probe implements provider.Verifier.
func (s *system) Probe(ctx context.Context, _ provider.Call, where string, v provider.Version) (provider.Verdict, error) {
	if _, err := s.at(where, v); err != nil {
		return 0, err
	}
	signer, err := ssh.ParsePrivateKey(v.Material.Secrets[secretPrivate].Reveal())
	if err != nil {
		return 0, provider.Permanent(fmt.Errorf("forge: %v has no field %s that can be read", v.Number, secretPrivate), "the stored version is damaged; restore the database, or rotate")
	}
	verdict, err := s.try(ctx, signer)
	if err != nil {
		return 0, provider.At(endpoint, fmt.Errorf("forge: try %v by SSH at %s: %w", v.Number, s.settings.address, err))
	}
	return verdict, nil
}

// metered is the system of a forge that tells of use.
type metered struct{ *system }

// Usage implements provider.Meter. GitHub tells the last use, by the day or finer, and
// late: see the provider aws-iam, whose rule it is.
func (s metered) Usage(ctx context.Context, call provider.Call, v provider.Version) (provider.Usage, error) {
	none := func(err error) (provider.Usage, error) {
		return provider.Usage{}, fmt.Errorf("%w: %w", provider.ErrNoData, err)
	}
	public, err := s.at(endpoint, v)
	if err != nil {
		return none(err)
	}
	all, err := s.list(ctx)
	if err != nil {
		return none(err)
	}
	now, delay := s.now(), s.settings.usageDelay
	for _, k := range all {
		if k.is(public) && k.LastUsed != nil && now.Sub(*k.LastUsed) < 2*delay {
			return provider.Usage{Sessions: 1, Holders: []provider.Holder{{
				Endpoint: endpoint, Application: "git, last at " + k.LastUsed.UTC().Format(time.RFC3339), Sessions: 1,
			}}}, nil
		}
	}
	if since := now.Sub(call.Rotation.Time()); !call.Rotation.IsZero() && since < delay {
		return none(fmt.Errorf("forge: the forge may tell of a use %v late, and the rotation began %v ago", delay, since.Round(time.Second)))
	}
	return provider.Usage{Until: now.Add(-delay)}, nil
}

// Held implements provider.Lister, by the titles.
func (s *system) Held(ctx context.Context, call provider.Call) ([]provider.Held, error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	var held []provider.Held
	for _, k := range all {
		if v, ours := parseTitle(k.Title, call.Key); ours {
			held = append(held, provider.Held{Endpoint: endpoint, Version: v, Accepted: true, Attributes: map[string]string{
				attributePublic: body(k.Key), attributeRepository: s.settings.owner + "/" + s.settings.repo,
			}})
		}
	}
	return held, nil
}

// Preflight implements provider.Preflighter: the token must administer the
// repository, and whoever answers by SSH must be the forge.
func (s *system) Preflight(ctx context.Context, _ provider.Call, live []provider.Version) ([]provider.Finding, error) {
	var repository struct {
		Permissions struct {
			Admin bool `json:"admin"`
		} `json:"permissions"`
		Archived bool `json:"archived"`
	}
	if err := s.ask(ctx, http.MethodGet, "look at the repository", nil, "", nil, &repository); err != nil {
		return nil, err
	}
	if !repository.Permissions.Admin {
		return nil, provider.At(endpoint, provider.Hint(fmt.Errorf("%w: forge: the access token does not administer %s/%s", provider.ErrDenied, s.settings.owner, s.settings.repo), "give its user the role of an administrator of the repository"))
	}
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	_, end, err := s.dial(ctx)
	switch {
	case err == nil:
		end() // a server that lets everybody in; the probes will tell
	case errors.Is(err, errHostKey):
		return nil, provider.At(endpoint, provider.Permanent(fmt.Errorf("forge: SSH at %s: %w", s.settings.address, err), "somebody is in the way, or the forge has a new host key: ask its administrator, then mend ssh.hostKeys"))
	case !strings.Contains(err.Error(), "unable to authenticate"):
		return nil, provider.At(endpoint, fmt.Errorf("forge: SSH at %s: %w", s.settings.address, err))
	}
	var findings []provider.Finding
	if repository.Archived {
		findings = append(findings, provider.Finding{Code: "repository-archived", Message: "the repository is archived", Hint: "its keys can still be rotated; nothing can be written there"})
	}
	for _, v := range live {
		for _, k := range all {
			if k.is(v.Material.Attributes[attributePublic]) && k.ReadOnly != s.settings.readOnly {
				findings = append(findings, provider.Finding{
					Code: "rights-differ", Message: fmt.Sprintf("%v has readOnly: %t at the forge, and the config says %t", v.Number, k.ReadOnly, s.settings.readOnly),
					Hint: "the next version has what the config says",
				})
			}
		}
	}
	return findings, nil
}
