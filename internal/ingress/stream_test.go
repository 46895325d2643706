package ingress

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A stream whose client does not read ends, one whose client reads slowly goes on.
func TestStreamsThatNobodyReadsEnd(t *testing.T) {
	for _, path := range []string{"/Watch", "/Backup"} {
		t.Run(path, func(t *testing.T) { streamThatNobodyReads(t, path) })
	}
}

func streamThatNobodyReads(t *testing.T, path string) {
	t.Helper()
	g := newGate()
	g.config.Times["/Backup"] = time.Hour
	g.stall = 200 * time.Millisecond
	ended := make(chan error, 1)
	srv := httptest.NewUnstartedServer(g.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		piece := bytes.Repeat([]byte("x"), 64<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				ended <- err
				return
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				ended <- err
				return
			}
		}
	})))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := srv.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	for range 20 { // slowly
		if _, err := io.ReadFull(answer.Body, make([]byte, 1<<20)); err != nil {
			t.Fatalf("a client that reads was cut off: %v", err)
		}
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the stream of a client that does not read goes on for ever")
	}
}
