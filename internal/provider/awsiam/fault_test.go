package awsiam_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/provider/awsiam"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
	"github.com/keyturn/keyturn/test/awstest"
)

const endpoint = "aws"

func open(t *testing.T, config provider.Config, env provider.Env) provider.System {
	t.Helper()
	system, err := driver().Open(t.Context(), config, env)
	if err != nil {
		t.Fatal(err)
	}
	return system
}

func begun(ago time.Duration) provider.Call {
	return provider.Call{Key: name, Rotation: key.NewRotationID(time.Now().Add(-ago), [10]byte{1}), Fence: 1}
}

func mint(t *testing.T, s provider.System, call provider.Call, v key.Version, live ...provider.Version) provider.Version {
	t.Helper()
	m, err := s.Mint(t.Context(), call, provider.MintRequest{Number: v, Live: live})
	if err != nil {
		t.Fatal(err)
	}
	return provider.Version{Number: v, Material: m}
}

// TestLostAnswerOfMint: whichever answer of Mint is lost, its repetition leaves one
// access key beside the live one, and the live one as it was.
func TestLostAnswerOfMint(t *testing.T) {
	for _, action := range []string{"CreateAccessKey", "UpdateAccessKey", "TagUser"} {
		t.Run(action, func(t *testing.T) {
			cloud, config := newCloud(t)
			s := open(t, config, provider.Env{})
			o := mint(t, s, begun(time.Hour), 1)
			call := begun(0)
			cloud.Fail(awstest.Fault{Action: action})
			if _, err := s.Mint(t.Context(), call, provider.MintRequest{Number: 2, Live: []provider.Version{o}}); err == nil || errors.Is(err, provider.ErrNoRoom) || provider.IsPermanent(err) {
				t.Fatalf("a lost answer: %v", err)
			}
			if all, _ := cloud.IDs(); len(all) != 2 {
				t.Fatalf("after the lost answer: %v", all)
			}
			n := mint(t, s, call, 2, o)
			all, active := cloud.IDs()
			want := []string{o.Material.Attributes["accessKeyId"], n.Material.Attributes["accessKeyId"]}
			slices.Sort(want)
			if !slices.Equal(all, want) || len(active) != 0 || len(cloud.Tags()) != 2 {
				t.Errorf("got %v, active %v, tags %v; want %v", all, active, cloud.Tags(), want)
			}
		})
	}
}

// TestNothingElseIsEverRemoved: an access key that anything says is not a lost
// answer's stays, and is named.
func TestNothingElseIsEverRemoved(t *testing.T) {
	for what, plant := range map[string]func(c *awstest.Cloud) string{
		"older than the rotation":  func(c *awstest.Cloud) string { return c.Add(time.Now().Add(-time.Minute), "") },
		"described by a human":     func(c *awstest.Cloud) string { return c.Add(time.Now(), "backup job") },
		"another version":          func(c *awstest.Cloud) string { return c.Add(time.Now(), "keyturn "+name+" v1") },
		"a version of another key": func(c *awstest.Cloud) string { return c.Add(time.Now(), "keyturn ci/other v2") },
		"used": func(c *awstest.Cloud) string {
			id := c.Add(time.Now(), "")
			c.Edit(id, func(k *awstest.Key) { k.Used = time.Now() })
			return id
		},
	} {
		t.Run(what, func(t *testing.T) {
			cloud, config := newCloud(t)
			s := open(t, config, provider.Env{})
			o := mint(t, s, begun(time.Hour), 1)
			id := plant(cloud)
			_, err := s.Mint(t.Context(), begun(0), provider.MintRequest{Number: 2, Live: []provider.Version{o}})
			if !errors.Is(err, provider.ErrNoRoom) || !strings.Contains(err.Error(), id) {
				t.Errorf("got %v, want ErrNoRoom that names %s", err, id)
			}
			if all, _ := cloud.IDs(); len(all) != 2 || !slices.Contains(all, id) {
				t.Errorf("%s is not there any more: %v", id, all)
			}
			if _, err := s.(provider.Preflighter).Preflight(t.Context(), begun(0), []provider.Version{o}); (what == "another version") != (err == nil) {
				t.Errorf("preflight: %v", err)
			}
		})
	}
}

