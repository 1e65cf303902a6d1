package udp

import (
	"errors"
	"net"
	"sync"
)

// portableHub is a hub that has a goroutine for each socket.
type portableHub struct {
	mu     sync.Mutex // guards the fields below
	closed bool
	conns  map[*Conn]struct{}

	wg sync.WaitGroup // the goroutines
}

func (g *portableHub) listen(cfg Config, h Handler) (*Conn, error) {
	c, err := Listen(cfg)
	if err != nil {
		return nil, err
	}
	c.hubbed = true
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	if g.conns == nil {
		g.conns = make(map[*Conn]struct{})
	}
	g.conns[c] = struct{}{}
	g.wg.Go(func() {
		b := NewSmallBatch()
		for c.receive(b) == nil {
			h(c, b)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.conns, c)
	})
	return c, nil
}

func (g *portableHub) close() error {
	g.mu.Lock()
	g.closed = true
	errs := make([]error, 0, len(g.conns))
	for c := range g.conns {
		errs = append(errs, c.Close())
	}
	g.mu.Unlock()
	g.wg.Wait()
	return errors.Join(errs...)
}
