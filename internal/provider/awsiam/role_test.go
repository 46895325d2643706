package awsiam_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
	"github.com/keyturn/keyturn/test/awstest"
)

// inAnotherAccount is a cloud whose user is in another account than the administrator.
func inAnotherAccount(t *testing.T) (*awstest.Cloud, provider.Config) {
	t.Helper()
	cloud, config := newCloud(t)
	cloud.Foreign()
	config["role"] = map[string]any{"arn": awstest.Role, "externalId": awstest.ExternalID}
	return cloud, config
}

// TestRoleIsAssumedOnce (U9): a user of another account is rotated by the role alone,
// in one session that bears Keyturn's name, for as long as that lasts; without the
// role nothing is found, and a human is asked.
func TestRoleIsAssumedOnce(t *testing.T) {
	cloud, config := inAnotherAccount(t)
	s := open(t, config, provider.Env{})
	o := mint(t, s, begun(0), 1)
	for _, step := range []error{
		s.Accept(t.Context(), begun(0), endpoint, o), s.Refuse(t.Context(), begun(0), endpoint, o), s.(provider.Destroyer).Destroy(t.Context(), begun(0), o, nil),
	} {
		if step != nil {
			t.Error(step)
		}
	}
	if got := cloud.Sessions(); !slices.Equal(got, []string{"keyturn"}) {
		t.Errorf("sessions %q", got)
	}
	delete(config, "role")
	_, err := open(t, config, provider.Env{}).Mint(t.Context(), begun(0), provider.MintRequest{Number: 2})
	if !provider.IsPermanent(err) {
		t.Errorf("without the role: %v", err)
	}
}

// TestRolesSessionEnds: a session that has expired is no refusal of the administrator:
// the call fails as one that passes, and its repetition has another session.
func TestRolesSessionEnds(t *testing.T) {
	cloud, config := inAnotherAccount(t)
	s := open(t, config, provider.Env{})
	v := mint(t, s, begun(0), 1)
	cloud.Expire()
	if err := s.Accept(t.Context(), begun(0), endpoint, v); err == nil || errors.Is(err, provider.ErrDenied) || provider.IsPermanent(err) {
		t.Errorf("after the end of the session: %v", err)
	}
	if err := s.Accept(t.Context(), begun(0), endpoint, v); err != nil {
		t.Error(err)
	}
	if got := cloud.Sessions(); len(got) != 2 {
		t.Errorf("%d sessions", len(got))
	}
	// The other account trusts us no longer: that is for a human, and no verdict.
	cloud.Expire()
	cloud.Fail(awstest.Fault{Action: "AssumeRole", Code: "AccessDenied", Status: 403, Always: true})
	_ = s.Refuse(t.Context(), begun(0), endpoint, v) // it meets the end of the session
	if err := s.Refuse(t.Context(), begun(0), endpoint, v); !errors.Is(err, provider.ErrDenied) {
		t.Errorf("without trust: %v", err)
	}
	if usage, err := s.(provider.Meter).Usage(t.Context(), begun(0), v); !errors.Is(err, provider.ErrNoData) {
		t.Errorf("use without trust: %+v, %v", usage, err)
	}
	if verdict, err := s.Probe(t.Context(), begun(0), endpoint, v); verdict != provider.Accepted || err != nil {
		t.Errorf("the access key itself: %v, %v", verdict, err)
	}
}

// TestRoleByManagedKey: when the administrator's key, another one of Keyturn's, was
// rotated, the role is assumed anew by its next version.
func TestRoleByManagedKey(t *testing.T) {
	cloud, config := inAnotherAccount(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	config["admin"] = map[string]any{"key": "ops/aws-admin"}
	present := cloud.Admin
	s := open(t, config, provider.Env{Resolve: func(context.Context, key.Name) (provider.Material, error) {
		return provider.Material{
			Attributes: map[string]string{"accessKeyId": present.ID}, Secrets: map[string]secret.Value{"secretAccessKey": secret.NewString(present.Secret)},
		}, nil
	}})
	v := mint(t, s, begun(0), 1)
	old := present
	present = cloud.AddAdmin()
	cloud.Edit(old.ID, func(k *awstest.Key) { k.Active = false })
	cloud.Expire()
	if err := s.Accept(t.Context(), begun(0), endpoint, v); err != nil {
		t.Errorf("by the next version of the administrator's key: %v", err)
	}
	if got := cloud.Sessions(); len(got) != 2 {
		t.Errorf("%d sessions", len(got))
	}
}
