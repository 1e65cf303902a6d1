package udp

// Hub is a number of sockets that one goroutine receives from, with one set of buffers. It is for programs with many
// sockets of which most are idle most of the time: such a socket costs no goroutine, and a kilobyte of memory. On systems
// other than Linux there is a goroutine for each.
//
// Its methods are safe for concurrent use.
type Hub struct{ hub }

// Handler is given the datagrams that a socket of a [Hub] received. The batch is valid until it returns; those it does
// not return from keep other sockets waiting. It is called for one batch of a socket at a time, but perhaps for several
// sockets at once.
type Handler func(c *Conn, b *Batch)

// NewHub returns a Hub without sockets. It starts a goroutine, which Close ends.
func NewHub() (*Hub, error) {
	g := &Hub{}
	if err := g.start(); err != nil {
		return nil, err
	}
	return g, nil
}

// Listen opens a socket as the function [Listen] does, and has what it receives handed to h, from now on, until the Conn
// is closed; h may run once more while and after that. Datagrams longer than 2048 bytes may be dropped. Receive fails, and
// when the send buffer is full a datagram is lost instead of waited for.
func (g *Hub) Listen(cfg Config, h Handler) (*Conn, error) { return g.listen(cfg, h) }

// Close closes all sockets of the Hub, and returns when no Handler runs any more. A Handler must not call it.
func (g *Hub) Close() error { return g.close() }
