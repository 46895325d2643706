// Package awstest emulates the part of AWS that access keys need: IAM's calls about
// the access keys and tags of one user, and STS, over the real protocol. Every
// request must be signed by an access key that is there and active, which is
// verified with the SDK's own signer.
//
// It is an emulator, written from AWS's documentation: it proves what Keyturn does,
// not what AWS does.
package awstest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// User is the user whose access keys there are, and Role what can be assumed with
// ExternalID.
const (
	User       = "ci-deployer"
	Role       = "arn:aws:iam::123456789012:role/keyturn"
	ExternalID = "keyturn-prod"
)

// Key is one access key.
type Key struct {
	ID, Secret, Token string
	Active            bool
	Created, Used     time.Time
	admin             bool
	// role: it is a temporary one, of Role; over: its time is.
	role, over bool
	// late is how often a region is to be asked until it knows of the last change.
	late map[string]int
}

// Cloud is the emulator. Its fields may be set between calls.
type Cloud struct {
	URL string
	// Admin is an access key that may do everything.
	Admin Key

	mu     sync.Mutex
	keys   map[string]*Key
	tags   map[string]string
	faults []Fault
	silent chan struct{}
	late   map[string]int
	dated  func() string
	// foreign: the user is in Role's account, and Admin is not.
	foreign  bool
	sessions []string
	mute     bool
}

// Fault is what goes wrong with the next call of an action.
type Fault struct {
	Action string
	// Code and Status are the answer; without Code the call takes effect and its
	// answer is lost.
	Code, Message string
	Status        int
	// Always: with every call.
	Always bool
}

// New starts one.
func New(t *testing.T) *Cloud {
	t.Helper()
	c := &Cloud{keys: map[string]*Key{}, tags: map[string]string{}, late: map[string]int{}}
	c.Admin = Key{ID: newID(), Secret: rand.Text() + rand.Text(), Active: true, admin: true}
	admin := c.Admin
	c.keys[c.Admin.ID] = &admin
	server := httptest.NewServer(c)
	t.Cleanup(func() {
		c.Speak()
		server.Close()
	})
	c.URL = server.URL
	return c
}

func newID() string { return "AKIA" + rand.Text()[:16] }

// Fail makes calls fail.
func (c *Cloud) Fail(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, f)
}

// Mend ends all faults.
func (c *Cloud) Mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = nil
	clear(c.late)
}

// Late makes a region hear of the next change of every access key only after it was
// asked a number of times.
func (c *Cloud) Late(region string, asked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late[region] = asked
}

// Date changes the header Date of every answer; "" leaves it out. Nil ends that.
func (c *Cloud) Date(date func() string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dated = date
}

// Mute makes it say nothing at all of the last use of access keys.
func (c *Cloud) Mute(mute bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = mute
}

// Foreign makes User one of another account: nobody but who has assumed Role is told
// of it, or may touch it.
func (c *Cloud) Foreign() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.foreign = true
}

// Sessions returns the names of the sessions for which Role was assumed.
func (c *Cloud) Sessions() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sessions)
}

// Expire ends the temporary access keys that there are.
func (c *Cloud) Expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.keys {
		k.over = k.role
	}
}

// Silence makes it take requests and answer none, until Speak.
func (c *Cloud) Silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.silent == nil {
		c.silent = make(chan struct{})
	}
}

// Speak ends Silence. It may be called again.
func (c *Cloud) Speak() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.silent != nil {
		close(c.silent)
		c.silent = nil
	}
}

// Add makes an access key, as somebody does by hand.
func (c *Cloud) Add(created time.Time, mark string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &Key{ID: newID(), Secret: rand.Text(), Active: true, Created: created}
	c.keys[k.ID] = k
	if mark != "" {
		c.tags[k.ID] = mark
	}
	return k.ID
}

// AddAdmin makes a further access key that may do what Admin may.
func (c *Cloud) AddAdmin() Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := Key{ID: newID(), Secret: rand.Text() + rand.Text(), Active: true, admin: true}
	same := k
	c.keys[k.ID] = &same
	return k
}

// Edit changes an access key.
func (c *Cloud) Edit(id string, edit func(*Key)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	edit(c.keys[id])
}

// IDs returns the user's access keys, and which of them are active.
func (c *Cloud) IDs() (all, active []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.sorted() {
		all = append(all, k.ID)
		if k.Active {
			active = append(active, k.ID)
		}
	}
	return all, active
}

// Tags returns the user's tags.
func (c *Cloud) Tags() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.tags)
}

