package provider

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
)

// IsSilent reports whether err says that the system gave no answer at all,
// unlike one that answers with an error: it wraps ErrSilent, a deadline that
// passed, or an error of the network.
func IsSilent(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false // the call was given up, which says nothing of the system
	}
	if _, later := IsLater(err); later {
		return false // it answered
	}
	for _, silence := range []error{
		ErrSilent, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE,
		syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ETIMEDOUT,
	} {
		if errors.Is(err, silence) {
			return true
		}
	}
	var network net.Error
	return errors.As(err, &network) && network.Timeout() || errors.As(err, new(*net.DNSError))
}
