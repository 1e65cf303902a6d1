package udp

import (
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// setTTL sets the whole socket's time to live and returns what undoes it. c.ttlMu is held for writing.
func (c *Conn) setTTL(ttl int) (restore func() error, err error) {
	get, set := ipv4.NewConn(c.udp).TTL, ipv4.NewConn(c.udp).SetTTL
	if c.local.Addr().Is6() {
		get, set = ipv6.NewConn(c.udp).HopLimit, ipv6.NewConn(c.udp).SetHopLimit
	}
	old, err := get()
	if err != nil {
		return nil, err
	}
	return func() error { return set(old) }, set(ttl)
}
