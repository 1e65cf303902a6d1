package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	pmpAddress = 0
	pmpMapUDP  = 1

	pmpHeader     = 8
	pmpAddressLen = 12
	pmpMapLen     = 16
)

// pmpResults are the result codes (RFC 6886, 3.5).
var pmpResults = []string{
	"success", "version not supported", "not authorized", "network failure", "no resources", "opcode not supported",
}

// pmpMapping is what a response to a request for a UDP mapping says.
type pmpMapping struct {
	internal, external uint16
	lifetime           uint32 // seconds
}

// pmpResponse is a response: to the question for the external address, or for a mapping.
type pmpResponse struct {
	result  uint16
	epoch   uint32      // seconds
	address netip.Addr  // valid in the successful answer to the question for it
	mapping *pmpMapping // not nil in the successful answer to the request for one
	op      byte
}

// parsePMP parses a response. Its error is errForeign. A failure may be as short as the header.
func parsePMP(b []byte) (pmpResponse, error) {
	var r pmpResponse
	if len(b) < pmpHeader || b[0] != 0 || b[1]&isResponse == 0 {
		return r, errForeign
	}
	r.op = b[1] &^ isResponse
	r.result = binary.BigEndian.Uint16(b[2:])
	r.epoch = binary.BigEndian.Uint32(b[4:])
	switch {
	case r.op != pmpAddress && r.op != pmpMapUDP:
		return r, errForeign
	case r.result != 0:
		return r, nil
	case r.op == pmpAddress && len(b) == pmpAddressLen:
		r.address = netip.AddrFrom4([4]byte(b[8:]))
		return r, nil
	case r.op == pmpMapUDP && len(b) == pmpMapLen:
		r.mapping = &pmpMapping{
			internal: binary.BigEndian.Uint16(b[8:]),
			external: binary.BigEndian.Uint16(b[10:]),
			lifetime: binary.BigEndian.Uint32(b[12:]),
		}
		return r, nil
	default:
		return r, errForeign
	}
}

// appendPMPMap appends a request for a UDP mapping; a lifetime of zero seconds removes it.
func appendPMPMap(b []byte, m pmpMapping) []byte {
	b = append(b, 0, pmpMapUDP, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.internal)
	b = binary.BigEndian.AppendUint16(b, m.external)
	return binary.BigEndian.AppendUint32(b, m.lifetime)
}

// pmpClient is NAT-PMP with one gateway.
type pmpClient struct {
	server
	internal uint16
	lifetime time.Duration
}

func (*pmpClient) protocol() Protocol { return NATPMP }

// probe implements client.
func (c *pmpClient) probe(ctx context.Context) (netip.Addr, error) {
	r, err := c.ask(ctx, []byte{0, pmpAddress}, pmpAddress)
	return r.address, err
}

// request implements client.
func (c *pmpClient) request(ctx context.Context, want netip.AddrPort) (lease, error) {
	address, err := c.probe(ctx)
	if err != nil {
		return lease{}, err
	}
	if address.IsUnspecified() || address.IsMulticast() {
		return lease{}, fmt.Errorf("external address %v", address)
	}
	m := pmpMapping{internal: c.internal, external: want.Port(), lifetime: uint32(c.lifetime / time.Second)}
	r, err := c.ask(ctx, appendPMPMap(nil, m), pmpMapUDP)
	if err != nil {
		return lease{}, err
	}
	lifetime, err := checkLifetime(r.mapping.lifetime)
	if err != nil {
		return lease{}, err
	}
	if r.mapping.external == 0 {
		return lease{}, errors.New("mapping granted at port 0")
	}
	now := time.Now()
	return lease{
		protocol: NATPMP,
		external: netip.AddrPortFrom(address, r.mapping.external),
		at:       now,
		lifetime: lifetime,
		epoch:    readEpoch(r.epoch, now),
	}, nil
}

// release implements client.
func (c *pmpClient) release(ctx context.Context, _ lease) error {
	_, err := c.ask(ctx, appendPMPMap(nil, pmpMapping{internal: c.internal}), pmpMapUDP)
	return err
}

// ask sends a request and returns its successful response. There is no nonce: what tells an answer is the gateway's
// address, the fresh port that it comes to, and the internal port in it.
func (c *pmpClient) ask(ctx context.Context, request []byte, op byte) (r pmpResponse, err error) {
	err = c.exchange(ctx, func(netip.Addr) []byte { return request }, func(b []byte) (err error) {
		r, err = parsePMP(b)
		switch {
		case err != nil:
			return err
		case r.op != op || r.mapping != nil && r.mapping.internal != c.internal:
			return errForeign
		case r.result != 0:
			return refused(int(r.result), pmpResults)
		}
		return nil
	})
	return r, err
}
