package real

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/internal/server"
)

// receiver is where a server sends its pages and traces.
type receiver struct {
	mu sync.Mutex
	// bodies by path.
	bodies map[string][]string
}

// newReceiver starts a receiver and returns the configuration that leads to it.
func newReceiver(t *testing.T) (*receiver, server.TelemetryConfig) {
	t.Helper()
	r := &receiver{bodies: map[string][]string{}}
	http := httptest.NewServer(r)
	t.Cleanup(http.Close)
	return r, server.TelemetryConfig{Traces: http.URL, Pages: []string{http.URL + "/page"}, Insecure: true}
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	var body io.Reader = request.Body
	if request.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = unpacked
	}
	content, err := io.ReadAll(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies[request.URL.Path] = append(r.bodies[request.URL.Path], fmt.Sprintf("%v\n%s", request.Header, content))
}

func (r *receiver) all(path string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bodies[path]
}

// paged waits for a page that says all the words.
func (w *world) paged(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("somebody is paged with %q", words), func() bool {
		for _, page := range w.heard.all("/page") {
			said := true
			for _, word := range words {
				said = said && strings.Contains(page, word)
			}
			if said {
				return true
			}
		}
		return false
	})
}
