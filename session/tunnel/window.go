package tunnel

import (
	"sync"
	"sync/atomic"
)

const (
	// windowBlocks is how many blocks of 64 counters there are; a power of two. A peer with several processors seals in several
	// goroutines at once, and the system may stop one of them between sealing a train and sending it while the others go
	// on: for 8 ms at a million packets a second that is as much as WireGuard's 8,128, so there are four times as many.
	windowBlocks = 512
	// windowSize is how far behind the newest counter one is still accepted. The block in which the newest lies
	// may have just begun, so it does not count.
	windowSize = (windowBlocks - 1) * 64
)

// window remembers which of the latest counters have been seen, as RFC 6479 describes: a ring of bits that is
// cleared a block at a time as the newest counter moves on. The zero value has seen nothing.
type window struct {
	mu   sync.Mutex    // held while marking
	last atomic.Uint64 // the newest counter marked; zero at the start
	ring [windowBlocks]atomic.Uint64
}

func (w *window) word(counter uint64) (word *atomic.Uint64, bit uint64) {
	return &w.ring[counter/64%windowBlocks], 1 << (counter % 64)
}

// fresh reports whether counter could be marked. It takes no lock and changes nothing: the answer may be out of
// date when it is given, so it saves work but decides nothing.
func (w *window) fresh(counter uint64) bool {
	last := w.last.Load()
	switch {
	case counter > last:
		return true
	case last-counter > windowSize:
		return false
	}
	word, bit := w.word(counter)
	return word.Load()&bit == 0
}

// mark reports whether counter is seen for the first time and within the window, and remembers it.
func (w *window) mark(counter uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := w.last.Load()
	switch {
	case counter > last:
		blocks := min(counter/64-last/64, windowBlocks)
		for i := range blocks {
			w.ring[(last/64+1+i)%windowBlocks].Store(0)
		}
		w.last.Store(counter)
	case last-counter > windowSize:
		return false
	}
	word, bit := w.word(counter)
	seen := word.Load()
	word.Store(seen | bit)
	return seen&bit == 0
}
