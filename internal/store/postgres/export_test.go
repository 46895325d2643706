package postgres

// Die stops showing life, as a process that was killed does.
func (s *Store) Die() {
	s.stop()
	s.background.Wait()
}
