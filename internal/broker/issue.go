package broker

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/dpop"
	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Request asks for a token. Exactly one of Subject, Secret and UseCertificate says
// by what the client proves who it is.
type Request struct {
	// Key is the signing key, URL where it was asked for.
	Key key.Name
	URL string
	// Address is the client's, for records.
	Address string
	// Subject is a token of another issuer.
	Subject secret.Value
	// Secret is an API key, or a token of Keyturn.
	Secret secret.Value
	// UseCertificate: the client is who its certificate says.
	UseCertificate bool
	// Certificates are those the client showed with the connection, its own first; TLS
	// has proven that it has the key of the first.
	Certificates []*x509.Certificate
	// Proofs are the values of the header DPoP.
	Proofs []string
	// Audiences and Scopes are what is asked for.
	Audiences, Scopes []string
}

// Issued is a token that was given.
type Issued struct {
	token.Token

	Scopes []string
	// Bound to a key of the client: the token's type is DPoP. Nonce is for its next proof.
	Bound bool
	Nonce string
}

// NonceError is ErrNonce with the nonce that the proof needs.
type NonceError struct{ Nonce string }

// Error implements error.
func (*NonceError) Error() string { return dpop.ErrNonce.Error() }

// Unwrap returns ErrNonce.
func (*NonceError) Unwrap() error { return dpop.ErrNonce }

// Give gives a token.
func (b *Broker) Give(ctx context.Context, request *Request) (Issued, error) {
	proven, issued, err := b.give(ctx, request)
	b.config.Issued(proven.Source, resultOf(err))
	if err != nil && !errors.Is(err, dpop.ErrNonce) {
		b.entries.refused(refusal{request.Key, proven.Source, resultOf(err)})
		if itsFault(err) {
			b.config.Refused(Refusal{Key: request.Key, Client: proven.Subject, Address: request.Address, Replay: errors.Is(err, dpop.ErrReplayed) || errors.Is(err, ErrReplay)})
		}
		b.config.Logger.DebugContext(ctx, "a token was refused", "key", request.Key, "address", request.Address, "error", err)
	}
	return issued, err
}

// Refusal is a token that was refused because of the one who asked for it.
type Refusal struct {
	// Key is the signing key.
	Key key.Name
	// Client is who asked, if that was proven.
	Client  string
	Address string
	// Replay: the proof of possession, or the subject token, was shown before.
	Replay bool
}

// itsFault reports whether a token was refused because of who asked for it, and not
// because something was away.
func itsFault(err error) bool {
	return slices.Contains([]string{"proof", "replay", "client", "target", "scope", "binding", "grant"}, resultOf(err))
}

// resultOf is the error as one of a few words.
func resultOf(err error) string {
	for _, one := range []struct {
		is   error
		word string
	}{
		{nil, "ok"},
		{ErrAway, "unavailable"},
		{token.ErrNotReady, "unavailable"},
		{dpop.ErrNonce, "nonce"},
		{dpop.ErrProof, "proof"},
		{dpop.ErrFull, "unavailable"},
		{ErrClient, "client"},
		{ErrTarget, "target"},
		{ErrScope, "scope"},
		{ErrBinding, "binding"},
		{ErrGrant, "grant"},
		{ErrReplay, "replay"},
		{ErrRequest, "request"},
	} {
		if errors.Is(err, one.is) {
			return one.word
		}
	}
	return "failed"
}