// TestRegionsThatHearLate: while a region does not know of a change, the change is
// not at its end, and there is no verdict.
func TestRegionsThatHearLate(t *testing.T) {
	cloud, config := newCloud(t)
	s := open(t, config, provider.Env{})
	v := mint(t, s, begun(0), 1)
	cloud.Late("us-east-1", 2)
	if _, later := provider.IsLater(s.Accept(t.Context(), begun(0), endpoint, v)); !later {
		t.Error("accept is at its end while a region refuses")
	}
	if verdict, err := s.Probe(t.Context(), begun(0), endpoint, v); verdict != 0 || err == nil {
		t.Errorf("the regions differ, and the verdict is %v", verdict)
	}
	if err := s.Accept(t.Context(), begun(0), endpoint, v); err != nil {
		t.Error(err)
	}
	if _, later := provider.IsLater(s.Refuse(t.Context(), begun(0), endpoint, v)); !later {
		t.Error("refuse is at its end while a region accepts")
	}
}

// TestOnlyWhatIsAboutTheKeyIsAVerdict: a clock, a limit and a breakdown refuse nothing.
func TestOnlyWhatIsAboutTheKeyIsAVerdict(t *testing.T) {
	cloud, config := newCloud(t)
	s := open(t, config, provider.Env{})
	v := mint(t, s, begun(0), 1)
	for _, f := range []awstest.Fault{
		{Code: "SignatureDoesNotMatch", Message: "Signature expired: 20261126T120000Z is now earlier than 20261126T121500Z", Status: 403},
		{Code: "SignatureDoesNotMatch", Message: "Signature not yet current: 20261126T120000Z is still later than 20261126T115000Z", Status: 403},
		{Code: "Throttling", Message: "Rate exceeded", Status: 400},
		{Code: "AccessDenied", Message: "an endpoint's policy", Status: 403},
		{Code: "ServiceUnavailable", Status: 503},
	} {
		f.Action = "GetCallerIdentity"
		cloud.Fail(f)
		if verdict, err := s.Probe(t.Context(), begun(0), endpoint, v); verdict != 0 || err == nil || provider.IsPermanent(err) {
			t.Errorf("%s %s: verdict %v, %v", f.Code, f.Message, verdict, err)
		}
	}
	if verdict, err := s.Probe(t.Context(), begun(0), endpoint, v); verdict != provider.Refused || err != nil {
		t.Errorf("an inactive key: %v, %v", verdict, err)
	}
}

// TestAdministratorsErrors: what a human must mend is told apart from what passes.
func TestAdministratorsErrors(t *testing.T) {
	cloud, config := newCloud(t)
	s := open(t, config, provider.Env{})
	v := mint(t, s, begun(0), 1)
	for _, test := range []struct {
		code              string
		denied, permanent bool
	}{{"AccessDenied", true, false}, {"InvalidClientTokenId", true, false}, {"NoSuchEntity", false, true}, {"Throttling", false, false}} {
		cloud.Fail(awstest.Fault{Action: "UpdateAccessKey", Code: test.code, Status: 400})
		err := s.Accept(t.Context(), begun(0), endpoint, v)
		if err == nil || errors.Is(err, provider.ErrDenied) != test.denied || provider.IsPermanent(err) != test.permanent {
			t.Errorf("%s: %v", test.code, err)
		}
	}
	wrong := maps.Clone(config)
	wrong["role"] = map[string]any{"arn": awstest.Role, "externalId": "wrong"}
	_, err := open(t, wrong, provider.Env{}).Mint(t.Context(), begun(0), provider.MintRequest{Number: 2})
	if !errors.Is(err, provider.ErrDenied) {
		t.Errorf("a wrong external ID: %v", err)
	}
	cloud.Fail(awstest.Fault{Action: "UpdateAccessKey", Code: "AccessDenied", Status: 403})
	if _, err := s.(provider.Preflighter).Preflight(t.Context(), begun(0), nil); !errors.Is(err, provider.ErrDenied) {
		t.Errorf("preflight without the right to make access keys inactive: %v", err)
	}
}

