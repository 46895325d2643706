package rpc

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"time"

	"golang.org/x/time/rate"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/identity"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// Engine is what the transport needs of the engine.
type Engine interface {
	Apply(ctx context.Context, actor audit.Actor, request engine.ApplyRequest) (engine.ApplyResult, error)
	Rotate(ctx context.Context, actor audit.Actor, request engine.RotateRequest) (key.RotationID, error)
	Rollback(ctx context.Context, actor audit.Actor, of key.RotationID, reason string) (key.RotationID, error)
	Reconcile(ctx context.Context, actor audit.Actor, request engine.ReconcileRequest) (key.RotationID, error)
	Steer(ctx context.Context, actor audit.Actor, id key.RotationID, steer engine.Steer, reason string) error

	Key(ctx context.Context, name key.Name) (engine.KeyView, error)
	Keys(ctx context.Context, prefix, after string, limit int) ([]engine.KeyView, error)
	Reveal(ctx context.Context, actor audit.Actor, from string, name key.Name, v key.Version, label key.Label) (key.Version, engine.Material, error)
	Rotation(ctx context.Context, id key.RotationID) (engine.RotationView, error)
	Rotations(ctx context.Context, name key.Name, after key.RotationID, limit int) ([]engine.RotationView, error)
	WatchRotation(ctx context.Context, id key.RotationID, visit func(engine.RotationView) error) error
	Timeline(ctx context.Context, id key.RotationID) ([]engine.Moved, error)
	PolicyText(ctx context.Context, ref engine.PolicyRef) ([]byte, error)
	Plan(ctx context.Context, name key.Name) (policy.Timeline, error)
	Parties(ctx context.Context, after string, limit int) ([]engine.PartyRecord, error)
	Party(ctx context.Context, id string) (engine.PartyRecord, error)

	OpenLeaks(ctx context.Context, after string, limit int) (open []engine.OpenLeak, next string, err error)
	MatchLeaks(ctx context.Context, actor audit.Actor, candidates []engine.LeakCandidate, visible func(key.Name) bool) ([]engine.LeakMatch, error)
	Rules(ctx context.Context) ([]engine.RuleView, error)
	Learned(ctx context.Context, name key.Name) (engine.Learned, error)
	Relearn(ctx context.Context, actor audit.Actor, request engine.RelearnRequest) ([]string, error)
	Record(ctx context.Context, actor audit.Actor, entry audit.Entry) error
	ReadLog(ctx context.Context, from uint64, limit int, filter engine.LogFilter) (engine.LogPage, error)
	ExportLog(ctx context.Context, w io.Writer, verifierKeys ...string) error
	SignEvidence(ctx context.Context, actor audit.Actor, kind, id string, digest [sha256.Size]byte) ([]byte, error)
	Doctor(ctx context.Context) ([]engine.Check, error)
}

// Hub is what the transport needs of the hub.
type Hub interface {
	Connect(ctx context.Context, actor audit.Actor, party engine.PartyRecord, holdings []engine.Holding) (*hub.Session, error)
	Poll(ctx context.Context, actor audit.Actor, party engine.PartyRecord, holdings []engine.Holding, wait time.Duration) ([]hub.Delivery, error)
	Acknowledge(ctx context.Context, party string, outcomes []hub.Outcome) error
	Report(ctx context.Context, name key.Name, version key.Version, sample engine.Sample) error
	Leave(ctx context.Context, actor audit.Actor, id, reason string) error
	Presence(id string) (connected bool, lastSeen time.Time)
	ComeBack() time.Duration
}

// Identity is what the transport needs of the identity registry.
type Identity interface {
	Authenticate(ctx context.Context, token secret.Value) (identity.Caller, error)
	Recent(token secret.Value) bool
	Check(ctx context.Context, id string) error
	Find(ctx context.Context, id string) (identity.Token, error)
	Issue(ctx context.Context, actor audit.Actor, request identity.Request) (identity.Token, secret.Value, error)
	Redeem(ctx context.Context, token secret.Value, wanted identity.PartyShape, taken func(ctx context.Context, id string) (bool, error)) (identity.PartyShape, secret.Value, error)
	List(ctx context.Context) ([]identity.Token, error)
	Revoke(ctx context.Context, actor audit.Actor, id string) error
}

// ErrBackupRuns is wrapped by Backups.Begin while another backup is under way.
var ErrBackupRuns = errors.New("one backup at a time")

// Backups is what the transport needs to take backups.
type Backups interface {
	// Begin takes the installation's only turn to back up, until end is called. It
	// fails with ErrBackupRuns while somebody else has it, here or at another server.
	// The context ends when the turn is lost.
	Begin(ctx context.Context) (turn context.Context, end func(), err error)
	// Check reports who of the recipients is none.
	Check(recipients []string) error
	// Write writes one snapshot of the store, encrypted to the recipients. What was
	// written before an error is no backup.
	Write(ctx context.Context, w io.Writer, recipients []string) (BackupManifest, error)
}

// BackupManifest says what a backup holds.
type BackupManifest struct {
	Created time.Time
	Rows    int64
	LogSize uint64
}

// Config is what a Service needs; fields without a default are required.
type Config struct {
	Engine   Engine
	Hub      Hub
	Identity Identity
	Backups  Backups
	// Emergencies declares groups.
	Emergencies Emergencies
	// Handouts enters what gateways handed out.
	Handouts Handouts
	// LogKeys are the verifier keys of the audit log, for exports.
	LogKeys []string
	// Now is the server's time, by which tokens expire. Default: the machine's.
	Now func() time.Time
	// Heartbeat is how often a quiet stream is kept alive. Default: 15 s.
	Heartbeat time.Duration
	// StreamsPerToken is how many streams and polls of parties one token may have
	// open. Default: 18,000.
	StreamsPerToken int
}

// Service implements the API. Its methods may be called concurrently.
type Service struct {
	config Config
	// denials bounds how fast denied calls can make the audit log grow.
	denials *rate.Limiter
	// streams are those of parties, watches those of people, by their tokens; forwarded
	// are those of both that came through a gateway, by its token.
	streams, watches, forwarded streams
	// doctors lets one examination run at a time.
	doctors chan struct{}
	// scans lets two comparisons with what scanners found run at a time.
	scans chan struct{}
	// askers bound what scanners ask, handouts what gateways tell.
	askers, handouts askers
}

// New returns a service.
func New(config Config) *Service {
	if config.Heartbeat == 0 {
		config.Heartbeat = 15 * time.Second
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.StreamsPerToken == 0 {
		config.StreamsPerToken = 18_000
	}
	return &Service{config: config, denials: rate.NewLimiter(10, 100), doctors: make(chan struct{}, 1), scans: make(chan struct{}, 2)}
}
