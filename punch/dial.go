package punch

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

// ClientConfig says what to punch towards. Node, OpenSocket, Secret, Target, Relay, Server and Relays are
// required.
type ClientConfig struct {
	// Node is the DHT. It must get the datagrams of the attempt's sockets that are its own.
	Node Node
	// OpenSocket opens a UDP socket on a free port. The attempt calls it once, and up to 255 times more when
	// it is behind a NAT with random ports. What the sockets receive is for the caller to read and sort:
	// datagrams of the DHT to the node, those of at most one byte to HandleProbe.
	OpenSocket func() (Socket, error)

	Secret [32]byte        // key of the payloads, from the handshake
	Target key.Target      // of the server's key
	Relay  netip.AddrPort  // the node through which the handshake went
	Server netip.AddrPort  // the server's punch socket as that node sees it
	Relays []dht.RelayPair // the server's relays, from its handshake
	ID     uint64          // the server's slot, from its handshake
	Limit  *Limit          // shared by all attempts of the host; nil: no limit

	// NoFastOpen keeps the first probe back until both sides know each other's NAT.
	NoFastOpen bool

	Logger *slog.Logger // nil: discard
}

// ErrNoRelays reports that the server named no relay, so that there is nobody to arrange the punching.
var ErrNoRelays = errors.New("punch: the server has no relays")

// Client is the connecting side of an attempt, begun after a handshake. Its methods are safe for concurrent use.
type Client struct{ a *attempt }

// NewClient begins an attempt. It opens the first socket and starts a goroutine, which ends with
// [Client.Close] at the latest; Close must be called in any case.
func NewClient(cfg ClientConfig) (*Client, error) {
	if len(cfg.Relays) == 0 {
		return nil, ErrNoRelays
	}
	a, err := newAttempt(cfg.Node, cfg.OpenSocket, cfg.Secret, cfg.Logger)
	if err != nil {
		return nil, err
	}
	a.target, a.id = cfg.Target, cfg.ID
	random, secret := newRand()
	a.start(newClient(time.Now(), client{
		rand: random, secret: secret, main: a.main, relay: cfg.Relay, pairs: cfg.Relays, fastOpen: !cfg.NoFastOpen,
		limit: cfg.Limit, server: cfg.Server,
	}, cfg.Node.RecentNodes(surveyNodes)))
	return &Client{a}, nil
}

// Paths returns the paths over which a probe came in. None of them is proved to carry anything the other way, or to
// lead to the right peer: the caller tries each with an authenticated datagram, and closes the attempt once one
// answers. Meanwhile the attempt goes on; a path may come again. The channel is closed when the attempt has
// ended, and then [Client.Err] says why.
func (c *Client) Paths() <-chan Path { return c.a.paths }

// HandleProbe takes a datagram of at most one byte that arrived on one of the attempt's sockets. It never blocks.
func (c *Client) HandleProbe(s Socket, from netip.AddrPort) {
	c.a.offer(func(now time.Time) { c.a.m.(*client).probed(now, s, from) })
}

// Err returns why the attempt ended: a [*FailedError], or that it was closed. It is nil while the attempt goes on.
func (c *Client) Err() error {
	_, err := c.a.reported()
	return err
}

// Report returns how far the attempt is.
func (c *Client) Report() Report {
	r, _ := c.a.reported()
	return r
}

// Close ends the attempt, waits for its goroutines and closes its sockets, except those to keep, which then belong to
// the caller. It waits for OpenSocket too, so it must not be called under a lock that OpenSocket takes.
func (c *Client) Close(keep ...Socket) error { return c.a.close(keep) }
