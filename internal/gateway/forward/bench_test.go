package forward_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// sink is an answer that nobody reads.
type sink struct{ header http.Header }

// Header implements http.ResponseWriter.
func (s sink) Header() http.Header { return s.header }

// Write implements http.ResponseWriter.
func (sink) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements http.ResponseWriter.
func (sink) WriteHeader(int) {}

// BenchmarkForward is what a question costs beside HTTP and the verification itself.
func BenchmarkForward(b *testing.B) {
	w := newWorld(b)
	handler := w.handler()
	for _, credential := range []string{"kt_good", "kt_bad"} {
		b.Run(credential, func(b *testing.B) {
			r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/v1/forward/keys", http.NoBody)
			r.Header.Set("X-API-Key", credential)
			r.Header.Set("X-Forwarded-For", "192.0.2.7")
			b.ReportAllocs()
			for b.Loop() {
				w.asked = w.asked[:0]
				handler.ServeHTTP(sink{http.Header{}}, r)
			}
		})
	}
}
