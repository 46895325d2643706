package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"connectrpc.com/connect"
)

// Exit is an exit code of the program. "exec" returns that of the program it ran
// instead.
type Exit int

// The exit codes.
const (
	// ExitOK: it was done.
	ExitOK Exit = 0
	// ExitFailed: it was not; also: a check found something.
	ExitFailed Exit = 1
	// ExitUsage: the command line is wrong, or the server found a request wrong.
	ExitUsage Exit = 2
	// ExitNotFound: the key, version, rotation, party or token does not exist.
	ExitNotFound Exit = 3
	// ExitDenied: the token is missing, unknown, or may not do that.
	ExitDenied Exit = 4
	// ExitUnreachable: no server answered in time.
	ExitUnreachable Exit = 5
	// ExitNotDone: the rotation ended otherwise than done, for example rolled back.
	ExitNotDone Exit = 6
	// ExitFound: a scan has found secrets, none of which is known to be in use.
	ExitFound Exit = 7
	// ExitLiveKey: a scan has found the secret of a key in use.
	ExitLiveKey Exit = 8
	// ExitInterrupted: a signal ended the command.
	ExitInterrupted Exit = 130
)

// name returns the code that JSON errors carry.
func (e Exit) name() string {
	switch e {
	case ExitOK:
		return "ok"
	case ExitFailed:
		return "failed"
	case ExitUsage:
		return "usage"
	case ExitNotFound:
		return "not-found"
	case ExitDenied:
		return "denied"
	case ExitUnreachable:
		return "unreachable"
	case ExitNotDone:
		return "not-done"
	case ExitFound:
		return "found"
	case ExitLiveKey:
		return "live-key"
	case ExitInterrupted:
		return "interrupted"
	}
	return "failed"
}

// programEnded is how "exec" returns the exit code of its program.
type programEnded Exit

func (p programEnded) Error() string {
	return fmt.Sprintf("the program ended with exit code %d", int(p))
}

// failure is an error as the user sees it.
type failure struct {
	exit    Exit
	message string
	// hint is what to do about it; may be empty.
	hint string
	err  error
}

func (f *failure) Error() string {
	if f.hint == "" {
		return f.message
	}
	return f.message + "; " + f.hint
}

func (f *failure) Unwrap() error { return f.err }

func fail(exit Exit, hint, format string, args ...any) *failure {
	err := fmt.Errorf(format, args...)
	return &failure{exit: exit, message: err.Error(), hint: hint, err: err}
}

func usage(hint, format string, args ...any) *failure { return fail(ExitUsage, hint, format, args...) }

// explain turns any error of a command into a failure.
func (a *app) explain(ctx context.Context, err error) *failure {
	var f *failure
	var remote *connect.Error
	switch {
	case errors.As(err, &f):
		return f
	case ctx.Err() != nil:
		return &failure{exit: ExitInterrupted, message: "interrupted", err: err}
	case errors.As(err, &remote):
		return a.explainRemote(remote)
	}
	return &failure{exit: ExitFailed, message: err.Error(), err: err}
}

// explainRemote explains an error of a call: of the server, or of the way there.
func (a *app) explainRemote(err *connect.Error) *failure {
	f := &failure{exit: ExitFailed, message: err.Message(), err: err}
	if !connect.IsWireError(err) && err.Code() != connect.CodeInvalidArgument {
		return a.explainTransport(err)
	}
	switch err.Code() {
	case connect.CodeNotFound:
		f.exit = ExitNotFound
	case connect.CodePermissionDenied:
		f.exit = ExitDenied
	case connect.CodeUnauthenticated:
		f.exit = ExitDenied
		f.hint = "the token is " + a.connection().tokenFrom + "; run keyturn login, or set KEYTURN_TOKEN or KEYTURN_TOKEN_FILE"
	case connect.CodeInvalidArgument:
		f.exit = ExitUsage
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		f.exit = ExitUnreachable
		f.hint = "the server answers but cannot do it now; see its log, and try again"
	case connect.CodeUnimplemented:
		f.hint = "the address belongs to something else, or to another version of Keyturn; compare keyturn version"
	case connect.CodeResourceExhausted:
		f.hint = "wait a moment, and try again"
	case connect.CodeCanceled, connect.CodeUnknown, connect.CodeAlreadyExists, connect.CodeFailedPrecondition,
		connect.CodeAborted, connect.CodeOutOfRange, connect.CodeInternal, connect.CodeDataLoss:
	}
	return f
}

// explainTransport explains why no Keyturn server answered.
func (a *app) explainTransport(err *connect.Error) *failure {
	c := a.connection()
	f := &failure{exit: ExitUnreachable, err: err}
	var unknown x509.UnknownAuthorityError
	var wrongName x509.HostnameError
	var invalid x509.CertificateInvalidError
	var header tls.RecordHeaderError
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &unknown):
		f.message = fmt.Sprintf("the certificate of %s is signed by an authority that is not trusted here", c.address)
		f.hint = "name the server's CA file with --ca-cert or KEYTURN_CACERT"
	case errors.As(err, &wrongName), errors.As(err, &invalid):
		f.message = fmt.Sprintf("the certificate of %s is not valid: %s", c.address, err.Message())
		f.hint = "use a name that the certificate is for; the server's configuration lists them under tls.names"
	case errors.As(err, &header), strings.Contains(err.Message(), "server gave HTTP response to HTTPS client"):
		f.message = fmt.Sprintf("%s does not speak TLS", c.address)
		f.hint = "check host and port; a Keyturn server always speaks TLS"
	case errors.As(err, &dns):
		f.message = fmt.Sprintf("cannot find the server %s: %s", c.address, dns.Err)
		f.hint = "check the name in " + c.addressFrom
	case err.Code() == connect.CodeDeadlineExceeded:
		f.message = fmt.Sprintf("%s did not answer within %v", c.address, a.flags.timeout)
		f.hint = "is the server running and reachable? --timeout waits longer"
	case errors.As(err, &op):
		f.message = fmt.Sprintf("cannot reach the server %s: %v", c.address, op.Err)
		f.hint = fmt.Sprintf("the address comes from %s; is the server running? keyturn dev starts one to try things out", c.addressFrom)
	default:
		f.message = fmt.Sprintf("%s gave no proper answer: %s", c.address, err.Message())
		f.hint = "check that the address is that of a Keyturn server"
	}
	return f
}

// printFailure writes f to standard error.
func (a *app) printFailure(f *failure) {
	if a.wantsJSON() {
		a.writeJSON(a.config.Stderr, struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Hint    string `json:"hint,omitempty"`
		}{f.exit.name(), f.message, f.hint})
		return
	}
	fmt.Fprintf(a.config.Stderr, "keyturn: %s\n", cleanLines(f.message))
	if f.hint != "" {
		fmt.Fprintf(a.config.Stderr, "  hint: %s\n", cleanLines(f.hint))
	}
}
