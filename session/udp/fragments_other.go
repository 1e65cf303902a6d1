//go:build !linux

package udp

// allowFragments does nothing.
func (c *Conn) allowFragments() (restore func()) { return func() {} }
