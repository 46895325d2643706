package rotation

import "errors"

// The errors of Step. Each is wrapped with what happened and what to do.
var (
	// ErrStale: the event answers something that nobody waits for any more. The
	// caller drops it, together with all that came with it.
	ErrStale = errors.New("stale")
	// ErrBusy: another cut-over of the key is open.
	ErrBusy = errors.New("a cut-over is open")
	// ErrUnknown: there is no such rotation, version, verifier or presenter.
	ErrUnknown = errors.New("unknown")
	// ErrPhase: the rotation is in a phase that does not allow the command.
	ErrPhase = errors.New("not possible in this phase")
	// ErrCompromised: the command would bring a compromised version back.
	ErrCompromised = errors.New("version is compromised")
	// ErrRestored: the store was restored and the key stands still until it is
	// reconciled.
	ErrRestored = errors.New("the key stands still after a restore")
	// ErrLockOut: the command would lock presenters out.
	ErrLockOut = errors.New("presenters would be locked out")
	// ErrInvalid: the event is malformed.
	ErrInvalid = errors.New("invalid event")
)
