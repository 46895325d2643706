package sum

import "testing"

func TestSum(t *testing.T) {
	s := &summer{}
	if got := s.add(1, 2, 3); got != 6 {
		t.Errorf("sum is %d", got)
	}
	if s.note(); s.count != 1 {
		t.Errorf("count is %d", s.count)
	}
}
