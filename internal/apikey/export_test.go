package apikey

import "context"

// Sweep deletes what has expired, as the service does from time to time.
func (s *Service) Sweep(ctx context.Context) error { return s.sweepKind(ctx, kindEntry) }
