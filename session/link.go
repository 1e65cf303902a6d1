package session

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht/compact"
	"omegatun/dht/key"
	"omegatun/session/noise"
	"omegatun/session/secretstream"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
)

// Times of a link's life. See DESIGN in ARCHITECTURE.md, "Paths".
const (
	probesToOpen  = 60              // probes of one candidate while a link opens: about 14 s
	probesUnheard = 12              // probes by a responder that has not heard the initiator: about 2.5 s
	probesToCheck = 8               // probes of an address that the peer was heard from: about 1 s
	probeEvery    = 3 * time.Second // on a path with traffic
	probeSpare    = 2 * time.Second // … if there is a relayed path to fall back to
	deadRelay     = 3 * time.Second // as deadAfter, of a relayed path
	hurryEvery    = 1 * time.Second // once a probe has not been answered
	deadAfter     = 6500 * time.Millisecond
	deadSoon      = 1500 * time.Millisecond // the same where another link works, or a relay
	deadChecked   = 1 * time.Second         // the same where there is a reason to doubt, and several probes are sent
	doubtAfter    = 600 * time.Millisecond  // of silence in a conversation
	keepAlive     = 25 * time.Second        // between probes of an idle path: NAT mappings live 30 s and more
	trafficWindow = 10 * time.Second        // a path has traffic if data went either way within it
	deadLossy     = 10 * time.Second        // as deadAfter, of a path that loses most probes anyhow: silence says little
	hurryLossy    = 500 * time.Millisecond  // as hurryEvery, of such a path
	moveLossy     = 3 * time.Second         // of silence of such a path before another of its kind takes over
	giveUpAfter   = 90 * time.Second        // without anything authentic a link is forgotten
	overdueAfter  = 140 * time.Second       // age of keys at which the initiator makes another link: rekeying has failed
	overdueMargin = 15 * time.Second        // how much later the responder does
)

// link is one completed handshake: its keys, its tunnel, its stream, and the paths they use. A link is
// made by Host.dial or by a Listener and lives until close.
//
//	opening ──a probe is answered──▶ up ──6.5 s of silence──▶ suspect ──heard again──▶ up
//	   └──────────────── close ───────┴───────────────────────────┴──────▶ closed
//
// A link that carries a plain stream has no tunnel: it is up when its stream has heard the peer.
type link struct {
	host      *Host
	log       *slog.Logger
	local     key.Public
	remote    key.Public
	initiator bool
	beside    bool      // of a relayed link to the same peer: there is no need of another relay
	began     time.Time // message 1 was sent, or received
	account   *account
	result    noise.Result

	epoch   *tunnel.Session // nil: the two did not agree on a tunnel
	index   uint32          // names the tunnel in the first datagrams to us, and the link among all; 0 without one
	control atomic.Pointer[control]

	stream   *udx.Stream
	secure   atomic.Pointer[secretstream.Conn] // on top of stream, once it is connected
	remoteID udx.ID
	framed   bool                  // the remote stream id is known; guarded by mu
	proves   bool                  // the peer answers challenges, see streampath.go; guarded by mu until framed
	atRelay  atomic.Pointer[route] // of a plain stream, once the peer has been met at a relay
	also     atomic.Pointer[route] // where the peer of a plain stream is heard as well; nil: nowhere
	relaying atomic.Bool           // of a plain stream: it serves to arrange relaying for the peer

	peer atomic.Pointer[Peer]  // set when the link belongs to a Peer
	cur  atomic.Pointer[route] // where datagrams go; nil while opening

	heard    atomic.Int64 // Unix nanoseconds of the last authentic datagram
	received atomic.Int64 // … of the last IP packet from the peer
	sent     atomic.Int64 // … of the last IP packets to the peer

	up   chan struct{} // closed when the link is up
	done chan struct{} // closed by close

	parts  atomic.Uint32 // packets that were sent in parts
	joiner tunnel.Joiner

	tune   chan struct{} // capacity 1: runMTU looks again
	direct chan struct{} // closed when a path is in use that is not relayed

	mu         sync.Mutex // guards the fields below; taken after Peer.mu; nothing is sent or called under it
	prober     prober
	controlled bool        // startControl was called
	tuning     bool        // runMTU is running
	checked    bool        // several probes have been sent since unheard, because there is a reason to doubt
	stale      bool        // the control stream has ended, or keys are overdue: another link should take the place of this one
	challenges []challenge // that may still be answered
	challenged time.Time   // when the last was sent to an address that the stream did not know
	moved      time.Time   // when a plain stream was last pointed elsewhere
	early      *route      // where the stream was heard before the remote id was known
	isUp       bool
	upAt       time.Time
	closed     bool
	err        error
	lastProbe  time.Time // of the path in use
	unheard    time.Time // first probe of the path in use since which nothing was heard; zero: none
	suspect    bool
	tally      tally                // of the paths in use: the loss is mostly that of a line which all of them share
	lossy      bool                 // most probes were lost before unheard
	punching   bool                 // hole punching goes on, as its client
	retrying   bool                 // another link looks for a direct path
	hurried    bool                 // that is to be soon
	retries    int                  // how many have
	retryFrom  time.Time            // when the pause before the next began
	crossed    time.Time            // when the family was last changed for a shorter round trip
	retireAt   time.Time            // a better link replaced this one; zero: none did
	parting    parting              // from one that crossed this one
	owned      []Socket             // of punched paths; see sockets
	waiting    map[uint64]chan Pong // by probe id; each channel has room for the answer
	wake       chan struct{}        // capacity 1: the opening goroutine looks again
}

