package udp

import "net/netip"

// Send sends one datagram. It waits while the socket's send buffer is full, does not keep b, and allocates nothing
// unless it fails. The error is net.ErrClosed or a [*SendError].
func (c *Conn) Send(b []byte, to netip.AddrPort) error { return c.send(b, to, nil) }

// SendBatch sends datagrams to one destination, in order: runs of equal size, of which the last may be shorter, leave
// as trains. The datagrams are independent of each other: if one fails the others are sent all the same, and the first
// error is returned. It waits while the socket's send buffer is full, keeps nothing of b, and
// allocates nothing unless it fails.
func (c *Conn) SendBatch(b [][]byte, to netip.AddrPort) error { return c.sendBatch(b, to, nil) }

// SendSegments sends b as datagrams of segment bytes each; the last may be shorter. Else it is like SendBatch.
func (c *Conn) SendSegments(b []byte, segment int, to netip.AddrPort) error {
	return c.sendSegments(b, segment, to, nil)
}

// SendTo sends b[i] to to[i] for each i, in that order; both have the same length. What goes to one address in a row is
// sent as SendBatch does, and the datagrams are as independent of each other. It waits while the socket's send buffer is
// full, keeps nothing of b and to, and allocates nothing unless it fails.
func (c *Conn) SendTo(b [][]byte, to []netip.AddrPort) error { return c.sendToAll(b, to, nil) }

// SendTTL sends one datagram with a time to live (IPv6: hop limit) of its own, 1 to 255. Other datagrams, sent meanwhile
// from other goroutines, keep theirs. Else it is like Send.
func (c *Conn) SendTTL(b []byte, to netip.AddrPort, ttl int) error { return c.sendTTL(b, to, ttl, nil) }

// Source sends from a Conn with one of the host's addresses as the source address, so that an answer leaves from
// the address that was asked. Its methods are those of Conn.
type Source struct {
	c       *Conn
	local   netip.Addr
	control []byte // ancillary data that says so; never changes; empty where the system has none
}

// From returns the Source for local, which should be an address that Batch.Local told. It is the same pointer for the
// same address, and lives as long as the Conn. On systems without Batch.Local the kernel goes on choosing the source.
func (c *Conn) From(local netip.Addr) *Source {
	local = local.Unmap()
	c.sourcesMu.Lock()
	defer c.sourcesMu.Unlock()
	s := c.sources[local]
	if s == nil {
		s = &Source{c: c, local: local}
		if local.Is4() == c.local.Addr().Is4() && local.IsValid() && !local.IsUnspecified() {
			s.control = sourceControl(local)
		}
		if c.sources == nil {
			c.sources = make(map[netip.Addr]*Source)
		}
		c.sources[local] = s
	}
	return s
}

// LocalAddr returns the source address and the port.
func (s *Source) LocalAddr() netip.AddrPort { return netip.AddrPortFrom(s.local, s.c.local.Port()) }

// Send is Conn.Send from the source address.
func (s *Source) Send(b []byte, to netip.AddrPort) error { return s.c.send(b, to, s.control) }

// SendBatch is Conn.SendBatch from the source address.
func (s *Source) SendBatch(b [][]byte, to netip.AddrPort) error {
	return s.c.sendBatch(b, to, s.control)
}

// SendTo is Conn.SendTo from the source address.
func (s *Source) SendTo(b [][]byte, to []netip.AddrPort) error {
	return s.c.sendToAll(b, to, s.control)
}

// SendSegments is Conn.SendSegments from the source address.
func (s *Source) SendSegments(b []byte, segment int, to netip.AddrPort) error {
	return s.c.sendSegments(b, segment, to, s.control)
}

// SendTTL is Conn.SendTTL from the source address.
func (s *Source) SendTTL(b []byte, to netip.AddrPort, ttl int) error {
	return s.c.sendTTL(b, to, ttl, s.control)
}

