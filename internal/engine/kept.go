package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindPolicyText are the texts of policies by which rotations began, by their SHA-256.
// They are kept as long as the audit log, which names them.
const kindPolicyText = "policy-text"

// PolicyRef names a policy as it was at some time.
type PolicyRef struct {
	Name string `json:"name"`
	// SHA256 is that of the document as it is stored, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// begins is the policy by which a rotation of a key begins in a change.
type begins struct {
	key    key.Name
	policy PolicyRef
}

// keepPolicy keeps the text of the policy that a key follows: the rotation that begins
// next in this change names it, in its record and in the audit log.
func (c *change) keepPolicy(k *policy.Key) error {
	name := k.PolicyName()
	doc, err := c.tx.Docs.Get(c.ctx, kindPolicy, name)
	if errors.Is(err, store.ErrNotFound) && name == policy.DefaultName {
		def := policy.Default()
		doc.Body, err = rawResource(policy.Resource{Policy: &def})
	}
	if err != nil {
		return err
	}
	sum := sha256.Sum256(doc.Body)
	ref := PolicyRef{Name: name, SHA256: hex.EncodeToString(sum[:])}
	c.begins = begins{key: k.Metadata.Name, policy: ref}
	_, err = store.Revision(c.ctx, c.tx.Docs, kindPolicyText, ref.SHA256)
	if errors.Is(err, store.ErrNotFound) {
		_, err = c.tx.Docs.Put(c.ctx, store.Doc{Kind: kindPolicyText, Name: ref.SHA256, Body: doc.Body})
	}
	return err
}

// PolicyText returns the document of a policy by which a rotation began, as JSON. It
// fails with ErrNotFound when it is not kept.
func (e *Engine) PolicyText(ctx context.Context, ref PolicyRef) ([]byte, error) {
	var body []byte
	err := e.store.View(ctx, func(tx store.Tx) error {
		doc, err := tx.Docs.Get(ctx, kindPolicyText, ref.SHA256)
		body = doc.Body
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("%w: the text of policy %s with SHA-256 %s", ErrNotFound, ref.Name, ref.SHA256)
	}
	return body, err
}
