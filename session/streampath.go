package session

import (
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
// reference implementation ignores both.
const (
	pathChallenge = 1
	pathResponse  = 2

	pathNonceSize   = 16
	pathMACSize     = 16
	pathMessageSize = 1 + pathNonceSize + pathMACSize

	challengeEvery = 100 * time.Millisecond // at most, per stream
	challengeLife  = 3 * time.Second
	challengesOpen = 4
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
		if kind == pathResponse {
			l.follow(sock, from, nonce, time.Now())
			return
		}
		_ = l.stream.SendMessageTo(sock, from, appendPathMessage(nil, pathResponse, nonce, l.result.Tx)) // lost like any datagram
		_ = l.stream.SendMessage(appendPathMessage(nil, pathResponse, nonce, l.result.Tx))
	}
	l.challenge(sock, from, time.Now())
}

// pathMessage is the stream's hook for unordered messages over its path.
func (l *link) pathMessage(b []byte) {
	if l.epoch != nil {
		return
	}
	if kind, nonce, ok := parsePathMessage(b, l.result.Rx); ok && kind == pathChallenge {
		_ = l.stream.SendMessage(appendPathMessage(nil, pathResponse, nonce, l.result.Tx)) // lost like any datagram
	}
}

// challenge asks whoever is at an address that the stream does not know to prove that it is the peer.
func (l *link) challenge(sock Socket, addr netip.AddrPort, now time.Time) {
	l.mu.Lock()
	if l.closed || !l.isUp || now.Sub(l.challenged) < challengeEvery {
		l.mu.Unlock()
		return
	}
	l.challenged = now
	c := challenge{sock: sock, addr: addr, at: now}
	rand.Read(c.nonce[:]) // never fails
	if len(l.challenges) == challengesOpen {
		l.challenges = slices.Delete(l.challenges, 0, 1)
	}
	l.challenges = append(l.challenges, c)
	l.mu.Unlock()
	_ = l.stream.SendMessageTo(sock, addr, appendPathMessage(nil, pathChallenge, c.nonce, l.result.Tx)) // comes again with the next packet
}

// follow moves the stream to where a challenge was answered from.
func (l *link) follow(sock Socket, addr netip.AddrPort, nonce [pathNonceSize]byte, now time.Time) {
	l.mu.Lock()
	i := slices.IndexFunc(l.challenges, func(c challenge) bool {
		return c.nonce == nonce && c.sock == sock && c.addr == addr && now.Sub(c.at) < challengeLife
	})
	if i < 0 || l.closed {
		l.mu.Unlock()
		return
	}
	l.challenges = nil
	l.mu.Unlock()
	if cur := l.cur.Load(); cur.sock != sock && !l.adopt(sock) {
		return
	}
	r := &route{sock: sock, remote: addr, kind: l.host.kindOf(addr.Addr())}
	l.mu.Lock()
	l.cur.Store(r)
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
