package tokensource

import (
	"context"

	"golang.org/x/oauth2"
)

// OAuth2 returns the source in the form of golang.org/x/oauth2, for libraries that
// take one. ctx bounds each wait for a token. Do not wrap it in
// oauth2.ReuseTokenSource: it has a token at hand anyway, and a fresher one.
// Libraries do not make proofs of possession: use it without Config.DPoP.
func (s *Source) OAuth2(ctx context.Context) oauth2.TokenSource { return adapter{ctx, s} }

type adapter struct {
	ctx    context.Context //nolint:containedctx // the interface has none
	source *Source
}

// Token implements oauth2.TokenSource.
func (a adapter) Token() (*oauth2.Token, error) {
	t, err := a.source.Token(a.ctx)
	if err != nil {
		return nil, err
	}
	return &oauth2.Token{AccessToken: t.Value.RevealString(), TokenType: t.Type, Expiry: t.Expires}, nil
}
