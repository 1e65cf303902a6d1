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
	for _, f := range []struct {
		set  bool
		flag byte
	}{
		{r.id.set, flagID},
		{r.token.set, flagToken},
		{r.command.Internal(), flagInternal},
		{r.target.set, flagTarget},
		{r.value != nil, flagValue},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	b = append(b, requestByte, flags)
	b = compact.AppendUint16(b, r.tid)
	b = compact.AppendAddr(b, r.to)
	if r.id.set {
		b = append(b, r.id.v[:]...)
	}
	if r.token.set {
		b = append(b, r.token.v[:]...)
	}
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
	flags := r.Uint()
	p := request{tid: r.Uint16(), to: r.Addr()}
	if flags&flagID != 0 {
		p.id = some(key.Target(r.Fixed32()))
	}
	if flags&flagToken != 0 {
		p.token = some(Token(r.Fixed32()))
	}
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
	code   uint64           // 0: success; else see [ReplyError]
	value  []byte           // nil: absent; empty is a value
}

// append appends the wire form of r to b.
func (r *response) append(b []byte) []byte {
	flags := byte(0)
	for _, f := range []struct {
		set  bool
		flag byte
	}{
		{r.id.set, flagID},
		{r.token.set, flagToken},
		{len(r.closer) > 0, flagCloser},
		{r.code != 0, flagError},
		{r.value != nil, flagValue},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	b = append(b, responseByte, flags)
	b = compact.AppendUint16(b, r.tid)
	b = compact.AppendAddr(b, r.to)
	if r.id.set {
		b = append(b, r.id.v[:]...)
	}
	if r.token.set {
		b = append(b, r.token.v[:]...)
	}
	if len(r.closer) > 0 {
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
	r := compact.NewReader(b)
	if r.Uint8() != responseByte {
		r.Fail(errNotResponse)
	}
	flags := r.Uint()
	p := response{tid: r.Uint16(), to: r.Addr()}
	if flags&flagID != 0 {
		p.id = some(key.Target(r.Fixed32()))
	}
	if flags&flagToken != 0 {
		p.token = some(Token(r.Fixed32()))
	}
	if flags&flagCloser != 0 {
		p.closer = r.Addrs()
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
