package store

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/key"
)

var (
	// ErrInvalid: an argument breaks a limit of this package; nothing was done.
	ErrInvalid = errors.New("invalid argument")
	// ErrReadOnly: a write was tried through the Tx of a View.
	ErrReadOnly = errors.New("write in a read-only transaction")
	// ErrTxDone: the Tx was used after its function had returned.
	ErrTxDone = errors.New("transaction has ended")
	// ErrClosed: the store was stopped.
	ErrClosed = errors.New("storage is closed")
)

// The limits that every implementation enforces.
const (
	// MaxName bounds kinds, names, job IDs, lanes, targets and event types, in bytes.
	MaxName = 512
	// MaxBody bounds each body, log record and sealed material, in bytes.
	MaxBody = 16 << 20
	// MaxLimit bounds every limit argument, Claim.Limit included; 1 is the least.
	MaxLimit = 10_000
)

// CheckName returns an error that wraps ErrInvalid unless s has 1 to MaxName
// bytes of UTF-8 without NUL. what names the argument in the error.
func CheckName(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: %s is empty", ErrInvalid, what)
	case len(s) > MaxName:
		return fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrInvalid, what, len(s), MaxName)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return fmt.Errorf("%w: %s %q is not UTF-8 without NUL", ErrInvalid, what, s)
	}
	return nil
}

// CheckBody returns an error that wraps ErrInvalid when body is too long.
func CheckBody(what string, body []byte) error {
	if len(body) > MaxBody {
		return fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrInvalid, what, len(body), MaxBody)
	}
	return nil
}

// CheckLimit returns an error that wraps ErrInvalid unless limit is 1 to MaxLimit.
func CheckLimit(limit int) error {
	if limit < 1 || limit > MaxLimit {
		return fmt.Errorf("%w: limit %d is not within 1 and %d", ErrInvalid, limit, MaxLimit)
	}
	return nil
}

// Check returns an error that wraps ErrInvalid when the document breaks a limit.
func (d Doc) Check() error {
	return errors.Join(CheckName("document kind", d.Kind), CheckName("document name", d.Name), CheckBody("document body", d.Body))
}

// Check returns an error that wraps ErrInvalid when the event breaks a limit.
func (e Event) Check() error {
	if e.Seq == 0 || e.Seq >= math.MaxInt64 {
		return fmt.Errorf("%w: event of key %s has sequence number %d; numbers start at 1", ErrInvalid, e.Key, e.Seq)
	}
	return errors.Join(CheckName("event key", string(e.Key)), CheckName("event type", e.Type), CheckBody("event body", e.Body))
}

// Check returns an error that wraps ErrInvalid when the job breaks a limit.
func (j Job) Check() error {
	err := errors.Join(CheckName("job ID", j.ID), CheckName("job lane", j.Lane), CheckName("job target", j.Target), CheckBody("job body", j.Body))
	if j.Key != "" {
		err = errors.Join(err, CheckName("job key", string(j.Key)))
	}
	if j.RunAt.IsZero() {
		err = errors.Join(err, fmt.Errorf("%w: job %q has no RunAt", ErrInvalid, j.ID))
	}
	if j.Priority < math.MinInt32 || j.Priority > math.MaxInt32 {
		err = errors.Join(err, fmt.Errorf("%w: priority %d of job %q does not fit 32 bits", ErrInvalid, j.Priority, j.ID))
	}
	return err
}

// Check returns an error that wraps ErrInvalid when the claim breaks a limit.
func (c Claim) Check() error {
	switch {
	case c.Now.IsZero():
		return fmt.Errorf("%w: Claim.Now is zero", ErrInvalid)
	case c.Lease <= 0:
		return fmt.Errorf("%w: Claim.Lease %v is not positive", ErrInvalid, c.Lease)
	case c.PerTarget < 1:
		return fmt.Errorf("%w: Claim.PerTarget %d is less than 1", ErrInvalid, c.PerTarget)
	case len(c.Bounds) > MaxLimit:
		return fmt.Errorf("%w: Claim.Bounds names %d targets, at most %d are allowed", ErrInvalid, len(c.Bounds), MaxLimit)
	case c.Least < math.MinInt32 || c.Least > math.MaxInt32:
		return fmt.Errorf("%w: Claim.Least %d does not fit 32 bits", ErrInvalid, c.Least)
	}
	return CheckLimit(c.Limit)
}

// Bound is how many jobs of the target may be leased.
func (c Claim) Bound(target string) int {
	if bound, ok := c.Bounds[target]; ok {
		return bound
	}
	return c.PerTarget
}

// CheckVersion returns an error that wraps ErrInvalid unless name and version
// can name the material of a version.
func CheckVersion(name key.Name, version key.Version) error {
	if version == 0 || version >= math.MaxInt64 {
		return fmt.Errorf("%w: version %d of key %s; numbers start at 1", ErrInvalid, uint64(version), name)
	}
	return CheckName("key", string(name))
}
