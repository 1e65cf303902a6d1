package dht

import (
	"errors"
	"net/netip"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// The first byte of a packet: protocol version 3 in the low half, type in the high half.
const (
	requestByte  = 0x03
	responseByte = 0x13
)

// Flags of a packet. Those above belong to requests or responses alone; others are ignored.
const (
	flagID       = 1
	flagToken    = 2
	flagInternal = 4 // request
	flagCloser   = 4 // response
	flagTarget   = 8 // request
	flagError    = 8 // response
	flagValue    = 16
)

var (
	errNotRequest  = errors.New("not a request of this version")
	errNotResponse = errors.New("not a response of this version")
)

// Token proves to a node that its holder receives datagrams at the address it sends from. It is opaque.
type Token [32]byte

// optional is a field that may be absent.
type optional[T any] struct {
	set bool
	v   T
}

func some[T any](v T) optional[T] { return optional[T]{set: true, v: v} }

// request is a packet that asks for something.
//
//	03 | flags | tid u16 | to addr | id 32 (1) | token 32 (2) | command uint | target 32 (8) | value buffer (16)
//
// The flag in parentheses announces the field; flag 4 says that the command is one of the RPC layer's own.
// Source: npm dht-rpc 6.27.0, lib/io.js.
type request struct {
	tid     uint16
	to      netip.AddrPort // where the packet is sent: how the receiver learns its own address
	id      optional[key.Target]
	token   optional[Token]
	command Command
	target  optional[key.Target]
	value   []byte // nil: absent; empty is a value
}

// append appends the wire form of r to b.
func (r *request) append(b []byte) []byte {
	flags := byte(0)
	if r.command.Internal() {
		flags |= flagInternal
	}
	if r.target.set {
		flags |= flagTarget
	}
	if r.value != nil {
		flags |= flagValue
	}
	b = appendHead(b, requestByte, flags, r.tid, r.to, r.id, r.token)
	b = compact.AppendUint(b, r.command.number())
	if r.target.set {
		b = append(b, r.target.v[:]...)
	}
	if r.value != nil {
		b = compact.AppendBuffer(b, r.value)
	}
	return b
}

// parseRequest parses a request. Its value aliases b.
func parseRequest(b []byte) (request, error) {
	r := compact.NewReader(b)
	if r.Uint8() != requestByte {
		r.Fail(errNotRequest)
	}
	flags, p := r.Uint(), request{}
	p.tid, p.to, p.id, p.token = parseHead(&r, flags)
	p.command = Command(r.Uint())
	if flags&flagInternal != 0 {
		p.command |= internalCommand
	}
	if flags&flagTarget != 0 {
		p.target = some(key.Target(r.Fixed32()))
	}
	if flags&flagValue != 0 {
		p.value = r.Buffer()
	}
	if err := r.Err(); err != nil {
		return request{}, wrapParse("request", err)
	}
	return p, nil
}

// appendHead appends what requests and responses begin with; flags are those of the fields that follow.
func appendHead(
	b []byte, kind, flags byte, tid uint16, to netip.AddrPort, id optional[key.Target], token optional[Token],
) []byte {
	if id.set {
		flags |= flagID
	}
	if token.set {
		flags |= flagToken
	}
	b = append(b, kind, flags)
	b = compact.AppendUint16(b, tid)
	b = compact.AppendAddr(b, to)
	if id.set {
		b = append(b, id.v[:]...)
	}
	if token.set {
		b = append(b, token.v[:]...)
	}
	return b
}

// parseHead parses what requests and responses begin with, after the flags.
func parseHead(r *compact.Reader, flags uint64) (
	tid uint16, to netip.AddrPort, id optional[key.Target], token optional[Token],
) {
	tid, to = r.Uint16(), r.Addr()
	if flags&flagID != 0 {
		id = some(key.Target(r.Fixed32()))
	}
	if flags&flagToken != 0 {
		token = some(Token(r.Fixed32()))
	}
	return tid, to, id, token
}

// response is a packet that answers a request.
//
//	13 | flags | tid u16 | to addr | id 32 (1) | token 32 (2) | closer array of addr (4) | error uint (8) | value buffer (16)
//
// Source: npm dht-rpc 6.27.0, lib/io.js.
type response struct {
	tid    uint16
	to     netip.AddrPort // the requester as the responder sees it: how a node learns its own address
	id     optional[key.Target]
	token  optional[Token]
	closer []netip.AddrPort // nodes closer to the target of the request
	nodes  []*node          // what to send in place of closer
	code   uint64           // 0: success; else see [ReplyError]
	value  []byte           // nil: absent; empty is a value
}

// append appends the wire form of r to b.
func (r *response) append(b []byte) []byte {
	flags := byte(0)
	if len(r.closer) > 0 || len(r.nodes) > 0 {
		flags |= flagCloser
	}
	if r.code != 0 {
		flags |= flagError
	}
	if r.value != nil {
		flags |= flagValue
	}
	b = appendHead(b, responseByte, flags, r.tid, r.to, r.id, r.token)
	switch {
	case len(r.nodes) > 0:
		b = compact.AppendUint(b, uint64(len(r.nodes)))
		for _, m := range r.nodes {
			b = append(b, m.ip[0], m.ip[1], m.ip[2], m.ip[3], byte(m.port), byte(m.port>>8))
		}
	case len(r.closer) > 0:
		b = compact.AppendAddrs(b, r.closer)
	}
	if r.code != 0 {
		b = compact.AppendUint(b, r.code)
	}
	if r.value != nil {
		b = compact.AppendBuffer(b, r.value)
	}
	return b
}

// size returns the length of the wire form of r without its closer nodes.
func (r *response) size() int {
	n := 2 + 2 + compact.AddrSize
	if r.id.set {
		n += len(r.id.v)
	}
	if r.token.set {
		n += len(r.token.v)
	}
	if r.code != 0 {
		n += len(compact.AppendUint(nil, r.code))
	}
	if r.value != nil {
		n += len(compact.AppendUint(nil, uint64(len(r.value)))) + len(r.value)
	}
	return n
}

// parseResponse parses a response. Its value aliases b.
func parseResponse(b []byte) (response, error) {
	var closer []netip.AddrPort
	return parseResponseTo(b, &closer)
}

// parseResponseTo is parseResponse, but its closer nodes lie in what room holds.
func parseResponseTo(b []byte, room *[]netip.AddrPort) (response, error) {
	r := compact.NewReader(b)
	if r.Uint8() != responseByte {
		r.Fail(errNotResponse)
	}
	flags, p := r.Uint(), response{}
	p.tid, p.to, p.id, p.token = parseHead(&r, flags)
	if flags&flagCloser != 0 {
		*room = r.AppendAddrs((*room)[:0])
		p.closer = *room
	}
	if flags&flagError != 0 {
		p.code = r.Uint()
	}
	if flags&flagValue != 0 {
		p.value = r.Buffer()
	}
	if err := r.Err(); err != nil {
		return response{}, wrapParse("response", err)
	}
	return p, nil
}
