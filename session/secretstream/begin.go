package secretstream

// Begin waits for the peer's first frame, which shows that it is there and belongs to the same handshake. It
// returns nil at once if that has come. The errors are those of [Conn.Read]; deadlines and Close end the wait.
func (c *Conn) Begin() error {
	r := &c.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.begun || r.err != nil {
		return r.err
	}
	at, end, err := c.frameLocked()
	if err == nil {
		err = c.beganLocked(r.buf[at:end])
	}
	if err != nil {
		return c.readFailedLocked(err)
	}
	return nil
}
