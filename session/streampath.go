package session

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"net/netip"
	"slices"
	"time"

	"omegatun/dht/key"
	"omegatun/session/udx"
)

// A plain stream follows its peer to another address only after the peer has shown, at that address, that it knows the keys:
// what UDX sends says nothing about who sent it. Two unordered messages do that:
//
//	u8 type | 16 nonce | 16 MAC       type: 1 challenge, 2 response
//
// The MAC is the beginning of BLAKE2b-256 of type and nonce, under a key that is BLAKE2b-256 of "omegatun stream path", keyed with the
// sender's key of the handshake. A packet from elsewhere is answered there with a challenge. The response goes to where the stream's
// packets go, and to the source of the challenge if that is elsewhere too, because the challenger may have moved as well. The
// reference implementation ignores both, so a peer that answers them says so behind its handshake payload, with streamMark. While
// a stream is relayed the two send each other challenges along the paths that might be direct ones.
//
// Each follows the other, and so that they do not change places for ever, the one that has dialled stays for a while where it is:
// what the peer sends from elsewhere is taken then, once it has answered a challenge there.
const (
	pathChallenge = 1
	pathResponse  = 2

	pathNonceSize   = 16
	pathMACSize     = 16
	pathMessageSize = 1 + pathNonceSize + pathMACSize
	pathPacketSize  = udx.HeaderSize + pathMessageSize

	challengeEvery = 100 * time.Millisecond // at most, to addresses that the stream does not know
	challengeLife  = 3 * time.Second
	challengesOpen = 32
	stayFor        = time.Second // see above

	// streamMark follows the handshake payload of whoever answers challenges: a name, u8 version, and u8 length of what that
	// version has to say.
	streamMark = "omst\x01\x00"
)

// challenge is one that has been sent and may be answered.
type challenge struct {
	nonce [pathNonceSize]byte
	sock  Socket
	addr  netip.AddrPort
	at    time.Time
}

// appendPathMessage appends a message of the sender with the given key of the handshake.
func appendPathMessage(b []byte, kind byte, nonce [pathNonceSize]byte, secret [32]byte) []byte {
	start := len(b)
	b = append(b, kind)
	b = append(b, nonce[:]...)
	mac := pathMAC(b[start:], secret)
	return append(b, mac[:pathMACSize]...)
}

func pathMAC(b []byte, secret [32]byte) key.Target {
	k := key.KeyedHash(secret[:], []byte("omegatun stream path"))
	return key.KeyedHash(k[:], b)
}

// parsePathMessage checks and reads a message of the sender with the given key of the handshake.
func parsePathMessage(b []byte, secret [32]byte) (kind byte, nonce [pathNonceSize]byte, ok bool) {
	if len(b) != pathMessageSize || b[0] != pathChallenge && b[0] != pathResponse {
		return 0, nonce, false
	}
	body, mac := b[:1+pathNonceSize], b[1+pathNonceSize:]
	want := pathMAC(body, secret)
	if subtle.ConstantTimeCompare(mac, want[:pathMACSize]) != 1 {
		return 0, nonce, false
	}
	return b[0], [pathNonceSize]byte(body[1:]), true
}

// strayPacket is the stream's hook for packets that acceptStream has refused.
func (l *link) strayPacket(s udx.Socket, from netip.AddrPort, message []byte) {
	sock, ok := s.(Socket)
	if !ok || l.epoch != nil || l.host.avoid(from.Addr()) {
		return
	}
	if kind, nonce, ok := parsePathMessage(message, l.result.Rx); ok {
		l.heardAt(sock, from, time.Now())
		if kind == pathResponse {
			l.follow(sock, from, nonce, time.Now())
			return
		}
		l.respond(sock, from, nonce)
	}
	now := time.Now()
	l.mu.Lock()
	if now.Sub(l.challenged) < challengeEvery {
		l.mu.Unlock()
		return
	}
	l.challenged = now
	l.mu.Unlock()
	l.challenge(sock, from, now)
}