func (b *Broker) give(ctx context.Context, request *Request) (proven grant.Proven, issued Issued, err error) {
	all, err := b.rulesOf(ctx, request.Key)
	if err != nil {
		return proven, issued, err
	}
	possessed, by, err := b.proof(request)
	if err != nil {
		return proven, issued, err
	}
	var candidates []grant.Proven
	switch {
	case request.Subject.Len() > 0:
		proven.Source = grant.Federated
		proven, err = b.subject(ctx, all, request.Subject.RevealString())
		candidates = []grant.Proven{proven}
	case request.Secret.Len() > 0:
		proven, err = b.config.Client(ctx, request.Secret, request.Address)
		candidates = []grant.Proven{proven}
	case request.UseCertificate:
		proven.Source = grant.Certificate
		candidates, err = b.certificate(all, request.Certificates)
	default:
		err = fmt.Errorf("%w: nothing proves who asks", ErrClient)
	}
	if err != nil {
		return proven, issued, err
	}
	rule, proven, audiences, scopes, err := choose(all, candidates, request)
	if err != nil {
		return proven, issued, err
	}
	cnf := map[string]string{}
	var marks []mark
	var nonce string
	if possessed != nil {
		// Remembered no sooner: who is nobody must not fill what is remembered.
		if by != ofThis {
			marks = append(marks, onceProof(possessed, b.config.Skew))
		} else if err := b.proofs.Add(possessed, b.config.Now()); err != nil {
			return proven, issued, err
		}
		nonce = b.nonces.next(b.config.Now(), by)
		cnf["jkt"] = possessed.Thumbprint
	} else if len(request.Certificates) > 0 && (rule.Bind != 0 || request.UseCertificate) {
		sum := sha256.Sum256(request.Certificates[0].Raw)
		cnf["x5t#S256"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	switch rule.Bind {
	case grant.BindDPoP:
		if cnf["jkt"] == "" {
			return proven, issued, fmt.Errorf("%w: send a proof in the header DPoP (RFC 9449)", ErrBinding)
		}
	case grant.BindTLS:
		if cnf["x5t#S256"] == "" {
			return proven, issued, fmt.Errorf("%w: show a client certificate, and no DPoP proof (RFC 8705)", ErrBinding)
		}
	case grant.BindEither:
		if len(cnf) == 0 {
			return proven, issued, fmt.Errorf("%w: send a proof in the header DPoP (RFC 9449), or show a client certificate (RFC 8705)", ErrBinding)
		}
	}
	if rule.Once {
		marks = append(marks, onceSubject(request.Key, &proven, request.Subject.RevealString(), b.config.Skew))
	}
	issued, err = b.sign(ctx, request, rule, &proven, audiences, scopes, cnf, marks)
	issued.Nonce = nonce
	return proven, issued, err
}

// proof checks the proof of possession of a request; nil: there is none. Whether it
// was shown before is not known yet. It says by whose nonce the proof was made, too.
func (b *Broker) proof(request *Request) (p *dpop.Proof, by nonceOf, err error) {
	switch len(request.Proofs) {
	case 0:
		return nil, 0, nil
	case 1:
		now := b.config.Now()
		by = ofNobody
		checked, err := dpop.Check(request.Proofs[0], &dpop.Expect{Method: "POST", URL: request.URL, Now: now, Nonce: func(nonce string) bool {
			by = b.nonces.read(nonce, now)
			return by == ofThis || by == ofAll || by == ofRoaming
		}})
		if errors.Is(err, dpop.ErrNonce) {
			err = &NonceError{b.nonces.first(now, by)}
		}
		return &checked, by, err
	}
	return nil, 0, fmt.Errorf("%w: there are several", dpop.ErrProof)
}

// certificate returns who a certificate stands for, by each authority that a rule
// names and that issued it.
func (b *Broker) certificate(all []grant.Rule, chain []*x509.Certificate) ([]grant.Proven, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: no certificate was shown", ErrClient)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	names := slices.Clone(chain[0].DNSNames)
	for _, u := range chain[0].URIs {
		names = append(names, u.String())
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !plain(name) })
	var list []grant.Proven
	tried := map[string]bool{}
	for i := range all {
		if all[i].Source != grant.Certificate || tried[all[i].CA] || len(names) == 0 {
			continue
		}
		tried[all[i].CA] = true
		roots, err := readRoots(all[i].CA)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrAway, err)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, CurrentTime: b.config.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err != nil {
			continue
		}
		list = append(list, grant.Proven{Source: grant.Certificate, Subject: names[len(names)-1], Names: names, CA: all[i].CA})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no authority of a rule vouches for the certificate", ErrClient)
	}
	return list, nil
}

