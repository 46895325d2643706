package rpc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/key"
)

// ReadLog implements ControlService.
func (c Control) ReadLog(ctx context.Context, request *keyturnv1.ReadLogRequest) (*keyturnv1.ReadLogResponse, error) {
	principal, err := c.allow(ctx, authz.Read, "")
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(request.GetLimit())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("limit: %d is not between 1 and %d", request.GetLimit(), maxPage))
	}
	var filter engine.LogFilter
	if !coversAll(principal) {
		filter.Visible = func(name key.Name) bool { return authz.Covers(principal.Keys, name) }
	}
	if request.GetKey() != "" {
		if filter.Key, err = parseKey("key", request.GetKey()); err != nil {
			return nil, err
		}
		if _, err := c.allow(ctx, authz.Read, filter.Key); err != nil {
			return nil, err
		}
	}
	if request.GetRotationId() != "" {
		view, _, err := c.rotation(ctx, authz.Read, request.GetRotationId())
		if err != nil {
			return nil, err
		}
		filter.Rotation = view.ID
	}
	page, err := c.config.Engine.ReadLog(ctx, request.GetFrom(), limit, filter)
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.ReadLogResponse{Entries: page.Entries, Next: page.Next, Size: page.Size}, nil
}

// ExportLog implements ControlService.
func (c Control) ExportLog(ctx context.Context, _ *keyturnv1.ExportLogRequest, stream *connect.ServerStream[keyturnv1.ExportLogResponse]) error {
	if _, err := c.allowEverything(ctx, authz.Read); err != nil {
		return err
	}
	pieces := &pieceWriter{send: func(piece []byte) error { return stream.Send(&keyturnv1.ExportLogResponse{Piece: piece}) }}
	if err := c.config.Engine.ExportLog(ctx, pieces, c.config.LogKeys...); err != nil {
		return wire(err)
	}
	return pieces.flush()
}

// SignEvidence implements ControlService.
func (c Control) SignEvidence(ctx context.Context, request *keyturnv1.SignEvidenceRequest) (*keyturnv1.SignEvidenceResponse, error) {
	principal, err := c.allowEverything(ctx, authz.Read)
	if err != nil {
		return nil, err
	}
	if len(request.GetManifestSha256()) != sha256.Size {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("manifest_sha256: it has %d bytes, %d are needed", len(request.GetManifestSha256()), sha256.Size))
	}
	id, err := key.ParseRotationID(request.GetId())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("id: %w", err))
	}
	kind := "emergency"
	if _, err = c.config.Emergencies.View(ctx, id); errors.Is(err, engine.ErrNotFound) {
		kind = "rotation"
		_, err = c.config.Engine.Rotation(ctx, id)
	}
	if err != nil {
		return nil, wire(err)
	}
	signed, err := c.config.Engine.SignEvidence(ctx, actorOf(principal), kind, id.String(), [sha256.Size]byte(request.GetManifestSha256()))
	if err != nil {
		return nil, wire(err)
	}
	return &keyturnv1.SignEvidenceResponse{Note: signed}, nil
}

// pieceWriter sends what is written in pieces of about 64 KiB.
type pieceWriter struct {
	buffer []byte
	send   func([]byte) error
}

const pieceSize = 64 << 10

// Write implements io.Writer.
func (w *pieceWriter) Write(p []byte) (int, error) {
	w.buffer = append(w.buffer, p...)
	if len(w.buffer) < pieceSize {
		return len(p), nil
	}
	return len(p), w.flush()
}

func (w *pieceWriter) flush() error {
	if len(w.buffer) == 0 {
		return nil
	}
	err := w.send(w.buffer)
	w.buffer = w.buffer[:0]
	return err
}

// Doctor implements ControlService.
func (c Control) Doctor(ctx context.Context, _ *keyturnv1.DoctorRequest) (*keyturnv1.DoctorResponse, error) {
	if _, err := c.allowEverything(ctx, authz.Read); err != nil {
		return nil, err
	}
	select {
	case c.doctors <- struct{}{}:
		defer func() { <-c.doctors }()
	default:
		return nil, tooMany(5*time.Second, "an examination is under way already; wait for it")
	}
	checks, err := c.config.Engine.Doctor(ctx)
	if err != nil {
		return nil, wire(err)
	}
	response := &keyturnv1.DoctorResponse{}
	for _, check := range checks {
		response.Checks = append(response.Checks, &keyturnv1.Check{Name: check.Name, Status: check.Status, Message: check.Message, Hint: check.Hint})
	}
	return response, nil
}