// heardAt makes an address a candidate from which the peer, or somebody who repeats what it has sent, was heard.
func (l *link) heardAt(sock Socket, from netip.AddrPort, now time.Time) {
	const credit = (mayAnswer - 2) * pathPacketSize // besides a response and a challenge
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed && !l.prober.heard(sock, from, probesToCheck, credit, now) {
		l.prober.claim(sock, from, l.host.kindOf(from.Addr()), probesToCheck, credit, nil, now)
	}
}

// staysLocked reports whether the stream stays where it is, although its peer is elsewhere. l.mu is held.
func (l *link) staysLocked(now time.Time) bool {
	cur := l.cur.Load()
	return l.initiator && cur != nil && cur.kind != PathRelay && now.Sub(l.moved) < stayFor
}

// pathMessage is the stream's hook for unordered messages over its path, or the one before.
func (l *link) pathMessage(s udx.Socket, from netip.AddrPort, b []byte) {
	sock, ok := s.(Socket)
	if !ok || l.epoch != nil {
		return
	}
	kind, nonce, ok := parsePathMessage(b, l.result.Rx)
	switch {
	case !ok:
	case kind == pathResponse:
		l.follow(sock, from, nonce, time.Now())
	default:
		l.respond(sock, from, nonce)
	}
}

// respond answers a challenge, where it came from and where the stream's packets go. Either is lost like any datagram.
func (l *link) respond(sock Socket, from netip.AddrPort, nonce [pathNonceSize]byte) {
	b := appendPathMessage(nil, pathResponse, nonce, l.result.Tx)
	_ = l.stream.SendMessageTo(sock, from, l.remoteID, b)
	if cur := l.cur.Load(); cur != nil && !cur.is(sock, from) {
		_ = l.stream.SendMessageTo(cur.sock, cur.remote, cmp.Or(cur.id, l.remoteID), b)
	}
}

// challenge asks whoever is at an address that the stream does not use to prove that it is the peer.
func (l *link) challenge(sock Socket, addr netip.AddrPort, now time.Time) {
	l.mu.Lock()
	if l.closed || !l.isUp {
		l.mu.Unlock()
		return
	}
	c := challenge{sock: sock, addr: addr, at: now}
	rand.Read(c.nonce[:]) // never fails
	if len(l.challenges) == challengesOpen {
		l.challenges = slices.Delete(l.challenges, 0, 1)
	}
	l.challenges = append(l.challenges, c)
	l.mu.Unlock()
	_ = l.stream.SendMessageTo(sock, addr, l.remoteID, appendPathMessage(nil, pathChallenge, c.nonce, l.result.Tx)) // comes again
}

// follow moves the stream to where a challenge was answered from, or takes what comes from there.
func (l *link) follow(sock Socket, addr netip.AddrPort, nonce [pathNonceSize]byte, now time.Time) {
	l.mu.Lock()
	i := slices.IndexFunc(l.challenges, func(c challenge) bool {
		return c.nonce == nonce && c.sock == sock && c.addr == addr && now.Sub(c.at) < challengeLife
	})
	cur := l.cur.Load()
	ours := i >= 0 && (cur.sock == sock || l.host.isMain(sock) || l.prober.has(sock)) // has: of punching that goes on, or owned
	if i < 0 || l.closed || cur.is(sock, addr) || !ours && !l.adoptLocked(sock) {
		l.mu.Unlock()
		return
	}
	r := &route{sock: sock, remote: addr, kind: l.host.kindOf(addr.Addr())}
	r.heard.Store(now.UnixNano())
	if l.staysLocked(now) {
		l.also.Store(r)
		l.mu.Unlock()
		return
	}
	l.challenges = nil
	l.also.Store(nil)
	l.cur.Store(r)
	l.moved = now
	l.noteDirectLocked(r)
	l.mu.Unlock()
	if err := l.stream.ChangeRemote(sock, addr, l.remoteID); err != nil {
		l.log.Debug("stream refused a path", "remote", addr, "error", err)
		return
	}
	_ = l.stream.Heartbeat() // opens NATs on the new way, and shows the peer that it works
	l.log.Info("stream follows its peer", "remote", addr)
}

// announceStreams makes the peers of plain streams notice that our address may have changed.
func (h *Host) announceStreams() {
	h.streams.Range(func(l, _ any) bool {
		_ = l.(*link).stream.Heartbeat() // the keepalive does it later
		return true
	})
}