// choose returns the first rule that grants all that is asked for.
func choose(all []grant.Rule, candidates []grant.Proven, request *Request) (rule *grant.Rule, proven grant.Proven, audiences, scopes []string, err error) {
	proven = candidates[0]
	err = fmt.Errorf("%w: no rule fits", ErrGrant)
	for i := range all {
		r := &all[i]
		for j := range candidates {
			p := &candidates[j]
			if !r.Fits(p) {
				continue
			}
			asked, given := request.Audiences, request.Scopes
			if len(asked) == 0 && len(r.Audiences) == 1 {
				asked = r.Audiences
			}
			if len(given) == 0 && len(r.Scopes) == 1 {
				given = r.Scopes
			}
			switch {
			case len(asked) == 0:
				err = fmt.Errorf("%w: say for which audience", ErrTarget)
			case slices.ContainsFunc(asked, func(one string) bool { return !slices.Contains(r.Audiences, one) }):
				err = fmt.Errorf("%w: no rule that fits names the audience", ErrTarget)
			case len(given) == 0 && len(r.Scopes) > 0:
				err = fmt.Errorf("%w: say which scopes", ErrScope)
			case !r.Covers(p, given):
				err = fmt.Errorf("%w: no rule that fits grants all of them", ErrScope)
			default:
				return r, *p, asked, given, nil
			}
		}
	}
	return nil, proven, nil, nil, err
}

// maxCopied is how long a claim that is taken over may be.
const maxCopied = grant.MaxText

func (b *Broker) sign(ctx context.Context, request *Request, rule *grant.Rule, proven *grant.Proven, audiences, scopes []string, cnf map[string]string, marks []mark) (Issued, error) {
	claims := map[string]any{"client_id": rule.Name}
	if proven.Source == grant.APIKey || proven.Source == grant.Token {
		claims["client_id"] = proven.Subject
	}
	if len(scopes) > 0 {
		claims["scope"] = strings.Join(scopes, " ")
	}
	if len(cnf) > 0 {
		claims["cnf"] = cnf
	}
	for _, name := range rule.Copy {
		v, ok := grant.Find(proven.Claims, name)
		text, is := v.(string)
		if ok && is && len(text) <= maxCopied {
			claims[name] = text
		}
	}
	signed, err := b.config.Signer.Sign(ctx, token.Request{
		Key: request.Key, Type: token.AccessToken, Subject: rule.For(proven), Audience: audiences, Life: rule.Life, Claims: claims,
	})
	if errors.Is(err, token.ErrNotReady) || errors.Is(err, token.ErrUnknown) {
		return Issued{}, fmt.Errorf("%w: %w", ErrAway, err)
	}
	if err != nil {
		return Issued{}, fmt.Errorf("sign a token: %w", err)
	}
	entry := audit.Entry{
		Actor:  audit.Actor{ID: limited(rule.For(proven), audit.MaxActorID), Kind: "workload"},
		Action: "token.issue", Key: request.Key, Version: signed.Version, Target: rule.Name, Outcome: audit.OutcomeOK,
		Detail: map[string]string{
			"by": proven.Source.String(), "jti": signed.ID, "audience": limited(strings.Join(audiences, " "), 200), "scope": limited(strings.Join(scopes, " "), 200),
			"expires": signed.Expires.UTC().Format(time.RFC3339), "address": request.Address,
		},
	}
	if proven.Source == grant.Federated {
		entry.Detail["issuer"] = limited(proven.Issuer, 200)
	}
	if len(cnf) > 0 {
		entry.Detail["bound"] = cnf["jkt"] + cnf["x5t#S256"]
	}
	now := b.config.Now()
	if rule.Once {
		marks[len(marks)-1].used = &used{ID: signed.ID, Address: request.Address, At: now.UTC()}
	}
	if err := b.entries.cover(ctx, proven.Source != grant.Federated, &entry, marks, now, b.config.AuditSpan); err != nil {
		return Issued{}, err
	}
	return Issued{Token: signed, Scopes: scopes, Bound: cnf["jkt"] != ""}, nil
}

// plain reports whether a text can stand in a token and in the audit log.
func plain(text string) bool {
	return text != "" && len(text) <= grant.MaxText && utf8.ValidString(text) &&
		!strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) || c == utf8.RuneError })
}

func limited(text string, most int) string {
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "")
	}
	return text
}
