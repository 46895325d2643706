package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"connectrpc.com/connect"
)

// maxPlain bounds an answer of the server's plain interface, in bytes.
const maxPlain = 4 << 20

// plain asks the server's plain JSON interface: in is sent unless it is nil, and the
// answer is read into out. Errors are as those of other calls.
func (a *app) plain(ctx context.Context, method, path string, query url.Values, in, out any) error {
	way, base, err := a.caller(a.connection())
	if err != nil {
		return err
	}
	var body io.Reader = http.NoBody
	if in != nil {
		encoded, err := encodeJSON(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(encoded)
	}
	ctx, cancel := context.WithTimeout(ctx, a.flags.timeout)
	defer cancel()
	address := base + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return fmt.Errorf("make the request: %w", err)
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := way.Do(request)
	if err != nil {
		return unanswered(ctx, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, maxPlain+1))
	switch {
	case err != nil:
		return unanswered(ctx, err)
	case len(content) > maxPlain:
		return fail(ExitFailed, "ask for less", "the server's answer has more than %d bytes", maxPlain)
	case response.StatusCode != http.StatusOK:
		return refusedPlainly(response.StatusCode, content)
	}
	if err := json.Unmarshal(content, out); err != nil {
		return connect.NewError(connect.CodeUnknown, fmt.Errorf("it is not the answer that was asked for: %w", err))
	}
	return nil
}

func unanswered(ctx context.Context, err error) error {
	var known *connect.Error
	switch {
	case errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	}
	return connect.NewError(connect.CodeUnavailable, err)
}

// refusedPlainly is the error of an answer that is none.
func refusedPlainly(status int, content []byte) error {
	var problem struct{ Error, Message string }
	_ = json.Unmarshal(content, &problem) // else the status says enough
	text := problem.Error + problem.Message
	if text == "" {
		text = fmt.Sprintf("status %d (%s)", status, http.StatusText(status))
	}
	code := connect.CodeUnknown
	switch status {
	case http.StatusBadRequest:
		code = connect.CodeInvalidArgument
	case http.StatusUnauthorized:
		code = connect.CodeUnauthenticated
	case http.StatusForbidden:
		code = connect.CodePermissionDenied
	case http.StatusNotFound:
		code = connect.CodeNotFound
	case http.StatusConflict:
		code = connect.CodeFailedPrecondition
	case http.StatusTooManyRequests:
		code = connect.CodeResourceExhausted
	case http.StatusServiceUnavailable:
		code = connect.CodeUnavailable
	}
	return connect.NewWireError(code, errors.New(text))
}
