package signals_test

import (
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/keyturn/keyturn/internal/signals"
)

// otlp is a collector that keeps the spans it receives.
type otlp struct {
	*httptest.Server

	mu    sync.Mutex
	spans []*tracev1.Span
	raw   []byte
	down  bool
}

func newOTLP(t *testing.T) *otlp {
	t.Helper()
	o := &otlp{}
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.down {
			http.Error(w, "down", http.StatusBadRequest)
			return
		}
		if r.URL.Path != "/v1/traces" {
			t.Errorf("traces were sent to %s", r.URL.Path)
		}
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			var err error
			if body, err = gzip.NewReader(r.Body); err != nil {
				t.Error(err)
				return
			}
		}
		raw, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
			return
		}
		var request collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(raw, &request); err != nil {
			t.Errorf("not OTLP: %v", err)
			return
		}
		o.raw = append(o.raw, raw...)
		for _, resource := range request.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				o.spans = append(o.spans, scope.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(o.Close)
	return o
}

// of returns the spans of a trace by their IDs.
func (o *otlp) of(t *testing.T, trace string) map[string]*tracev1.Span {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	found := map[string]*tracev1.Span{}
	for _, s := range o.spans {
		if hex.EncodeToString(s.GetTraceId()) != trace {
			continue
		}
		id := hex.EncodeToString(s.GetSpanId())
		if found[id] != nil {
			t.Errorf("two spans have the ID %s: %s, %s", id, found[id].GetName(), s.GetName())
		}
		found[id] = s
	}
	return found
}

func attributesOf(s *tracev1.Span) map[string]string {
	values := map[string]string{}
	for _, a := range s.GetAttributes() {
		values[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return values
}

// hook is a receiver of pages that can be down.
type hook struct {
	*httptest.Server

	mu      sync.Mutex
	pages   []signals.Page
	bodies  [][]byte
	headers []http.Header
	paths   []string
	answer  int
	tries   int
	news    chan struct{}
}

func newHook(t *testing.T, secure bool) *hook {
	t.Helper()
	h := &hook{answer: http.StatusOK, news: make(chan struct{}, 1)}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		defer func() {
			select {
			case h.news <- struct{}{}:
			default:
			}
		}()
		h.tries++
		if h.answer != http.StatusOK {
			w.WriteHeader(h.answer)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		var page signals.Page
		_ = json.Unmarshal(body, &page) // Alertmanager's shape is a list
		h.pages, h.bodies = append(h.pages, page), append(h.bodies, body)
		h.headers, h.paths = append(h.headers, r.Header.Clone()), append(h.paths, r.URL.Path)
	})
	if secure {
		h.Server = httptest.NewTLSServer(handler)
	} else {
		h.Server = httptest.NewServer(handler)
	}
	t.Cleanup(h.Close)
	return h
}

func (h *hook) set(answer int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = answer
}

// until waits until what was received satisfies enough.
func (h *hook) until(t *testing.T, enough func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		h.mu.Lock()
		ok := enough()
		h.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-h.news:
		case <-deadline:
			h.mu.Lock()
			tries, pages := h.tries, h.pages
			h.mu.Unlock()
			t.Fatalf("waited in vain; received after %d tries: %+v", tries, pages)
		}
	}
}
