package notices

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// WebhookConfig is what a Webhook needs; all fields are required.
type WebhookConfig struct {
	// Client must follow no redirect and keep away from the inner network.
	Client *http.Client
	// Secrets are those that sign what is told of a key, the newest first.
	Secrets func(ctx context.Context, name key.Name) ([]secret.Value, error)
	Now     func() time.Time
}

// Webhook posts messages as JSON, signed as Standard Webhooks says: by each secret of
// the key, so that a receiver needs to know one of them only.
type Webhook struct{ config WebhookConfig }

// NewWebhook returns a sender to webhooks.
func NewWebhook(config WebhookConfig) *Webhook { return &Webhook{config: config} }

// eventPrefix begins the type of each message.
const eventPrefix = "keyturn.apikey."

// Send implements Sender.
func (w *Webhook) Send(ctx context.Context, to, id string, message *Message) error {
	body, err := json.Marshal(struct {
		Type string    `json:"type"`
		At   time.Time `json:"timestamp"`
		Data *Message  `json:"data"`
	}{eventPrefix + string(message.Occasion), message.At, message})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("webhook: %w: %w", ErrFinal, bare(err))
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "keyturn")
	if err := w.sign(ctx, request, messageID(id), message.Key, body); err != nil {
		return err
	}
	response, err := w.config.Client.Do(request)
	if err != nil {
		return fmt.Errorf("webhook: %w", bare(err))
	}
	defer func() { _ = response.Body.Close() }() // its status is enough
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 4096))
	return w.judge(response)
}

// sign sets the headers of Standard Webhooks.
func (w *Webhook) sign(ctx context.Context, request *http.Request, id string, name key.Name, body []byte) error {
	secrets, err := w.config.Secrets(ctx, name)
	if err != nil {
		return err
	}
	now := w.config.Now()
	var signatures []string
	for i := range secrets {
		signer, err := standardwebhooks.NewWebhook(secrets[i].RevealString())
		if err != nil {
			return errors.New("the signing secret has not the form that Standard Webhooks says")
		}
		signature, err := signer.Sign(id, now, body)
		if err != nil {
			return fmt.Errorf("sign the notice: %w", err)
		}
		signatures = append(signatures, signature)
	}
	request.Header.Set(standardwebhooks.HeaderWebhookID, id)
	request.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	request.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return nil
}

// messageID is the same whenever a notice is sent; it holds no dot, which separates
// what is signed.
func messageID(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "msg_" + hex.EncodeToString(sum[:16])
}

// judge says what an answer means.
func (w *Webhook) judge(response *http.Response) error {
	err := fmt.Errorf("webhook: status %d", response.StatusCode)
	switch status := response.StatusCode; {
	case status >= 200 && status <= 299:
		return nil
	case status == http.StatusGone:
		return fmt.Errorf("%w: the recipient wants no more notices: %w", ErrFinal, err)
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return &RetryError{After: retryAfter(response.Header.Get("Retry-After"), w.config.Now()), Err: err}
	}
	return err
}

// retryAfter reads Retry-After (RFC 9110, section 10.2.3); 0 when it says nothing.
func retryAfter(header string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// bare leaves out the address, which package net/http puts into every error: it may
// hold a secret.
func bare(err error) error {
	if with := new(url.Error); errors.As(err, &with) {
		return with.Err
	}
	return err
}
