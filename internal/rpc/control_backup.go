package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
)

// Limits on backups.
const (
	maxRecipients = 8
	// maxRecipient is the longest recipient, in bytes: those of age that withstand
	// quantum computers have about 2,000.
	maxRecipient = 4096
	// recordTimeout is how long the end of a backup may take to be recorded, whether
	// its caller is there or not.
	recordTimeout = 10 * time.Second
)

// errRecipients is part of every refusal of recipients.
var errRecipients = errors.New("recipients")

// Backup implements ControlService.
func (c Control) Backup(ctx context.Context, request *keyturnv1.BackupRequest, stream *connect.ServerStream[keyturnv1.BackupResponse]) error {
	principal, err := c.allowEverything(ctx, authz.Backup)
	if err != nil {
		return err
	}
	recipients := request.GetRecipients()
	if err := c.checkRecipients(recipients); err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	ctx, leave, err := c.config.Backups.Begin(ctx)
	if errors.Is(err, ErrBackupRuns) {
		return tooMany(time.Minute, err.Error())
	}
	if err != nil {
		return wire(err)
	}
	// The next one may begin when the end of this one is to be seen.
	defer leave()
	// A token that is revoked, and a server that stops, end it.
	ctx, end := c.guard(ctx, principal.ID)
	defer end()
	detail := recipientDetail(recipients)
	if err := c.config.Engine.Record(ctx, actorOf(principal), audit.Entry{Action: "backup.begin", Outcome: audit.OutcomeOK, Detail: detail}); err != nil {
		return ended(ctx, err)
	}
	manifest, err := c.sendBackup(ctx, recipients, stream)
	err = ended(ctx, err)
	leave()
	entry := audit.Entry{Action: "backup.end", Outcome: audit.OutcomeOK, Detail: maps.Clone(detail)}
	if err != nil {
		entry.Outcome, entry.Reason = audit.OutcomeFailed, err.Error()
	} else {
		entry.Detail["rows"], entry.Detail["log-size"] = strconv.FormatInt(manifest.GetRows(), 10), strconv.FormatUint(manifest.GetLogSize(), 10)
		entry.Detail["bytes"], entry.Detail["sha256"] = strconv.FormatInt(manifest.GetBytes(), 10), hex.EncodeToString(manifest.GetSha256())
	}
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := errors.Join(err, c.config.Engine.Record(recording, actorOf(principal), entry)); err != nil {
		return wire(err)
	}
	return stream.Send(&keyturnv1.BackupResponse{Content: &keyturnv1.BackupResponse_Manifest{Manifest: manifest}})
}

func (c Control) checkRecipients(recipients []string) error {
	if n := len(recipients); n == 0 || n > maxRecipients {
		return fmt.Errorf("%w: there are %d, 1 to %d are allowed", errRecipients, n, maxRecipients)
	}
	for i, recipient := range recipients {
		if len(recipient) > maxRecipient {
			return fmt.Errorf("%w: number %d has %d characters, at most %d are allowed", errRecipients, i+1, len(recipient), maxRecipient)
		}
	}
	if err := c.config.Backups.Check(recipients); err != nil {
		return fmt.Errorf("%w: %w", errRecipients, err)
	}
	return nil
}

// recipientDetail names the recipients in an audit entry; of one that is too long
// for it, the SHA-256.
func recipientDetail(recipients []string) map[string]string {
	detail := map[string]string{}
	for i, recipient := range recipients {
		if len(recipient) > audit.MaxDetail {
			recipient = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(recipient)))
		}
		detail[fmt.Sprintf("recipient.%d", i+1)] = recipient
	}
	return detail
}

// sendBackup sends all but the manifest, which it returns.
func (c Control) sendBackup(ctx context.Context, recipients []string, stream *connect.ServerStream[keyturnv1.BackupResponse]) (*keyturnv1.BackupManifest, error) {
	sum, size := sha256.New(), int64(0)
	pieces := &pieceWriter{send: func(piece []byte) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		sum.Write(piece)
		size += int64(len(piece))
		return stream.Send(&keyturnv1.BackupResponse{Content: &keyturnv1.BackupResponse_Piece{Piece: piece}})
	}}
	manifest, err := c.config.Backups.Write(ctx, pieces, recipients)
	if err == nil {
		err = pieces.flush()
	}
	if err != nil {
		return nil, err
	}
	return &keyturnv1.BackupManifest{
		CreatedAt: timestamp(manifest.Created), Rows: manifest.Rows, LogSize: manifest.LogSize, Bytes: size, Sha256: sum.Sum(nil),
	}, nil
}
