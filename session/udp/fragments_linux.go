package udp

import "golang.org/x/sys/unix"

// allowFragments stops forbidding fragments, until the function it returns is called.
func (c *Conn) allowFragments() (restore func()) {
	level, option := unix.SOL_IP, unix.IP_MTU_DISCOVER
	if c.local.Addr().Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER
	}
	if err := c.setInt(level, option, unix.IP_PMTUDISC_DONT); err != nil { // IPV6_PMTUDISC_DONT has the same value
		return func() {}
	}
	return func() {
		if err := c.setInt(level, option, unix.IP_PMTUDISC_PROBE); err != nil {
			c.log.Warn("udp: cannot set don't-fragment", "error", err)
		}
	}
}
