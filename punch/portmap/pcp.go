package portmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

const (
	pcpVersion  = 2
	pcpAnnounce = 0
	pcpMap      = 1
	isResponse  = 0x80 // in the byte of the opcode, in NAT-PMP too

	pcpHeader = 24
	pcpMapLen = pcpHeader + 36
	maxPCP    = 1100 // no message is longer (RFC 6887, 7)

	protoUDP = 17
)

// pcpResults are the result codes (RFC 6887, 7.4).
var pcpResults = []string{
	"success", "version not supported", "not authorized", "malformed request", "opcode not supported",
	"option not supported", "malformed option", "network failure", "no resources", "protocol not supported",
	"quota exceeded", "cannot provide that external address", "our address is not the one it sees: another NAT between",
	"too many remote peers",
}

const pcpUnsupportedVersion = 1

// nonce tells the owner of a mapping.
type nonce [12]byte

// pcpMapping is the part of a MAP message that both directions have.
type pcpMapping struct {
	nonce    nonce
	internal uint16
	external netip.AddrPort // unmapped
}

// pcpRequest is a request: ANNOUNCE if there is no mapping.
type pcpRequest struct {
	lifetime uint32 // seconds
	local    netip.Addr
	mapping  *pcpMapping
}

func (q pcpRequest) append(b []byte) []byte {
	op := byte(pcpAnnounce)
	if q.mapping != nil {
		op = pcpMap
	}
	b = append(b, pcpVersion, op, 0, 0)
	b = binary.BigEndian.AppendUint32(b, q.lifetime)
	b = appendAddr16(b, q.local)
	if q.mapping != nil {
		b = q.mapping.append(b)
	}
	return b
}

func (m pcpMapping) append(b []byte) []byte {
	b = append(b, m.nonce[:]...)
	b = append(b, protoUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.internal)
	b = binary.BigEndian.AppendUint16(b, m.external.Port())
	return appendAddr16(b, m.external.Addr())
}

// appendAddr16 appends 16 bytes: an IPv4 address as ::ffff:a.b.c.d.
func appendAddr16(b []byte, a netip.Addr) []byte {
	a16 := a.As16()
	return append(b, a16[:]...)
}

// pcpResponse is a response to ANNOUNCE or MAP.
type pcpResponse struct {
	result   uint8
	lifetime uint32 // seconds: of the mapping; of the error, if it is one
	epoch    uint32 // seconds
	mapping  *pcpMapping
}

// parsePCP parses a response. Its error is errForeign, or errVersion if a gateway of another version says
// that it does not know ours. Options are not looked at.
func parsePCP(b []byte) (pcpResponse, error) {
	var r pcpResponse
	if len(b) < 4 || b[1]&isResponse == 0 {
		return r, errForeign
	}
	if b[0] != pcpVersion {
		// NAT-PMP has its result in two bytes, the second where ours is, and the same code (RFC 6886, 3.5).
		if b[3] == pcpUnsupportedVersion {
			return r, errVersion
		}
		return r, errForeign
	}
	if len(b) < pcpHeader || len(b) > maxPCP || len(b)%4 != 0 {
		return r, errForeign
	}
	r.result = b[3]
	r.lifetime = binary.BigEndian.Uint32(b[4:])
	r.epoch = binary.BigEndian.Uint32(b[8:])
	switch b[1] &^ isResponse {
	case pcpAnnounce:
		return r, nil
	case pcpMap:
		if len(b) < pcpMapLen || b[36] != protoUDP {
			return r, errForeign
		}
		m := &pcpMapping{
			nonce:    nonce(b[24:36]),
			internal: binary.BigEndian.Uint16(b[40:]),
			external: netip.AddrPortFrom(
				netip.AddrFrom16([16]byte(b[44:60])).Unmap(),
				binary.BigEndian.Uint16(b[42:]),
			),
		}
		r.mapping = m
		return r, nil
	default:
		return r, errForeign
	}
}

// pcpClient is PCP with one gateway.
type pcpClient struct {
	server
	internal uint16
	lifetime time.Duration
	nonce    nonce
}

func (*pcpClient) protocol() Protocol { return PCP }

// probe implements client, by ANNOUNCE: whoever knows PCP answers, if only that it does not know that opcode.
func (c *pcpClient) probe(ctx context.Context) (netip.Addr, error) {
	err := c.exchange(ctx, func(local netip.Addr) []byte {
		return pcpRequest{local: local}.append(nil)
	}, func(b []byte) error {
		r, err := parsePCP(b)
		if r.mapping != nil {
			return errForeign
		}
		return err
	})
	return netip.Addr{}, err
}

// request implements client.
func (c *pcpClient) request(ctx context.Context, want netip.AddrPort) (lease, error) {
	r, err := c.ask(ctx, want, uint32(c.lifetime/time.Second))
	if err != nil {
		return lease{}, err
	}
	lifetime, err := checkLifetime(r.lifetime)
	if err != nil {
		return lease{}, err
	}
	if a := r.mapping.external; a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return lease{}, fmt.Errorf("mapping granted at %v", a)
	}
	now := time.Now()
	return lease{
		protocol: PCP,
		external: r.mapping.external,
		at:       now,
		lifetime: lifetime,
		epoch:    readEpoch(r.epoch, now),
	}, nil
}

// release implements client.
func (c *pcpClient) release(ctx context.Context, l lease) error {
	_, err := c.ask(ctx, l.external, 0)
	return err
}

// ask sends a MAP request and returns its successful response.
func (c *pcpClient) ask(ctx context.Context, want netip.AddrPort, seconds uint32) (r pcpResponse, err error) {
	err = c.exchange(ctx, func(local netip.Addr) []byte {
		if want.Addr().Is4() != local.Is4() { // no wish: all zeros of our family
			zero := netip.IPv6Unspecified()
			if local.Is4() {
				zero = netip.IPv4Unspecified()
			}
			want = netip.AddrPortFrom(zero, want.Port())
		}
		m := pcpMapping{nonce: c.nonce, internal: c.internal, external: want}
		return pcpRequest{lifetime: seconds, local: local, mapping: &m}.append(nil)
	}, func(b []byte) (err error) {
		r, err = parsePCP(b)
		switch {
		case err != nil:
			return err
		case r.mapping == nil || r.mapping.nonce != c.nonce || r.mapping.internal != c.internal:
			return errForeign
		case r.result != 0:
			return refused(int(r.result), pcpResults)
		}
		return nil
	})
	return r, err
}
