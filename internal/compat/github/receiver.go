package github

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// The headers of a message.
const (
	HeaderKey       = "Github-Public-Key-Identifier"
	HeaderSignature = "Github-Public-Key-Signature"
)

const (
	// MaxBody is the largest message, in bytes, and maxTokens how many tokens it may have.
	MaxBody   = 1 << 20
	maxTokens = 5000
	// maxHeader bounds the headers above.
	maxHeader = 512
	// perSecond tokens of all messages are compared, and atOnce at once.
	perSecond = 2000
	atOnce    = 50_000
)

// Matcher compares what was found with the secrets of managed versions.
type Matcher interface {
	MatchLeaks(ctx context.Context, actor audit.Actor, candidates []engine.LeakCandidate, visible func(key.Name) bool) ([]engine.LeakMatch, error)
}

// KeySource returns GitHub's public keys.
type KeySource interface {
	Key(ctx context.Context, id string) (*ecdsa.PublicKey, error)
}

// Memory knows which messages were dealt with, by all nodes. What it forgets is dealt
// with again, which begins nothing again. Its methods may be called concurrently.
type Memory interface {
	// Seen reports whether a message with that SHA-256 was noted.
	Seen(ctx context.Context, digest [sha256.Size]byte) (bool, error)
	// Note remembers one.
	Note(ctx context.Context, digest [sha256.Size]byte) error
}

// Config is what a Receiver needs; all fields but Feedback are required.
type Config struct {
	Matcher Matcher
	Keys    KeySource
	Memory  Memory
	Now     func() time.Time
	// Feedback: tell GitHub which tokens are real.
	Feedback bool
	// Refused hears why a message was refused, one of a few fixed texts.
	Refused func(r *http.Request, why string)
}

// Receiver answers GitHub's messages.
type Receiver struct {
	config Config
	rate   *rate.Limiter
}

// New returns a receiver.
func New(config Config) *Receiver {
	return &Receiver{config: config, rate: rate.NewLimiter(perSecond, atOnce)}
}

// found is one token of a message.
type found struct {
	Token  string `json:"token"`
	Type   string `json:"type"`
	URL    string `json:"url"`
	Source string `json:"source"`
}

// judged is what GitHub is told of a token.
type judged struct {
	Token string `json:"token_raw"`
	Type  string `json:"token_type"`
	Label string `json:"label"`
}

// The labels of the protocol.
const (
	labelReal  = "true_positive"
	labelFalse = "false_positive"
)

// ServeHTTP implements http.Handler.
func (s *Receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		s.refuse(w, r, http.StatusRequestEntityTooLarge, "messages of GitHub's that are too large or incomplete")
		return
	}
	digest := sha256.Sum256(body)
	switch err := s.verify(r, digest[:]); {
	case errors.Is(err, errSignature), errors.Is(err, ErrUnknownKey):
		s.refuse(w, r, http.StatusUnauthorized, "messages without a signature of GitHub's")
		return
	case err != nil:
		s.refuse(w, r, http.StatusServiceUnavailable, "messages of GitHub's, whose public keys cannot be read")
		return
	}
	seen, err := s.config.Memory.Seen(r.Context(), digest)
	if err != nil {
		s.refuse(w, r, http.StatusServiceUnavailable, notNow)
		return
	}
	if seen {
		s.refuse(w, r, http.StatusConflict, "messages of GitHub's that were dealt with before")
		return
	}
	list, tokens, err := parse(body)
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, "messages of GitHub's that are none")
		return
	}
	if !s.rate.AllowN(s.config.Now(), max(1, len(tokens))) {
		w.Header().Set("Retry-After", "60")
		s.refuse(w, r, http.StatusTooManyRequests, "messages of GitHub's that are too many at once")
		return
	}
	managed, err := s.match(r.Context(), tokens)
	if err == nil {
		// Noted when all is done: what a node did not get to its end is sent again.
		err = s.config.Memory.Note(r.Context(), digest)
	}
	if err != nil {
		s.refuse(w, r, http.StatusServiceUnavailable, notNow)
		return
	}
	answer := []judged{}
	if s.config.Feedback {
		answer = judge(list, managed)
	}
	b, err := json.Marshal(answer)
	if err != nil {
		s.refuse(w, r, http.StatusServiceUnavailable, "messages of GitHub's that could not be answered")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the caller is gone if this fails
}

// notNow is why what fails for a while is refused.
const notNow = "messages of GitHub's that could not be dealt with now"

// match compares the tokens of a message, and returns which are managed.
func (s *Receiver) match(ctx context.Context, tokens []engine.LeakCandidate) (map[int]bool, error) {
	managed := map[int]bool{}
	for done := 0; done < len(tokens); {
		part := tokens[done:min(len(tokens), done+engine.MaxLeakCandidates)]
		actor := audit.Actor{ID: "github-secret-scanning", Kind: "partner"}
		matches, err := s.config.Matcher.MatchLeaks(ctx, actor, part, func(key.Name) bool { return true })
		if err != nil {
			return nil, err
		}
		for i := range matches {
			managed[done+matches[i].Candidate] = true
		}
		done += len(part)
	}
	return managed, nil
}

// judge labels tokens: real is what a version has or had, by what is kept of it, and
// false what neither has one nor a right checksum. Others may be of a destroyed
// version, and are left out.
func judge(list []found, managed map[int]bool) []judged {
	answer := []judged{}
	for i := range list {
		one := judged{Token: list[i].Token, Type: list[i].Type, Label: labelReal}
		if !managed[i] {
			if keytable.Check([]byte(list[i].Token)) == nil {
				continue
			}
			one.Label = labelFalse
		}
		answer = append(answer, one)
	}
	return answer
}

func (s *Receiver) refuse(w http.ResponseWriter, r *http.Request, status int, why string) {
	s.config.Refused(r, why)
	http.Error(w, http.StatusText(status), status)
}

var errSignature = errors.New("the signature is wrong")

// verify checks the signature of a body by its SHA-256.
func (s *Receiver) verify(r *http.Request, digest []byte) error {
	id, text := r.Header.Get(HeaderKey), r.Header.Get(HeaderSignature)
	if id == "" || text == "" || len(id) > maxHeader || len(text) > maxHeader {
		return errSignature
	}
	signature, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return errSignature
	}
	public, err := s.config.Keys.Key(r.Context(), id)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(public, digest, signature) {
		return errSignature
	}
	return nil
}

// parse reads a message. Tokens that no secret of a key can be are left out.
func parse(body []byte) ([]found, []engine.LeakCandidate, error) {
	var list []found
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, nil, err
	}
	if len(list) > maxTokens {
		return nil, nil, fmt.Errorf("%d tokens, at most %d are expected", len(list), maxTokens)
	}
	list = slices.DeleteFunc(list, func(f found) bool { return len(f.Token) > engine.MaxLeakText })
	var candidates []engine.LeakCandidate
	for i := range list {
		place := strings.ToValidUTF8(strings.TrimSpace("GitHub "+list[i].Source+" "+list[i].URL), "?")
		candidates = append(candidates, engine.LeakCandidate{Text: secret.NewString(list[i].Token), Place: place[:min(len(place), engine.MaxLeakPlace)]})
	}
	return list, candidates, nil
}