func (c *Cloud) sorted() []*Key {
	var keys []*Key
	for _, id := range slices.Sorted(maps.Keys(c.keys)) {
		if k := c.keys[id]; !k.admin {
			keys = append(keys, k)
		}
	}
	return keys
}

type fault struct {
	code, message string
	status        int
}

// ServeHTTP implements http.Handler.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	silent := c.silent
	c.mu.Unlock()
	if silent != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-silent:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	form, parseErr := url.ParseQuery(string(body))
	if err != nil || parseErr != nil {
		answer(w, "", nil, &fault{"MalformedInput", "no form", http.StatusBadRequest})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dated != nil {
		if w.Header()["Date"] = nil; c.dated() != "" {
			w.Header().Set("Date", c.dated())
		}
	}
	action := form.Get("Action")
	lost := false
	for i, f := range c.faults {
		if f.Action != action {
			continue
		}
		if !f.Always {
			c.faults = slices.Delete(c.faults, i, i+1)
		}
		if lost = f.Code == ""; lost {
			break
		}
		answer(w, action, nil, &fault{f.Code, f.Message, f.Status})
		return
	}
	who, region, bad := c.authenticate(r, body)
	if bad != nil {
		answer(w, action, nil, bad)
		return
	}
	who.Used = time.Now().Truncate(time.Second)
	result, bad := c.do(action, form, who, region)
	if lost {
		panic(http.ErrAbortHandler)
	}
	answer(w, action, result, bad)
}

// authenticate verifies the signature (AWS Signature Version 4).
func (c *Cloud) authenticate(r *http.Request, body []byte) (*Key, string, *fault) {
	fields := map[string]string{}
	rest, _ := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	for field := range strings.SplitSeq(rest, ", ") {
		name, value, _ := strings.Cut(field, "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if len(scope) != 5 {
		return nil, "", &fault{"MissingAuthenticationToken", "Request is missing Authentication Token", http.StatusForbidden}
	}
	k := c.keys[scope[0]]
	known := k != nil && k.Active
	if k != nil && k.late[scope[2]] > 0 {
		k.late[scope[2]]--
		known = !known
	}
	if !known || k.Token != r.Header.Get("X-Amz-Security-Token") {
		return nil, "", &fault{"InvalidClientTokenId", "The security token included in the request is invalid.", http.StatusForbidden}
	}
	if k.over {
		return nil, "", &fault{"ExpiredToken", "The security token included in the request is expired", http.StatusForbidden}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return nil, "", &fault{"IncompleteSignature", "no date", http.StatusBadRequest}
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, "", &fault{"MalformedInput", "no request", http.StatusBadRequest}
	}
	for header := range strings.SplitSeq(fields["SignedHeaders"], ";") {
		if values := r.Header.Values(header); len(values) > 0 && header != "host" {
			again.Header[http.CanonicalHeaderKey(header)] = values
		}
	}
	hash := sha256.Sum256(body)
	credential := aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret, SessionToken: k.Token}
	if err := v4.NewSigner().SignHTTP(r.Context(), credential, again, hex.EncodeToString(hash[:]), scope[3], scope[2], at); err != nil ||
		again.Header.Get("Authorization") != r.Header.Get("Authorization") {
		return nil, "", &fault{"SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.", http.StatusForbidden}
	}
	return k, scope[2], nil
}

