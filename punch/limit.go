package punch

import "sync"

// Limit bounds how many attempts of one host guess ports at the same time, because each of them costs the router some
// two thousand mappings. All attempts that go through one router share a Limit. It is safe for concurrent use.
type Limit struct {
	mu     sync.Mutex
	max    int
	active int
}

// NewLimit returns a Limit of n attempts at a time; n ≤ 0 means 2.
func NewLimit(n int) *Limit {
	if n <= 0 {
		n = 2
	}
	return &Limit{max: n}
}

// acquire takes a place if there is one. A nil Limit has always one.
func (l *Limit) acquire() bool {
	if l == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active >= l.max {
		return false
	}
	l.active++
	return true
}

// release gives the place back.
func (l *Limit) release() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
}
