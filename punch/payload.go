package punch

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/crypto/nacl/secretbox"

	"omegatun/dht"
	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// errPayload is wrapped by the errors of parsePayload and openPayload.
var errPayload = errors.New("punch: malformed payload")

// refusal is the error field of a payload.
type refusal uint64

const (
	refusalNone     refusal = 0
	refusalAborted  refusal = 1 // the sender has given up
	refusalVersion  refusal = 2
	refusalTryLater refusal = 3 // the sender punches for someone else just now
)

// token proves that the side it was sent to receives at an address: that side echoes it. The zero value is none.
type token [32]byte

// makeToken returns the token of a host: the port does not count.
func makeToken(secret *[32]byte, host netip.Addr) token {
	return token(key.KeyedHash(secret[:], []byte(host.Unmap().String())))
}

// payload is what the two sides tell each other through a relay.
//
//	flags          uint; mask 1 connected, 2 punching, and a bit for each optional field
//	error          uint
//	firewall       uint
//	round          uint
//	addresses      array of IPv4 addresses, mask 4
//	remoteAddress  IPv4 address, mask 8
//	token          32 bytes, mask 16
//	remoteToken    32 bytes, mask 32
//
// Source: npm hyperdht 6.34.0, lib/messages.js (holepunchPayload).
type payload struct {
	refusal   refusal
	firewall  dht.Firewall // the sender's, as far as known
	round     uint64       // counts the client's messages
	connected bool         // the sender has a connection already
	punching  bool         // the sender is about to punch
	addresses []netip.AddrPort
	// remoteAddress is the receiver's address to which the sender has just opened its own NAT.
	remoteAddress netip.AddrPort
	token         token // for the receiver to echo
	remoteToken   token // the receiver's, echoed
}

const (
	flagConnected = 1 << iota
	flagPunching
	flagAddresses
	flagRemoteAddress
	flagToken
	flagRemoteToken
)

// encode returns the wire form of p. Addresses are sent if they are not nil.
func (p *payload) encode() []byte {
	var flags uint64
	for _, f := range [...]struct {
		set  bool
		flag uint64
	}{
		{p.connected, flagConnected},
		{p.punching, flagPunching},
		{p.addresses != nil, flagAddresses},
		{p.remoteAddress.IsValid(), flagRemoteAddress},
		{p.token != token{}, flagToken},
		{p.remoteToken != token{}, flagRemoteToken},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	b := compact.AppendUint(nil, flags)
	b = compact.AppendUint(b, uint64(p.refusal))
	b = compact.AppendUint(b, uint64(p.firewall))
	b = compact.AppendUint(b, p.round)
	if flags&flagAddresses != 0 {
		b = compact.AppendAddrs(b, p.addresses)
	}
	if flags&flagRemoteAddress != 0 {
		b = compact.AppendAddr(b, p.remoteAddress)
	}
	if flags&flagToken != 0 {
		b = append(b, p.token[:]...)
	}
	if flags&flagRemoteToken != 0 {
		b = append(b, p.remoteToken[:]...)
	}
	return b
}

// parsePayload parses b, whose end may hold fields of a later version. The result does not alias b.
func parsePayload(b []byte) (p payload, err error) {
	r := compact.NewReader(b)
	flags := r.Uint()
	p.connected = flags&flagConnected != 0
	p.punching = flags&flagPunching != 0
	p.refusal = refusal(r.Uint())
	p.firewall = dht.Firewall(min(r.Uint(), uint64(dht.FirewallRandom))) // larger values count as random
	p.round = r.Uint()
	if flags&flagAddresses != 0 {
		if p.addresses = r.Addrs(); p.addresses == nil {
			p.addresses = []netip.AddrPort{}
		}
	}
	if flags&flagRemoteAddress != 0 {
		p.remoteAddress = r.Addr()
	}
	if flags&flagToken != 0 {
		p.token = r.Fixed32()
	}
	if flags&flagRemoteToken != 0 {
		p.remoteToken = r.Fixed32()
	}
	if r.Err() != nil {
		return payload{}, fmt.Errorf("%w: %w", errPayload, r.Err())
	}
	return p, nil
}

const nonceSize = 24

// sealPayload returns nonce ‖ tag ‖ ciphertext of p. The nonce must not repeat under one secret. The secret can be
// computed by every node that relayed the handshake, so a payload is no place for secrets.
func sealPayload(secret *[32]byte, nonce *[nonceSize]byte, p *payload) []byte {
	return secretbox.Seal(nonce[:], p.encode(), nonce, secret)
}

// openPayload is the reverse of sealPayload.
func openPayload(secret *[32]byte, b []byte) (payload, error) {
	if len(b) < nonceSize+secretbox.Overhead+1 {
		return payload{}, fmt.Errorf("%w: %d bytes", errPayload, len(b))
	}
	plain, ok := secretbox.Open(nil, b[nonceSize:], (*[nonceSize]byte)(b), secret)
	if !ok {
		return payload{}, fmt.Errorf("%w: wrong key", errPayload)
	}
	return parsePayload(plain)
}