// TestAdministratorByManagedKey: the administrator's access key is another key's
// present version, each time it is needed.
func TestAdministratorByManagedKey(t *testing.T) {
	cloud, config := newCloud(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	config["admin"] = map[string]any{"key": "ops/aws-admin"}
	material := provider.Material{Attributes: map[string]string{"accessKeyId": "AKIAWRONG"}, Secrets: map[string]secret.Value{"secretAccessKey": secret.NewString("wrong")}}
	s := open(t, config, provider.Env{Resolve: func(_ context.Context, name key.Name) (provider.Material, error) {
		if name != "ops/aws-admin" {
			return provider.Material{}, provider.ErrNoVersion
		}
		return material, nil
	}})
	if _, err := s.Mint(t.Context(), begun(0), provider.MintRequest{Number: 1}); !errors.Is(err, provider.ErrDenied) {
		t.Errorf("a key that AWS does not know: %v", err)
	}
	material = provider.Material{Attributes: map[string]string{"accessKeyId": cloud.Admin.ID}, Secrets: map[string]secret.Value{"secretAccessKey": secret.NewString(cloud.Admin.Secret)}}
	mint(t, s, begun(0), 1)
}

// TestAdministratorsFileChanges: a credential that AWS does not know any more is
// looked for anew.
func TestAdministratorsFileChanges(t *testing.T) {
	cloud, config := newCloud(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	file := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	config["admin"] = map[string]any{"profile": "keyturn"}
	put := func(id, key string) {
		if err := os.WriteFile(file, []byte("[keyturn]\naws_access_key_id = "+id+"\naws_secret_access_key = "+key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("AKIAOLD", "old")
	s := open(t, config, provider.Env{})
	if _, err := s.Mint(t.Context(), begun(0), provider.MintRequest{Number: 1}); !errors.Is(err, provider.ErrDenied) {
		t.Errorf("the old credential: %v", err)
	}
	put(cloud.Admin.ID, cloud.Admin.Secret)
	mint(t, s, begun(0), 1)
}

// TestUseIsNeverAFalseZero (F9): what AWS may not know yet is no data, what it knows
// is use, also when it is told as late as AWS may; only what AWS must have known is
// none. A clock that is wrong, AWS's or this machine's, makes no use old.
func TestUseIsNeverAFalseZero(t *testing.T) {
	cloud, config := newCloud(t)
	config["usageDelay"] = "1h"
	var ours time.Duration // how far this machine's clock is ahead
	driver := awsiam.New(awsiam.Config{Now: func() time.Time { return time.Now().Add(ours) }})
	s, err := driver.Open(t.Context(), config, provider.Env{})
	if err != nil {
		t.Fatal(err)
	}
	v := mint(t, s, begun(0), 1)
	meter, _ := s.(provider.Meter)
	id := v.Material.Attributes["accessKeyId"]
	gone := provider.Version{Number: 2, Material: provider.Material{Attributes: map[string]string{"accessKeyId": "AKIAGONE"}}}
	const day, hour = 24 * time.Hour, time.Hour
	for _, test := range []struct {
		what       string
		began, ago time.Duration
		// ours and theirs are how far the clocks are ahead.
		ours, theirs time.Duration
		wrong        func() // and what else is wrong with the answer
		version      *provider.Version
		sessions     int
		noData       bool
	}{
		{what: "never used, just begun", began: time.Minute, noData: true},
		{what: "used long ago, just begun", began: time.Minute, ago: day, noData: true},
		{what: "used a moment ago", began: time.Minute, ago: time.Second, sessions: 1},
		{what: "used long ago, begun long ago", began: 3 * hour, ago: 150 * time.Minute},
		{what: "never used, begun long ago", began: 3 * hour},
		{what: "used within the hour", began: 3 * hour, ago: 50 * time.Minute, sessions: 1},
		{what: "used all the time, and told an hour late", began: 3 * hour, ago: hour + 10*time.Minute, sessions: 1},
		{what: "used in the future", began: 3 * hour, ago: -hour, sessions: 1},
		{what: "our clock is ahead, used a moment ago", began: 3 * hour, ago: time.Minute, ours: 5 * hour, sessions: 1},
		{what: "our clock went ahead since it began", began: time.Minute, ago: day, ours: 5 * hour, noData: true},
		{what: "AWS's clock is ahead, used a moment ago", began: 3 * hour, ago: time.Minute, theirs: 5 * hour, sessions: 1},
		{what: "AWS's clock is ahead, just begun", began: time.Minute, theirs: 5 * hour, noData: true},
		{what: "the answer has no date", began: 3 * hour, noData: true, wrong: func() { cloud.Date(func() string { return "" }) }},
		{what: "the answer says nothing of a use", began: 3 * hour, noData: true, wrong: func() { cloud.Mute(true) }},
		{what: "not allowed to ask", began: 3 * hour, noData: true, wrong: func() {
			cloud.Fail(awstest.Fault{Action: "GetAccessKeyLastUsed", Code: "AccessDenied", Status: http.StatusForbidden})
		}},
		{what: "the access key is gone", began: 3 * hour, noData: true, version: &gone},
		{what: "no answer", began: 3 * hour, noData: true, wrong: func() { cloud.Fail(awstest.Fault{Action: "GetAccessKeyLastUsed"}) }},
	} {
		cloud.Edit(id, func(k *awstest.Key) {
			if k.Used = (time.Time{}); test.ago != 0 {
				k.Used = time.Now().Add(-test.ago)
			}
		})
		ours = test.ours
		cloud.Mute(false)
		cloud.Date(func() string { return time.Now().Add(test.theirs).UTC().Format(http.TimeFormat) })
		if test.wrong != nil {
			test.wrong()
		}
		asked := v
		if test.version != nil {
			asked = *test.version
		}
		u, err := meter.Usage(t.Context(), begun(test.began), asked)
		if errors.Is(err, provider.ErrNoData) != test.noData || (err != nil) != test.noData || u.Sessions != test.sessions || len(u.Holders) != test.sessions {
			t.Errorf("%s: %+v, %v", test.what, u, err)
		}
		if late := time.Since(u.Until); err == nil && u.Sessions == 0 && (late < hour || late > hour+time.Minute) {
			t.Errorf("%s: told until %v ago, AWS may be an hour late", test.what, late)
		}
	}
}

// TestDestroyLeavesWhatIsActive: an access key that somebody made active again is
// not deleted, nor is one that a live version has.
func TestDestroyLeavesWhatIsActive(t *testing.T) {
	cloud, config := newCloud(t)
	s := open(t, config, provider.Env{})
	v := mint(t, s, begun(0), 1)
	destroyer, _ := s.(provider.Destroyer)
	if err := destroyer.Destroy(t.Context(), begun(0), v, []provider.Version{v}); err == nil {
		t.Error("a live version is destroyed")
	}
	cloud.Edit(v.Material.Attributes["accessKeyId"], func(k *awstest.Key) { k.Active = true })
	if err := destroyer.Destroy(t.Context(), begun(0), v, nil); err == nil || provider.IsPermanent(err) {
		t.Errorf("an active access key: %v", err)
	}
	if all, _ := cloud.IDs(); len(all) != 1 {
		t.Fatalf("got %v", all)
	}
	cloud.Edit(v.Material.Attributes["accessKeyId"], func(k *awstest.Key) { k.Active = false })
	for range 2 {
		if err := destroyer.Destroy(t.Context(), begun(0), v, nil); err != nil {
			t.Error(err)
		}
	}
	if all, _ := cloud.IDs(); len(all) != 0 || len(cloud.Tags()) != 0 {
		t.Errorf("left: %v, %v", all, cloud.Tags())
	}
}

func TestConfigProblemsAreAllNamed(t *testing.T) {
	_, err := awsiam.New(awsiam.Config{}).Check(provider.Config{
		"user": "a b", "regions": []any{"eu-central-1", "cn-north-1", "Europe"}, "role": map[string]any{"arn": "keyturn", "x": "y"},
		"admin": map[string]any{"profile": "p", "key": "Bad_Name"}, "usageDelay": "-1h", "endpoint": "http://example.com", "x": 1.0,
	})
	for _, place := range []string{"user", "regions[1]", "regions[2]", "role.arn", "role.x", "admin", "admin.key", "usageDelay", "endpoint", "x"} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+place+": ") {
			t.Errorf("%s is not named in: %v", place, err)
		}
	}
}