func (h *Host) newLink(local, remote key.Public, initiator bool, began time.Time) *link {
	return &link{
		host: h, local: local, remote: remote, initiator: initiator, began: began,
		log:     h.log.With("peer", remote.Short()),
		account: newAccount(began, !initiator),
		up:      make(chan struct{}),
		done:    make(chan struct{}),

		direct: make(chan struct{}),
		wake:   make(chan struct{}, 1),
		tune:   make(chan struct{}, 1),
	}
}

// startTunnel makes the tunnel that both sides offered.
func (l *link) startTunnel(ours, theirs tunnel.Offer) error {
	params, err := tunnel.Negotiate(ours, theirs)
	if err != nil {
		return err
	}
	res := &l.result
	epoch, err := tunnel.NewSession(params, l.initiator, res.Tx, res.Rx, res.Hash, time.Now())
	if err != nil {
		return err
	}
	l.mu.Lock()
	closed := l.closed
	l.epoch = epoch
	l.mu.Unlock()
	if closed {
		epoch.Close()
		return l.cause()
	}
	l.host.links.Store(l.index, l) // from here on datagrams come in
	return nil
}

// setIndex names the link. The mutex is for close, which may come any time.
func (l *link) setIndex(index uint32) {
	l.mu.Lock()
	l.index = index
	l.mu.Unlock()
}

// reserveIndex draws an unused receiver index. Datagrams that carry it come to nobody before startTunnel.
func (h *Host) reserveIndex() uint32 {
	for {
		var b [4]byte
		rand.Read(b[:]) // never fails
		if i := binary.LittleEndian.Uint32(b[:]); i != 0 {
			if _, taken := h.links.LoadOrStore(i, (*link)(nil)); !taken {
				return i
			}
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// rtt returns the round trip of the path in use; 0 while not measured.
func (l *link) rtt() time.Duration {
	if r := l.cur.Load(); r != nil {
		return time.Duration(r.rtt.Load())
	}
	return 0
}

// kind returns the kind of the path in use, of a link that is or was up.
func (l *link) kind() PathKind { return l.cur.Load().kind }

// inheritLoss takes over what another link to the peer knows of the line; nil: nothing is known.
func (l *link) inheritLoss(from *link) {
	var t tally
	var lossy bool
	if from != nil {
		from.mu.Lock()
		t, lossy = from.tally, from.lossy
		from.mu.Unlock()
	}
	l.mu.Lock()
	l.tally, l.lossy = t, lossy
	l.mu.Unlock()
}

// openedAt returns when the link came up.
func (l *link) openedAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.upAt
}

// suite names the tunnel's cipher.
func (l *link) suite() string {
	if l.epoch == nil {
		return ""
	}
	return l.epoch.Suite().String()
}

// failed notes that the tunnel cannot seal or send any more.
func (l *link) failed(err error) {
	if errors.Is(err, tunnel.ErrExhausted) {
		l.close(err)
	}
}

// sound reports whether the link is healthy and will stay so.
func (l *link) sound() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isUp && !l.closed && !l.suspect && !l.stale
}

// healthy reports whether the link is up and its path answers.
func (l *link) healthy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isUp && !l.closed && !l.suspect
}

func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// goodbye tells the peer that we close, so that it need not find out by silence.
func (l *link) goodbye(code tunnel.CloseCode) {
	if c := l.control.Load(); c != nil {
		c.send(messageGoodbye, compact.AppendUint(nil, uint64(code)))
	}
	if r := l.cur.Load(); r != nil && l.epoch != nil {
		l.sendControl(r, tunnel.Control{Kind: tunnel.Close, Code: code})
	}
}

// close ends the link and everything it owns. It may be called more than once; the first cause is kept.
func (l *link) close(cause error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed, l.err = true, cause
	l.account.failed(cause)
	owned := l.owned
	if l.parting.timer != nil {
		l.parting.timer.Stop()
	}
	name, epoch := l.index, l.epoch
	close(l.done)
	l.mu.Unlock()

	l.host.streams.Delete(l)
	if name != 0 {
		l.host.links.Delete(name)
	}
	if epoch != nil {
		for _, index := range epoch.Indexes() {
			l.host.links.Delete(index)
		}
	}
	if l.stream != nil && !isClosed(l.stream.Done()) { // what a finished stream has received can still be read
		l.stream.Reset(cause)
	}
	for _, s := range owned {
		l.host.sockets.release(s, time.Now())
	}
	if epoch != nil {
		epoch.Close()
	}
	l.host.linkClosed(l)
}
