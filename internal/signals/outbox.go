package signals

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/secret"
)

// Format is the shape of the messages that a webhook receives. The zero value is
// invalid.
type Format uint8

// The formats.
const (
	// Generic: one Page as a JSON object in a POST.
	Generic Format = iota + 1
	// Alertmanager: a list with one alert, as version 2 of Alertmanager's API takes
	// it. "/api/v2/alerts" is appended to an address without a path. Open pages are
	// repeated every minute.
	Alertmanager
)

// Webhook receives pages. Any answer from 200 to 299 counts as delivered; after
// 408, 429, 5xx and network errors the page is sent again with growing pauses
// until it is delivered; other answers refuse it for good.
type Webhook struct {
	// Name is unique; it stands in metrics and logs instead of the address, which
	// may hold a token.
	Name   string
	URL    string
	Format Format
	// Insecure allows an http:// address.
	Insecure bool
	// Authorization is sent as the header of that name; it may be empty.
	Authorization secret.Value
	// Client sends the requests. Default: one that verifies the receiver by the
	// system's authorities and follows no redirect.
	Client *http.Client
	// Timeout bounds one try. Default: 10 s.
	Timeout time.Duration
	// RetryFirst and RetryMax bound the pauses between tries. Defaults: 1 s and 1 min.
	RetryFirst, RetryMax time.Duration
	// Queue is how many pages may wait. Default: 1,024.
	Queue int
}

// errRefused: the receiver will never take the page.
var errRefused = errors.New("the receiver refuses the page")

// outbox delivers pages to one webhook. Of several messages about one page only
// the latest is kept.
type outbox struct {
	hook    Webhook
	metrics *metrics
	log     *slog.Logger
	ledger  Ledger

	mu     sync.Mutex
	order  []string
	latest map[string]Page
	filled chan struct{}
}

func newOutbox(hook Webhook, m *metrics, log *slog.Logger, ledger Ledger) (*outbox, error) {
	if hook.Name == "" || len(hook.Name) > 63 || strings.ToValidUTF8(hook.Name, "") != hook.Name {
		return nil, fmt.Errorf("%w: Webhook.Name %q must have 1 to 63 characters", ErrConfig, hook.Name)
	}
	u, err := url.Parse(hook.URL)
	if err != nil || u.Host == "" {
		// The address may hold a token and is not repeated.
		return nil, fmt.Errorf("%w: Webhook %q: URL is not an address; write for example https://alerts.example/hook", ErrConfig, hook.Name)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !hook.Insecure) {
		return nil, fmt.Errorf("%w: Webhook %q: URL must begin with https://; http:// needs Insecure", ErrConfig, hook.Name)
	}
	switch hook.Format {
	case Generic:
	case Alertmanager:
		if strings.Trim(u.Path, "/") == "" {
			u.Path = "/api/v2/alerts"
		}
	default:
		return nil, fmt.Errorf("%w: Webhook %q: Format is required", ErrConfig, hook.Name)
	}
	hook.URL = u.String()
	hook.Timeout = orDefault(hook.Timeout, 10*time.Second)
	hook.RetryFirst = orDefault(hook.RetryFirst, time.Second)
	hook.RetryMax = orDefault(hook.RetryMax, time.Minute)
	hook.Queue = orDefault(hook.Queue, 1024)
	if hook.Client == nil {
		hook.Client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	for _, state := range []string{"delivered", "failed", "refused", "dropped"} {
		m.pages.WithLabelValues(hook.Name, state)
	}
	m.pageQueue.WithLabelValues(hook.Name)
	return &outbox{hook: hook, metrics: m, log: log, ledger: ledger, latest: map[string]Page{}, filled: make(chan struct{}, 1)}, nil
}

// put queues a page; it does not block.
func (b *outbox) put(page Page) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, waits := b.latest[page.ID]; !waits {
		if len(b.order) >= b.hook.Queue {
			b.count("dropped")
			return
		}
		b.order = append(b.order, page.ID)
	}
	b.latest[page.ID] = page
	b.metrics.pageQueue.WithLabelValues(b.hook.Name).Set(float64(len(b.order)))
	select {
	case b.filled <- struct{}{}:
	default:
	}
}

// take removes the page that has waited longest.
func (b *outbox) take() (Page, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.order) == 0 {
		return Page{}, false
	}
	page := b.latest[b.order[0]]
	delete(b.latest, page.ID)
	b.order = b.order[1:]
	b.metrics.pageQueue.WithLabelValues(b.hook.Name).Set(float64(len(b.order)))
	return page, true
}

// back puts a page that could not be delivered behind the others, unless
// something newer is to be said about it.
func (b *outbox) back(page Page) {
	b.mu.Lock()
	_, newer := b.latest[page.ID]
	b.mu.Unlock()
	if !newer {
		b.put(page)
	}
}

// run delivers until ctx ends. After a failure it waits longer each time.
func (b *outbox) run(ctx context.Context) {
	pause := b.hook.RetryFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		page, ok := b.take()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-b.filled:
			}
			continue
		}
		err := b.once(ctx, &page)
		switch {
		case err == nil:
			pause = b.hook.RetryFirst
			continue
		case errors.Is(err, errRefused):
			b.log.LogAttrs(ctx, slog.LevelError, "a page was refused and is not sent again", b.attrs(&page, err)...)
			continue
		}
		b.back(page)
		if ctx.Err() != nil {
			return
		}
		if pause == b.hook.RetryFirst && !errors.Is(err, errTaken) {
			b.log.LogAttrs(ctx, slog.LevelError, "a page could not be delivered; trying again", b.attrs(&page, err)...)
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		pause = min(2*pause, b.hook.RetryMax)
	}
}