func (c *Cloud) do(action string, form url.Values, who *Key, _ string) (any, *fault) {
	if action == "GetCallerIdentity" {
		return element{"Arn": "arn:aws:iam::123456789012:user/" + User, "UserId": "AIDAEXAMPLE", "Account": "123456789012"}, nil
	}
	if !who.admin {
		return nil, &fault{"AccessDenied", "User is not authorized to perform: " + action, http.StatusForbidden}
	}
	if action == "AssumeRole" {
		if form.Get("RoleArn") != Role || form.Get("ExternalId") != ExternalID {
			return nil, &fault{"AccessDenied", "not authorized to perform: sts:AssumeRole", http.StatusForbidden}
		}
		k := &Key{ID: "ASIA" + rand.Text()[:16], Secret: rand.Text(), Token: rand.Text(), Active: true, admin: true, role: true}
		c.keys[k.ID] = k
		c.sessions = append(c.sessions, form.Get("RoleSessionName"))
		return element{"Credentials": element{
			"AccessKeyId": k.ID, "SecretAccessKey": k.Secret, "SessionToken": k.Token, "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
		}}, nil
	}
	if c.foreign && !who.role {
		return nil, &fault{"NoSuchEntity", "The user with name " + User + " cannot be found.", http.StatusNotFound}
	}
	id := form.Get("AccessKeyId")
	k := c.keys[id]
	missing := &fault{"NoSuchEntity", "The Access Key with id " + id + " cannot be found.", http.StatusNotFound}
	if action != "GetAccessKeyLastUsed" && form.Get("UserName") != User {
		return nil, &fault{"NoSuchEntity", "The user with name cannot be found.", http.StatusNotFound}
	}
	switch action {
	case "CreateAccessKey":
		if len(c.sorted()) >= 2 {
			return nil, &fault{"LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2", http.StatusConflict}
		}
		k = &Key{ID: newID(), Secret: rand.Text() + rand.Text()[:14], Active: true, Created: time.Now().Truncate(time.Second)}
		c.keys[k.ID] = k
		return element{"AccessKey": element{
			"UserName": User, "AccessKeyId": k.ID, "Status": "Active", "SecretAccessKey": k.Secret, "CreateDate": k.Created.UTC().Format(time.RFC3339),
		}}, nil
	case "UpdateAccessKey":
		if k == nil {
			return nil, missing
		}
		if active := form.Get("Status") == "Active"; active != k.Active {
			k.Active, k.late = active, maps.Clone(c.late)
		}
		return nil, nil
	case "DeleteAccessKey":
		if k == nil {
			return nil, missing
		}
		delete(c.keys, id)
		return nil, nil
	case "ListAccessKeys":
		var members []element
		for _, k := range c.sorted() {
			status := "Inactive"
			if k.Active {
				status = "Active"
			}
			members = append(members, element{"UserName": User, "AccessKeyId": k.ID, "Status": status, "CreateDate": k.Created.UTC().Format(time.RFC3339)})
		}
		return element{"IsTruncated": "false", "AccessKeyMetadata": members}, nil
	case "ListUserTags":
		var members []element
		for _, name := range slices.Sorted(maps.Keys(c.tags)) {
			members = append(members, element{"Key": name, "Value": c.tags[name]})
		}
		return element{"IsTruncated": "false", "Tags": members}, nil
	case "TagUser":
		c.tags[form.Get("Tags.member.1.Key")] = form.Get("Tags.member.1.Value")
		return nil, nil
	case "UntagUser":
		delete(c.tags, form.Get("TagKeys.member.1"))
		return nil, nil
	case "GetAccessKeyLastUsed":
		if k == nil {
			return nil, &fault{"AccessDenied", "not authorized to perform: iam:GetAccessKeyLastUsed on " + id, http.StatusForbidden}
		}
		if c.mute {
			return element{"UserName": User}, nil
		}
		last := element{"Region": "N/A", "ServiceName": "N/A"}
		if !k.Used.IsZero() {
			last = element{"Region": "eu-central-1", "ServiceName": "s3", "LastUsedDate": k.Used.UTC().Format(time.RFC3339)}
		}
		return element{"UserName": User, "AccessKeyLastUsed": last}, nil
	}
	return nil, &fault{"InvalidAction", "no such action: " + action, http.StatusBadRequest}
}

// element is an XML element: texts, elements and lists of members by name.
type element map[string]any

func (e element) write(b *bytes.Buffer) {
	for _, name := range slices.Sorted(maps.Keys(e)) {
		fmt.Fprintf(b, "<%s>", name)
		switch value := e[name].(type) {
		case string:
			_ = xml.EscapeText(b, []byte(value)) // a buffer takes everything
		case element:
			value.write(b)
		case []element:
			for _, member := range value {
				b.WriteString("<member>")
				member.write(b)
				b.WriteString("</member>")
			}
		}
		fmt.Fprintf(b, "</%s>", name)
	}
}

func answer(w http.ResponseWriter, action string, result any, bad *fault) {
	var b bytes.Buffer
	status := http.StatusOK
	if bad != nil {
		status = bad.status
		b.WriteString("<ErrorResponse><Error>")
		element{"Type": "Sender", "Code": bad.code, "Message": bad.message}.write(&b)
		b.WriteString("</Error><RequestId>r</RequestId></ErrorResponse>")
	} else {
		fmt.Fprintf(&b, "<%sResponse><%sResult>", action, action)
		if e, ok := result.(element); ok {
			e.write(&b)
		}
		fmt.Fprintf(&b, "</%sResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></%sResponse>", action, action)
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the client may have gone
}
