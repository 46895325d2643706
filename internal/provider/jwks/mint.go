package jwks

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// The fields of a version.
const (
	attrKeyID     = "kid"
	attrAlgorithm = "alg"
	attrIssuer    = "issuer"
	attrPublic    = "jwk"
	secretPrivate = "privateKey"
)

// Mint implements provider.Issuer: a key pair, named by its thumbprint (RFC 7638).
func (s *system) Mint(_ context.Context, _ provider.Call, _ provider.MintRequest) (provider.Material, error) {
	return s.mint()
}

func (s *system) mint() (provider.Material, error) {
	private, err := generate(s.settings.algorithm, s.settings.bits)
	if err != nil {
		return provider.Material{}, fmt.Errorf("generate a key for %s: %w", s.settings.algorithm, err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return provider.Material{}, errors.New("the key could not be encoded")
	}
	jwk := jose.JSONWebKey{Key: private.Public(), Algorithm: string(s.settings.algorithm), Use: "sig"}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return provider.Material{}, fmt.Errorf("name the key: %w", err)
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	public, err := jwk.MarshalJSON()
	if err != nil {
		return provider.Material{}, fmt.Errorf("encode the public key: %w", err)
	}
	return provider.Material{
		Attributes: map[string]string{
			attrKeyID: jwk.KeyID, attrAlgorithm: jwk.Algorithm, attrIssuer: s.settings.issuer, attrPublic: string(public),
		},
		Secrets: map[string]secret.Value{secretPrivate: secret.New(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))},
	}, nil
}

func generate(algorithm jose.SignatureAlgorithm, bits int) (crypto.Signer, error) {
	curves := map[jose.SignatureAlgorithm]elliptic.Curve{jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521()}
	if curve, ok := curves[algorithm]; ok {
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	if isRSA(algorithm) {
		return rsa.GenerateKey(rand.Reader, bits)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

// private returns the private key of a version.
func private(version *provider.Version) (crypto.Signer, error) {
	block, _ := pem.Decode(version.Material.Secrets[secretPrivate].Reveal())
	if block == nil {
		return nil, errors.New("the version has no private key in PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("the private key of the version is damaged")
	}
	return signer, nil
}