// flush tries every page that waits once.
func (b *outbox) flush(ctx context.Context) error {
	for {
		page, ok := b.take()
		if !ok {
			return nil
		}
		if err := b.once(ctx, &page); err != nil && !errors.Is(err, errRefused) && !errors.Is(err, errTaken) {
			return fmt.Errorf("webhook %s: %d pages could not be delivered: %w", b.hook.Name, b.waiting()+1, err)
		}
	}
}

func (b *outbox) attrs(page *Page, err error) []slog.Attr {
	return []slog.Attr{
		slog.String("webhook", b.hook.Name), slog.String("key", string(page.Key)), slog.String("rotation", page.Rotation.String()),
		slog.String("trace_id", page.Rotation.String()), slog.String("reason", string(page.Reason)), slog.Any("error", err),
	}
}

// waiting is how many pages wait.
func (b *outbox) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.order)
}

func (b *outbox) count(state string) { b.metrics.pages.WithLabelValues(b.hook.Name, state).Inc() }

// errTaken: another server is about to deliver the page.
var errTaken = errors.New("another server is about to deliver the page")

// ledgerTime bounds one question to the ledger.
const ledgerTime = 5 * time.Second

// once delivers a page unless another server has. Without an answer of the ledger
// it is delivered: rather twice than never.
func (b *outbox) once(ctx context.Context, page *Page) error {
	if b.ledger == nil || b.hook.Format != Generic {
		return b.deliver(ctx, page)
	}
	id := fmt.Sprintf("%s/%s/%d/%s", b.hook.Name, page.ID, page.StartedAt.UnixMicro(), page.Status)
	asking, cancel := context.WithTimeout(ctx, ledgerTime)
	mine, sent, err := b.ledger.TakePage(asking, id)
	cancel()
	switch {
	case err != nil:
		return b.deliver(ctx, page)
	case sent:
		return nil
	case !mine:
		return errTaken
	}
	if err := b.deliver(ctx, page); err != nil {
		return err
	}
	noting, cancel := context.WithTimeout(ctx, ledgerTime)
	defer cancel()
	if err := b.ledger.PageSent(noting, id); err != nil {
		b.log.LogAttrs(ctx, slog.LevelWarn, "it could not be noted that a page was delivered; another server may send it again", b.attrs(page, err)...)
	}
	return nil
}

// deliver sends one page and counts what became of it.
func (b *outbox) deliver(ctx context.Context, page *Page) error {
	err := b.post(ctx, page)
	switch {
	case err == nil:
		b.count("delivered")
	case errors.Is(err, errRefused):
		b.count("refused")
	default:
		b.count("failed")
	}
	return err
}

func (b *outbox) post(ctx context.Context, page *Page) error {
	var message any = page
	if b.hook.Format == Alertmanager {
		message = []alert{alertOf(page)}
	}
	body, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	limited, cancel := context.WithTimeout(ctx, b.hook.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(limited, http.MethodPost, b.hook.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: its address is not usable", errRefused)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "keyturn")
	if b.hook.Authorization.Len() > 0 {
		request.Header.Set("Authorization", b.hook.Authorization.RevealString())
	}
	response, err := b.hook.Client.Do(request)
	if err != nil {
		// The library's error repeats the address, which may hold a token.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	switch code := response.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code >= 500:
		return fmt.Errorf("it answered %s", response.Status)
	default:
		return fmt.Errorf("%w: it answered %s", errRefused, response.Status)
	}
}

// alert is one alert as Alertmanager's API takes it.
type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt,omitzero"`
}

// alertOf puts what identifies a page into the labels, by which Alertmanager
// deduplicates and groups, and the rest into the annotations.
func alertOf(page *Page) alert {
	if page.Target != "" {
		name, summary := "KeyturnTargetSilent", page.Target+" does not answer Keyturn"
		if page.Reason == StoreFull {
			name, summary = "KeyturnStoreFull", "Keyturn's store is full"
		}
		if page.Reason == KeysStanding {
			name, summary = "KeyturnKeysStanding", "Keys stand still after a restore"
		}
		if page.Reason == Anomaly {
			name, summary = "KeyturnAnomaly", "A rule found anomalous use of "+string(page.Key)
		}
		if page.Reason == SecretLeaked {
			name, summary = "KeyturnSecretLeaked", "The secret of "+page.Target+" has leaked"
		}
		if page.Reason == PartnerLate {
			name, summary = "KeyturnPartnerLate", "A partner still uses "+page.Target
		}
		if page.Reason == PartnerRefused {
			name, summary = "KeyturnPartnerRefused", "A partner shows "+page.Target+", which is refused"
		}
		if page.Reason == APIKeyExpiring {
			name, summary = "KeyturnAPIKeyExpiring", "The API key "+page.Target+" ends soon"
		}
		return alert{
			Labels:      map[string]string{"alertname": name, "severity": page.Severity, "target": page.Target, "reason": string(page.Reason)},
			Annotations: map[string]string{"summary": summary, "description": page.Message, "runbook_url": page.Runbook},
			StartsAt:    page.StartedAt, EndsAt: page.ResolvedAt,
		}
	}
	return alert{
		Labels: map[string]string{
			"alertname": "KeyturnRotationHeld", "severity": page.Severity,
			"key": string(page.Key), "rotation": page.Rotation.String(), "reason": string(page.Reason),
		},
		Annotations: map[string]string{
			"summary": "Rotation of " + string(page.Key) + " is on hold: " + string(page.Reason), "description": page.Message,
			"parties": strings.Join(page.Parties, " "), "regions": strings.Join(page.regionNames(), " "), "runbook_url": page.Runbook,
		},
		StartsAt: page.StartedAt, EndsAt: page.ResolvedAt,
	}
}
