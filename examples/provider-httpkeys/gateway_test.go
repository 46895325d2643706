package httpkeys_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
)

// gateway is the service whose keys are rotated: clients show a key at /whoami,
// its admin API is below /keys/.
type gateway struct {
	adminToken string

	mu     sync.Mutex
	hashes map[string]string         // by key ID
	uses   map[string]map[string]int // requests by key ID and client
	fences map[string]uint64         // the largest seen, by key ID
	silent chan struct{}             // when not nil: nobody is answered before it is closed
}

func newGateway(adminToken string) *gateway {
	return &gateway{adminToken: adminToken, hashes: map[string]string{}, uses: map[string]map[string]int{}, fences: map[string]uint64{}}
}

// ServeHTTP implements http.Handler.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	silent := g.silent
	g.mu.Unlock()
	if silent != nil {
		select {
		case <-silent:
		case <-r.Context().Done():
		}
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /whoami", g.whoami)
	mux.HandleFunc("/keys/{id}", g.admin)
	mux.ServeHTTP(w, r)
}

func (g *gateway) whoami(w http.ResponseWriter, r *http.Request) {
	sum := sha256.Sum256([]byte(r.Header.Get("X-Api-Key")))
	shown := hex.EncodeToString(sum[:])
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, hash := range g.hashes {
		if hash == shown {
			if g.uses[id] == nil {
				g.uses[id] = map[string]int{}
			}
			g.uses[id][r.UserAgent()]++
			return
		}
	}
	http.Error(w, "unknown key", http.StatusUnauthorized)
}

func (g *gateway) admin(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+g.adminToken {
		http.Error(w, "admins only", http.StatusForbidden)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	id := r.PathValue("id")
	if fence, err := strconv.ParseUint(r.Header.Get("Fence"), 10, 64); err != nil || fence < g.fences[id] {
		http.Error(w, "a later call was here already", http.StatusConflict)
		return
	} else if r.Method != http.MethodGet {
		g.fences[id] = fence
	}
	switch r.Method {
	case http.MethodPut:
		var body struct{ SHA256 string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body.SHA256) != 2*sha256.Size {
			http.Error(w, "sha256 is missing", http.StatusBadRequest)
			return
		}
		g.hashes[id] = body.SHA256
	case http.MethodDelete:
		delete(g.hashes, id)
		delete(g.uses, id)
	case http.MethodGet:
		uses := g.uses[id]
		if uses == nil {
			uses = map[string]int{}
		}
		_ = json.NewEncoder(w).Encode(uses) // the caller is gone if this fails
	}
}

// silence makes the gateway take requests and answer none.
func (g *gateway) silence() (restore func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.silent = make(chan struct{})
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.silent)
		g.silent = nil
	})
}
