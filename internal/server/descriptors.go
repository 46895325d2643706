package server

import (
	"context"
	"syscall"
)

// checkDescriptors warns when fewer parties can connect than are allowed, because
// every connection is an open file. The runtime has raised the soft limit to the
// hard one by now.
func (s *Server) checkDescriptors(ctx context.Context) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return // it is only a warning
	}
	if allowed := s.config.Limits.Parties; limit.Cur < uint64(allowed) {
		s.log.WarnContext(ctx, "fewer parties than limits.parties allows can connect; raise the limit on open files, for example by LimitNOFILE in the systemd unit",
			"open_files", limit.Cur, "parties", allowed)
	}
}
