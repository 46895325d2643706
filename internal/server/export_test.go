package server

// CloseStore takes the store away from a running server.
func CloseStore(s *Server) error { return s.store.Stop() }
