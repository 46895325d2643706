package awsiam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

const (
	maxConns  = 8
	maxAnswer = 1 << 20 // bytes
	session   = "keyturn"
)

type resolver = func(context.Context, key.Name) (provider.Material, error)

// clients makes clients of AWS.
type clients struct {
	mu sync.Mutex
	// loaded is what the environment of this process says: an HTTP client that trusts
	// AWS_CA_BUNDLE, and a credential. Nil: it was not looked for yet.
	loaded *aws.Config
	// ring is the administrator's credential, kept because a role that is assumed
	// gives one for an hour; of is the access key it was made from.
	ring aws.CredentialsProvider
	of   string
}

// forget makes the next call look for the administrator's credential anew.
func (c *clients) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loaded, c.ring = nil, nil
}

// bounded cuts answers that are longer than any that AWS gives.
type bounded struct{ aws.HTTPClient }

func (b bounded) Do(r *http.Request) (*http.Response, error) {
	response, err := b.HTTPClient.Do(r)
	if err == nil {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, maxAnswer), response.Body}
	}
	return response, err
}

// load reads the environment and the shared files of AWS, once. c.mu is held.
func (s *system) load(ctx context.Context) (*aws.Config, error) {
	if s.clients.loaded != nil {
		return s.clients.loaded, nil
	}
	loaded, err := config.LoadDefaultConfig(ctx, config.WithRegion(s.settings.regions[0]), config.WithSharedConfigProfile(s.settings.admin.profile),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.MaxConnsPerHost = maxConns })))
	if err != nil {
		return nil, provider.Hint(fmt.Errorf("awsiam: the environment's settings for AWS: %w", err), "mend the AWS variables of the server's environment, its shared files, and admin in the key's config")
	}
	s.clients.loaded = &loaded
	return s.clients.loaded, nil
}

// base is a config for one region. No request is repeated: the answer that is lost
// may be that of CreateAccessKey.
func (s *system) base(loaded *aws.Config, region string, credential aws.CredentialsProvider) aws.Config {
	c := aws.Config{
		Region: region, Credentials: credential, HTTPClient: bounded{loaded.HTTPClient},
		Retryer: func() aws.Retryer { return aws.NopRetryer{} },
	}
	if s.settings.endpoint != "" {
		c.BaseEndpoint = aws.String(s.settings.endpoint)
	}
	return c
}

// admin returns a client of IAM with the administrator's present credential.
func (s *system) admin(ctx context.Context) (*iam.Client, error) {
	loaded, ring, err := s.administrator(ctx)
	if err != nil {
		return nil, err
	}
	return iam.NewFromConfig(s.base(loaded, s.settings.regions[0], ring)), nil
}

func (s *system) administrator(ctx context.Context) (*aws.Config, aws.CredentialsProvider, error) {
	id, own, err := s.managed(ctx)
	if err != nil {
		return nil, nil, err
	}
	s.clients.mu.Lock()
	defer s.clients.mu.Unlock()
	loaded, err := s.load(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s.clients.ring != nil && s.clients.of == id {
		return loaded, s.clients.ring, nil
	}
	if own == nil {
		own = loaded.Credentials
	}
	if s.settings.role.arn != "" {
		own = stscreds.NewAssumeRoleProvider(sts.NewFromConfig(s.base(loaded, s.settings.regions[0], own)), s.settings.role.arn, func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = session
			if s.settings.role.externalID != "" {
				o.ExternalID = aws.String(s.settings.role.externalID)
			}
		})
	}
	s.clients.ring, s.clients.of = aws.NewCredentialsCache(own), id
	return loaded, s.clients.ring, nil
}

// managed returns the administrator's access key out of another managed key, or
// nothing when the config names none.
func (s *system) managed(ctx context.Context) (id string, own aws.CredentialsProvider, err error) {
	name := s.settings.admin.key
	if name == "" {
		return "", nil, nil
	}
	if s.resolve == nil {
		return "", nil, provider.Permanent(errors.New("awsiam: admin names a key, but this server lends none"), "use profile, or leave admin out")
	}
	material, err := s.resolve(ctx, name)
	if err != nil {
		return "", nil, provider.Hint(fmt.Errorf("awsiam: the administrator's key %s: %w", name, err), "rotate that key first")
	}
	id = material.Attributes[attributeID]
	value := material.Secrets[secretKey]
	if id == "" || value.Len() == 0 {
		return "", nil, provider.Permanent(fmt.Errorf("awsiam: key %s has no fields %s and %s", name, attributeID, secretKey), "refer to a key of the provider aws-iam")
	}
	return id, credentials.NewStaticCredentialsProvider(id, value.RevealString(), ""), nil
}

// try asks one region's STS who the access key is.
func (s *system) try(ctx context.Context, region string, v provider.Version) (provider.Verdict, error) {
	id, value := v.Material.Attributes[attributeID], v.Material.Secrets[secretKey]
	if id == "" || value.Len() == 0 {
		return 0, provider.Permanent(fmt.Errorf("awsiam: %v has no access key", v.Number), "the stored version is damaged; restore the database, or rotate")
	}
	s.clients.mu.Lock()
	loaded, err := s.load(ctx)
	s.clients.mu.Unlock()
	if err != nil {
		return 0, err
	}
	c := s.base(loaded, region, credentials.NewStaticCredentialsProvider(id, value.RevealString(), ""))
	_, err = sts.NewFromConfig(c).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	switch {
	case err == nil:
		return provider.Accepted, nil
	case isRefusal(err):
		return provider.Refused, nil
	}
	return 0, fmt.Errorf("awsiam: try %v in %s: %w", v.Number, region, err)
}

// isRefusal reports whether STS turned the access key away. A signature that is too
// old or too new has the code of one that is wrong, and says something of clocks.
func isRefusal(err error) bool {
	var answer smithy.APIError
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.ErrorCode() {
	case "InvalidClientTokenId", "UnrecognizedClientException":
		return true
	case "SignatureDoesNotMatch":
		text := strings.ToLower(answer.ErrorMessage())
		return !strings.Contains(text, "expired") && !strings.Contains(text, "not yet current")
	}
	return false
}

// code returns the code of AWS's answer, or "".
func code(err error) string {
	if answer := smithy.APIError(nil); errors.As(err, &answer) {
		return answer.ErrorCode()
	}
	return ""
}

// explain says what an administrator's call that failed means, and what to do.
func (s *system) explain(what string, err error) error {
	err = provider.At(endpoint, fmt.Errorf("awsiam: %s of user %s: %w", what, s.settings.user, err))
	switch code(err) {
	case "AccessDenied", "AccessDeniedException", "UnauthorizedOperation":
		return provider.Hint(fmt.Errorf("%w: %w", provider.ErrDenied, err), "give the administrator, or the role, the rights that the reference of this provider lists")
	case "ExpiredToken", "ExpiredTokenException":
		s.clients.forget()
	case "InvalidClientTokenId", "UnrecognizedClientException":
		s.clients.forget() // a shared file may have another one by now
		return provider.Hint(fmt.Errorf("%w: %w", provider.ErrDenied, err), "AWS does not know the administrator's access key; see admin in the key's config")
	case "NoSuchEntity", "NoSuchEntityException":
		return provider.Permanent(err, "create the user in this account, or mend user and role in the key's config")
	}
	return err // throttling, a service that is down, a lost connection: it passes
}
