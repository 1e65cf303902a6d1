package session

import (
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"omegatun/dht/key"
)

const (
	// socketIdle is how long the socket of a punched path is kept after its last link: the next link to the peer needs no
	// punching then, and late packets of the last one find somebody. NAT mappings live 30 s and more.
	socketIdle = 25 * time.Second
	// maxIdleSockets bounds the sockets kept that way.
	maxIdleSockets = 64
	maxNearby      = 512
)

// nearby is where a peer was reached without help.
type nearby struct {
	sock   Socket
	remote netip.AddrPort
}

// sockets are the sockets of punched paths, each shared by the links that use it, and the ways to peers over these and the
// main ones. Methods are safe for concurrent use.
type sockets struct {
	isMain func(Socket) bool
	log    *slog.Logger

	mu     sync.Mutex // guards the fields below; taken after link.mu
	held   map[Socket]int
	idle   []idleSocket // those that no link uses, longest first
	nearby map[key.Public]nearby
	closed bool
}

type idleSocket struct {
	sock  Socket
	since time.Time
}

// keep makes a link the first or another owner of s.
func (t *sockets) keep(s Socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keepLocked(s)
}

func (t *sockets) keepLocked(s Socket) {
	t.held[s]++
	t.idle = slices.DeleteFunc(t.idle, func(i idleSocket) bool { return i.sock == s })
}

// leave keeps s as one that has lost its last owner, unless it has one or had one.
func (t *sockets) leave(s Socket) {
	t.mu.Lock()
	_, known := t.held[s]
	if !known {
		t.held[s] = 1
	}
	t.mu.Unlock()
	if !known {
		t.release(s, time.Now())
	}
}

// hold makes a link another owner of s. It reports false if s has no owner, or is one of the main sockets.
func (t *sockets) hold(s Socket) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holdLocked(s)
}

func (t *sockets) holdLocked(s Socket) bool {
	if _, ok := t.held[s]; !ok || t.closed {
		return false
	}
	t.keepLocked(s)
	return true
}

// release ends what keep or hold began. A socket without owner is closed some time later.
func (t *sockets) release(s Socket, now time.Time) {
	t.mu.Lock()
	n, ok := t.held[s]
	if !ok {
		t.mu.Unlock()
		return
	}
	if n--; n > 0 {
		t.held[s] = n
		t.mu.Unlock()
		return
	}
	t.held[s] = 0
	t.idle = append(t.idle, idleSocket{s, now})
	gone := t.dropLocked(now)
	t.mu.Unlock()
	t.closeAll(gone)
}

// expire closes the sockets that nobody has used for socketIdle.
func (t *sockets) expire(now time.Time) {
	t.mu.Lock()
	gone := t.dropLocked(now)
	t.mu.Unlock()
	t.closeAll(gone)
}

// dropLocked returns the sockets to close.
func (t *sockets) dropLocked(now time.Time) (gone []Socket) {
	for len(t.idle) > 0 && (t.closed || len(t.idle) > maxIdleSockets || now.Sub(t.idle[0].since) >= socketIdle) {
		s := t.idle[0].sock
		t.idle = t.idle[1:]
		delete(t.held, s)
		for k, n := range t.nearby {
			if n.sock == s {
				delete(t.nearby, k)
			}
		}
		gone = append(gone, s)
	}
	return gone
}

func (t *sockets) closeAll(list []Socket) {
	for _, s := range list {
		if err := s.Close(); err != nil {
			t.log.Debug("socket not closed", "local", s.LocalAddr(), "error", err)
		}
	}
}

// close closes the sockets that have no owner, at once, and the others as soon as they have none.
func (t *sockets) close() {
	t.mu.Lock()
	t.closed = true
	gone := t.dropLocked(time.Now())
	t.mu.Unlock()
	t.closeAll(gone)
}

// reached notes that the peer is at the address, as seen from s.
func (t *sockets) reached(k key.Public, s Socket, remote netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.nearby[k]; !known && len(t.nearby) >= maxNearby {
		for old := range t.nearby { // any one
			delete(t.nearby, old)
			break
		}
	}
	t.nearby[k] = nearby{s, remote}
}

// near returns where the peer was reached last. Its socket is held for the caller, unless it is a main one.
func (t *sockets) near(k key.Public) (n nearby, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok = t.nearby[k]
	if ok && !t.isMain(n.sock) && !t.holdLocked(n.sock) {
		delete(t.nearby, k)
		return nearby{}, false
	}
	return n, ok
}

// forget drops what is known of where a peer is, if it is still n.
func (t *sockets) forget(k key.Public, n nearby) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nearby[k] == n {
		delete(t.nearby, k)
	}
}
