package session

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch"
)

const (
	maxSlots   = 32_768           // handshakes answered and not yet forgotten, per listener
	slotLife   = 10 * time.Second // how long a peer has to open a path, and how long a slot is kept after
	maxWaiting = 4                // requests that wait for one answer

	// Handshakes a second that are worth a Diffie-Hellman, of everybody and of addresses that somebody admitted has
	// connected from: strangers cannot use up what friends need.
	strangerRate, strangerBurst = 200, 400
	friendRate, friendBurst     = 1000, 2000

	maxFriends = 4096      // addresses
	friendLife = time.Hour // since somebody admitted connected from one
)

// slot is one handshake, from its first message until it is forgotten. Its fields are guarded by the lock of its slots.
type slot struct {
	id      int
	msg     key.Target // hash of the first message
	waiting []*dht.HandshakeRequest
	until   time.Time // it is forgotten; zero: later

	answered bool
	noise    []byte // second message; nil: silence
	sock     Socket // it leaves from; nil: the one asked
	puncher  *punch.Server
	meeting  *relayed // at a relay, from before the answer; nil: none
}

// slots are the handshakes of a listener. A retry of the first message, which may come through another relay, finds the slot
// and gets the same answer. Methods are safe for concurrent use.
type slots struct {
	mu      sync.Mutex // guards the fields below
	all     []*slot    // by number; nil: free
	free    []int      // numbers
	byMsg   map[key.Target]*slot
	ending  []*slot // in order of until
	friends map[netip.Addr]time.Time
	closed  bool

	strangers, known *rate.Limiter
}

func newSlots() slots {
	return slots{
		byMsg: make(map[key.Target]*slot), friends: make(map[netip.Addr]time.Time),
		strangers: rate.NewLimiter(strangerRate, strangerBurst), known: rate.NewLimiter(friendRate, friendBurst),
	}
}

// take finds the slot of a request. It returns a new one if the caller is to answer it, and nil if that is being done or
// nobody will. A request whose answer is there gets it.
func (t *slots) take(req *dht.HandshakeRequest, now time.Time) *slot {
	msg := key.Hash(req.Noise)
	t.mu.Lock()
	t.expireLocked(now)
	if s := t.byMsg[msg]; s != nil {
		if s.answered {
			noise, sock := s.noise, s.sock
			t.mu.Unlock()
			reply(req, sock, noise)
			return nil
		}
		if len(s.waiting) < maxWaiting {
			s.waiting = append(s.waiting, req)
		}
		t.mu.Unlock()
		return nil
	}
	defer t.mu.Unlock()
	if t.closed || !t.allowLocked(req.Client.Addr(), now) {
		return nil
	}
	s := &slot{msg: msg, waiting: []*dht.HandshakeRequest{req}}
	switch n := len(t.free); {
	case n > 0:
		s.id = t.free[n-1]
		t.free = t.free[:n-1]
		t.all[s.id] = s
	case len(t.all) < maxSlots:
		s.id = len(t.all)
		t.all = append(t.all, s)
	default:
		return nil
	}
	t.byMsg[msg] = s
	return s
}

// allowLocked reports whether a handshake from the address may be answered now.
func (t *slots) allowLocked(from netip.Addr, now time.Time) bool {
	if at, ok := t.friends[from]; ok && now.Sub(at) < friendLife && t.known.AllowN(now, 1) {
		return true
	}
	return t.strangers.AllowN(now, 1)
}

// befriend notes that somebody admitted has connected from the address.
func (t *slots) befriend(from netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.friends[from]; !ok && len(t.friends) >= maxFriends {
		for a := range t.friends { // any one
			delete(t.friends, a)
			break
		}
	}
	t.friends[from] = now
}

// answered sets the answer to the requests of a slot, and gives it to those that wait.
func (t *slots) answered(s *slot, noise []byte, sock Socket) {
	t.mu.Lock()
	s.answered, s.noise, s.sock = true, noise, sock
	waiting := s.waiting
	s.waiting = nil
	t.mu.Unlock()
	for _, r := range waiting {
		reply(r, sock, noise)
	}
}

// punching sets who punches for a slot.
func (t *slots) punching(s *slot, p *punch.Server) {
	t.mu.Lock()
	s.puncher = p
	t.mu.Unlock()
}

// puncher returns who punches for the slot with a number, nil for nobody.
func (t *slots) puncher(id uint64) *punch.Server {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id >= uint64(len(t.all)) || t.all[id] == nil {
		return nil
	}
	return t.all[id].puncher
}

// punched returns who punches for s, nil for nobody.
func (t *slots) punched(s *slot) *punch.Server {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.puncher
}

// retire has the slot forgotten after slotLife: retries of the client still find the answer.
func (t *slots) retire(s *slot, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.until = now.Add(slotLife)
	t.ending = append(t.ending, s)
}

// forget frees the slot at once.
func (t *slots) forget(s *slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(s)
}

func (t *slots) forgetLocked(s *slot) {
	if s.id < len(t.all) && t.all[s.id] == s {
		t.all[s.id] = nil
		t.free = append(t.free, s.id)
		delete(t.byMsg, s.msg)
	}
}

// expire forgets the slots whose time has come.
func (t *slots) expire(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked(now)
}

func (t *slots) expireLocked(now time.Time) {
	n := 0
	for n < len(t.ending) && !now.Before(t.ending[n].until) {
		t.forgetLocked(t.ending[n])
		t.ending[n] = nil
		n++
	}
	if t.ending = t.ending[n:]; len(t.ending) == 0 {
		t.ending = nil
	}
	if len(t.byMsg) == 0 {
		t.all, t.free = nil, nil
	}
}

// close forgets all slots, and answers nobody from then on.
func (t *slots) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.all, t.free, t.ending = nil, nil, nil
	clear(t.byMsg)
}
