package tun

import "time"

// A batch is under way until all of it has been sent, and nothing else is read meanwhile: not the packet that should go
// first. So on a slow line, whose socket makes senders wait, batches are made small.
const (
	portionLong  = 4 * time.Millisecond
	portionShort = time.Millisecond
	portionLeast = 6 // halvings: a packet or two
)

// portion is how much a batch takes of what it has room for. The zero value is all of it.
type portion struct {
	halvings int
}

// adapt is told how long the last batch was under way.
func (p *portion) adapt(took time.Duration) {
	switch {
	case took > portionLong:
		p.halvings = min(p.halvings+1, portionLeast)
	case took < portionShort:
		p.halvings = max(p.halvings-1, 0)
	}
}

// of returns the part of n, which is at least one.
func (p *portion) of(n int) int { return max(n>>p.halvings, 1) }
