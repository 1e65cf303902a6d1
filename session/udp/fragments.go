package udp

import "net/netip"

// SendFragments sends one datagram that may be cut up on the way, where others that are too large for the path are
// dropped. Datagrams that are sent meanwhile from other goroutines may be cut up as well. Where the system has no way
// to allow that it is Send.
func (c *Conn) SendFragments(b []byte, to netip.AddrPort) error {
	c.fragmentMu.Lock()
	defer c.fragmentMu.Unlock()
	restore := c.allowFragments()
	defer restore()
	return c.send(b, to, nil)
}
