//go:build soak

package awsiam_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
	"github.com/keyturn/keyturn/test/awstest"
)

// moto is a running moto_server in which every request must be signed by an access
// key that is there, and allowed. In front of it stands what moto lacks: an inactive
// access key is unknown to it, as to AWS, and it takes a moment off to fall silent.
type moto struct {
	url   string
	admin *iam.Client
	id    string
	key   string
}

func startMoto(t *testing.T) *moto {
	t.Helper()
	program, err := exec.LookPath("moto_server")
	if err != nil {
		if program, err = exec.LookPath("../../../bin/parts/moto/bin/moto_server"); err != nil {
			t.Fatalf("no moto: run scripts/install-moto: %v", err)
		}
	}
	free, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close() // moto takes it
	_, port, _ := net.SplitHostPort(address)
	server := exec.CommandContext(t.Context(), program, "-H", "127.0.0.1", "-p", port)
	var log bytes.Buffer
	server.Stderr = &log
	server.WaitDelay = time.Second
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
		if t.Failed() {
			t.Logf("moto: %s", log.Bytes()[max(0, log.Len()-3000):])
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address); err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("moto does not answer")
		}
		<-time.After(20 * time.Millisecond)
	}
	return &moto{url: "http://" + address}
}

// post calls moto's own API.
func (m *moto) post(t *testing.T, path, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.url+"/moto-api/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Timeout: 20 * time.Second}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("moto answered %s with status %d", path, response.StatusCode)
	}
}

// fresh empties moto, and makes an administrator, a user and a role. From then on
// every request must be signed and allowed.
func (m *moto) fresh(t *testing.T) {
	t.Helper()
	m.post(t, "reset-auth", "inf")
	m.post(t, "reset", "")
	client := func(id, key string) *iam.Client {
		return iam.NewFromConfig(aws.Config{Region: "us-east-1", BaseEndpoint: &m.url, Credentials: credentials.NewStaticCredentialsProvider(id, key, "")})
	}
	anybody := client("anybody", "anything")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	name, policy := "admin", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
	_, err := anybody.CreateUser(t.Context(), &iam.CreateUserInput{UserName: &name})
	must(err)
	_, err = anybody.PutUserPolicy(t.Context(), &iam.PutUserPolicyInput{UserName: &name, PolicyName: &name, PolicyDocument: &policy})
	must(err)
	user := awstest.User
	_, err = anybody.CreateUser(t.Context(), &iam.CreateUserInput{UserName: &user})
	must(err)
	role, trust := "keyturn", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"sts:AssumeRole"}]}`
	_, err = anybody.CreateRole(t.Context(), &iam.CreateRoleInput{RoleName: &role, AssumeRolePolicyDocument: &trust})
	must(err)
	_, err = anybody.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{RoleName: &role, PolicyName: &name, PolicyDocument: &policy})
	must(err)
	created, err := anybody.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: &name})
	must(err)
	m.id, m.key = *created.AccessKey.AccessKeyId, *created.AccessKey.SecretAccessKey
	m.admin = client(m.id, m.key)
	m.post(t, "reset-auth", "0")
}

// lookAlike stands before moto and makes good what it does otherwise than AWS: it
// lets inactive access keys in, and wraps what it says of unknown ones and of wrong
// signatures once too often, so that AWS's SDK for Go finds no code in it.
func (m *moto) lookAlike(t *testing.T) (address string, silence func() (restore func())) {
	t.Helper()
	target, err := url.Parse(m.url)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.ModifyResponse = func(r *http.Response) error {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		_ = r.Body.Close()
		text = bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("<Errors>"), nil), []byte("</Errors>"), nil)
		r.ContentLength = int64(len(text))
		r.Header.Set("Content-Length", strconv.Itoa(len(text)))
		r.Body = io.NopCloser(bytes.NewReader(text))
		return nil
	}
	quiet := make(chan chan struct{}, 1)
	quiet <- nil
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		until := <-quiet
		quiet <- until
		if until != nil {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-until:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		}
		_, id, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		id, _, _ = strings.Cut(id, "/")
		if m.inactive(r.Context(), id) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code><Message>The security token included in the request is invalid.</Message></Error></ErrorResponse>")
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() func() {
		<-quiet
		until := make(chan struct{})
		quiet <- until
		return func() {
			select {
			case <-until:
			default:
				close(until)
				<-quiet
				quiet <- nil
			}
		}
	}
}

func (m *moto) inactive(ctx context.Context, id string) bool {
	user := awstest.User
	answer, err := m.admin.ListAccessKeys(ctx, &iam.ListAccessKeysInput{UserName: &user})
	if err != nil {
		return false
	}
	for _, k := range answer.AccessKeyMetadata {
		if *k.AccessKeyId == id {
			return k.Status == types.StatusTypeInactive
		}
	}
	return false
}

func (m *moto) config(t *testing.T, endpoint string) provider.Config {
	t.Helper()
	_, config := newCloud(t)
	t.Setenv("AWS_ACCESS_KEY_ID", m.id)
	t.Setenv("AWS_SECRET_ACCESS_KEY", m.key)
	config["endpoint"], config["regions"] = endpoint, []any{"us-east-1", "eu-central-1"}
	return config
}

func TestConformanceWithMoto(t *testing.T) {
	m := startMoto(t)
	for _, by := range []string{"user", "role"} {
		t.Run(by, func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Target {
				m.fresh(t)
				address, silence := m.lookAlike(t)
				config := m.config(t, address)
				if by == "role" {
					config["role"] = map[string]any{"arn": "arn:aws:iam::123456789012:role/keyturn", "externalId": awstest.ExternalID}
				}
				return providertest.Target{Driver: driver(), Config: config, Key: name, Silence: func(t *testing.T, _ string) func() {
					restore := silence()
					t.Cleanup(restore)
					return restore
				}}
			})
		})
	}
}
