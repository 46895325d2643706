package forward

import (
	"context"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// extensionGate is the entry of context_extensions that names the gate.
const extensionGate = "gate"

// maxCheck bounds a message of Envoy, in bytes: it has all headers of the client.
const maxCheck = 256 << 10

// envoyHandler answers Envoy's ext_authz over gRPC. Who may not ask is denied in an answer
// as well: an error lets requests through where failure_mode_allow is set.
func (s *Service) envoyHandler() http.Handler {
	bounded := connect.WithReadMaxBytes(maxCheck)
	asks := connect.NewUnaryHandler(EnvoyPath, s.check, bounded)
	refuses := connect.NewUnaryHandler(EnvoyPath, func(context.Context, *connect.Request[authv3.CheckRequest]) (*connect.Response[authv3.CheckResponse], error) {
		return connect.NewResponse(denied(&decision{outcome: BadCaller}, nil)), nil
	}, bounded)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.allowed(r) {
			asks.ServeHTTP(w, r)
			return
		}
		refuses.ServeHTTP(w, r)
	})
}

// check answers what Envoy asks about one request.
func (s *Service) check(ctx context.Context, request *connect.Request[authv3.CheckRequest]) (*connect.Response[authv3.CheckResponse], error) {
	attributes := request.Msg.GetAttributes()
	g := s.gateOf(ctx, attributes.GetContextExtensions()[extensionGate])
	if g == nil {
		return connect.NewResponse(denied(&decision{outcome: NoGate}, nil)), nil
	}
	remove, few := foreign(attributes.GetRequest().GetHttp())
	d := decision{outcome: TooLarge}
	if few {
		d = s.decide(ctx, g, s.askedByEnvoy(g, attributes))
	}
	s.counts.add(g, d.kind, d.outcome)
	if d.outcome != Admitted {
		return connect.NewResponse(denied(&d, g)), nil
	}
	return connect.NewResponse(&authv3.CheckResponse{
		Status: &rpcstatus.Status{},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: options(d.identity()), HeadersToRemove: remove,
		}},
	}), nil
}

// askedByEnvoy is what Envoy tells. All of it but the values of headers is Envoy's own word.
func (s *Service) askedByEnvoy(g *gate, attributes *authv3.AttributeContext) *asked {
	sent := attributes.GetRequest().GetHttp()
	a := &asked{
		values: valuesOf(sent),
		target: func() (target, bool) {
			return targetOf(sent.GetMethod(), strings.ToLower(sent.GetScheme()), sent.GetHost(), sent.GetPath())
		},
	}
	if addr, ok := parseAddress(attributes.GetSource().GetAddress().GetSocketAddress().GetAddress()); ok {
		a.address = addr.String()
		// It is where the client is, unless another proxy stands before Envoy.
		if trusts(s.trusted, addr) && g.ClientAddress != addressNone && g.ClientAddress != addressReal {
			a.address = clientAddress(a.values(addressForwarded), s.trusted, a.address)
		}
	}
	return a
}

// valuesOf returns the headers that Envoy sends: in a map, or as a list with
// encode_raw_headers.
func valuesOf(sent *authv3.AttributeContext_HttpRequest) headers {
	return func(name string) []string {
		name = strings.ToLower(name)
		var values []string
		if value, ok := sent.GetHeaders()[name]; ok {
			values = append(values, value)
		}
		for _, header := range sent.GetHeaderMap().GetHeaders() {
			if strings.EqualFold(header.GetKey(), name) {
				values = append(values, header.GetValue()+string(header.GetRawValue()))
			}
		}
		return values
	}
}

// maxForeign bounds how many headers are removed from a request.
const maxForeign = 100

// foreign are the client's headers that an origin may take for ours. Those of Headers are
// left out: Envoy removes after it has set, and they are always set. ok is false if there
// are too many.
func foreign(sent *authv3.AttributeContext_HttpRequest) (list []string, ok bool) {
	alike := strings.NewReplacer("_", "-", ".", "-") // as for origins behind CGI and its like
	look := func(name string) {
		lower := strings.ToLower(name)
		if !strings.HasPrefix(alike.Replace(lower), "keyturn-") {
			return
		}
		for _, set := range Headers() {
			if strings.EqualFold(set, lower) {
				return
			}
		}
		list = append(list, lower)
	}
	for name := range sent.GetHeaders() {
		look(name)
	}
	for _, header := range sent.GetHeaderMap().GetHeaders() {
		look(header.GetKey())
	}
	return list, len(list) <= maxForeign
}

// options are headers that take the place of the client's.
func options(fields []field) []*corev3.HeaderValueOption {
	list := make([]*corev3.HeaderValueOption, len(fields))
	for i, f := range fields {
		list[i] = &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{Key: strings.ToLower(f.name), Value: f.value},
			// Both say the same; which one counts depends on Envoy's version.
			Append:       wrapperspb.Bool(false), //nolint:staticcheck // older versions know no other
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}
	}
	return list
}

// denied is the answer to a request that is not let in.
func denied(d *decision, g *gate) *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(d.outcome.code()), Message: d.outcome.String()},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(d.outcome.status(false))},
			Headers: options(append(d.refusal(g), field{"Cache-Control", "no-store"})),
			Body:    d.outcome.text() + "\n",
		}},
	}
}

// code is the status of gRPC that stands for an outcome.
func (o Outcome) code() connect.Code {
	switch o {
	case Admitted:
		return 0
	case Missing, Malformed, Refused, Unproven, WantsNonce:
		return connect.CodeUnauthenticated
	case Outside, Lacking, BadCaller, NoGate, TooLarge:
		return connect.CodePermissionDenied
	case Limited:
		return connect.CodeResourceExhausted
	case Unsure:
		return connect.CodeUnavailable
	}
	return connect.CodePermissionDenied
}