// checked returns to, unmapped, or an error if the socket cannot send there.
func (c *Conn) checked(to netip.AddrPort, size int) (netip.AddrPort, error) {
	addr := to.Addr().Unmap()
	if addr.Is4() == c.local.Addr().Is4() && addr.IsValid() && !addr.IsUnspecified() && to.Port() != 0 {
		return netip.AddrPortFrom(addr, to.Port()), nil
	}
	c.counters.sendErrors.Add(1)
	return to, &SendError{To: to, Size: size, Err: ErrDestination}
}

func (c *Conn) send(b []byte, to netip.AddrPort, control []byte) error {
	to, err := c.checked(to, len(b))
	if err != nil {
		return err
	}
	if c.portable { // keep out of the way of a changed TTL
		c.ttlMu.RLock()
		defer c.ttlMu.RUnlock()
	}
	return c.sendOne(b, to, control)
}

// sendOne sends one datagram to a checked destination.
func (c *Conn) sendOne(b []byte, to netip.AddrPort, control []byte) error {
	err := c.write(b, to, control)
	if err != nil && isLate(err) {
		c.counters.socketErrors.Add(1)
		err = c.write(b, to, control) // the first call only delivered an older one's fate
	}
	if err != nil {
		return c.sendFailed(err, len(b), to)
	}
	c.counters.sent.Add(1)
	c.counters.sentBytes.Add(uint64(len(b)))
	c.counters.sendTrains.Add(1)
	return nil
}

func (c *Conn) write(b []byte, to netip.AddrPort, control []byte) error {
	if c.udp == nil {
		return c.sendRaw(b, to, control)
	}
	if sent, err := c.writeAtOnce(b, to, control); sent {
		return err
	}
	var err error
	if len(control) == 0 {
		_, err = c.udp.WriteToUDPAddrPort(b, to)
	} else {
		_, _, err = c.udp.WriteMsgUDPAddrPort(b, control, to)
	}
	return err
}

func (c *Conn) sendBatch(b [][]byte, to netip.AddrPort, control []byte) error {
	size := 0
	if len(b) > 0 {
		size = len(b[0])
	}
	to, err := c.checked(to, size)
	if err != nil {
		return err
	}
	if c.has(FeatureBatch) {
		return c.sendTrains(b, nil, 0, to, control)
	}
	var first error
	for _, d := range b {
		if err := c.send(d, to, control); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (c *Conn) sendToAll(b [][]byte, to []netip.AddrPort, control []byte) error {
	to = to[:len(b)]
	if c.has(FeatureBatch) {
		return c.sendTo(b, to, control)
	}
	var first error
	for i, d := range b {
		if err := c.send(d, to[i], control); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (c *Conn) sendSegments(b []byte, segment int, to netip.AddrPort, control []byte) error {
	to, err := c.checked(to, min(segment, len(b)))
	if err != nil {
		return err
	}
	if segment <= 0 {
		c.counters.sendErrors.Add(1)
		return &SendError{To: to, Size: segment, Err: errSegment}
	}
	if c.has(FeatureBatch) {
		return c.sendTrains(nil, b, segment, to, control)
	}
	var first error
	for len(b) > 0 {
		n := min(segment, len(b))
		if err := c.send(b[:n], to, control); err != nil && first == nil {
			first = err
		}
		b = b[n:]
	}
	return first
}

func (c *Conn) sendTTL(b []byte, to netip.AddrPort, ttl int, control []byte) error {
	to, err := c.checked(to, len(b))
	if err != nil {
		return err
	}
	if ttl < 1 || ttl > 255 {
		c.counters.sendErrors.Add(1)
		return &SendError{To: to, Size: len(b), Err: errTTL}
	}
	if !c.portable {
		return c.sendOne(b, to, appendTTL(control, c.local.Addr().Is6(), ttl))
	}
	c.ttlMu.Lock()
	defer c.ttlMu.Unlock()
	restore, err := c.setTTL(ttl)
	if err != nil {
		return c.sendFailed(err, len(b), to)
	}
	err = c.sendOne(b, to, control)
	if e := restore(); e != nil && err == nil {
		err = c.sendFailed(e, len(b), to)
	}
	return err
}
