package punch

import (
	"log/slog"
	"net/netip"
	"time"

	"omegatun/dht"
)

// ServerConfig says how to let a client punch. Node, OpenSocket, Secret and IsRelay are required.
type ServerConfig struct {
	Node       Node                      // as for a client
	OpenSocket func() (Socket, error)    // as for a client
	Secret     [32]byte                  // key of the payloads, from the handshake
	IsRelay    func(netip.AddrPort) bool // reports whether a node is one of our own relays, now or lately
	Limit      *Limit                    // shared by all attempts of the host; nil: no limit
	Logger     *slog.Logger              // nil: discard
}

// Server is the side of an attempt that was connected to, begun when a handshake is answered. Its methods are safe for
// concurrent use.
type Server struct {
	a       *attempt
	isRelay func(netip.AddrPort) bool
}

// NewServer begins an attempt: it opens the punch socket and looks at the NAT in front of it, so that the answer is
// ready when the client asks. It starts a goroutine, which ends with [Server.Close] at the latest; Close must be
// called in any case. The caller answers the handshake from [Server.Socket].
func NewServer(cfg ServerConfig) (*Server, error) {
	a, err := newAttempt(cfg.Node, cfg.OpenSocket, cfg.Secret, cfg.Logger)
	if err != nil {
		return nil, err
	}
	random, secret := newRand()
	a.start(newServer(time.Now(), server{
		rand: random, secret: secret, main: a.main, limit: cfg.Limit,
	}, cfg.Node.RecentNodes(surveyNodes)))
	return &Server{a, cfg.IsRelay}, nil
}

// Socket returns the punch socket.
func (s *Server) Socket() Socket { return s.a.main }

// HandleHolepunch takes a message for the attempt's slot. It never blocks; the answer is sent from the punch socket
// once the own NAT is known. Messages that cannot be opened get none.
func (s *Server) HandleHolepunch(req *dht.HolepunchRequest) {
	s.handle(req, req.Payload, req.Peer, req.From, req.To, req.Socket)
}

// handle takes a sealed message of the client at peer, which arrived on sock from a relay that sees it as to.
func (s *Server) handle(r replier, sealed []byte, peer, from, to netip.AddrPort, sock dht.Socket) {
	p, err := openPayload(&s.a.payloadKey, sealed)
	if err != nil {
		s.a.log.Debug("hole punch message dropped", "from", from, "error", err)
		return
	}
	if sock != dht.Socket(s.a.main) {
		to = netip.AddrPort{} // says nothing of the punch socket
	}
	in := request{to: r, payload: p, peer: peer, relayed: s.isRelay(from)}
	s.a.offer(func(now time.Time) { s.a.m.(*server).asked(now, in, to, from) })
}

// HandleProbe takes a datagram of at most one byte that arrived on one of the attempt's sockets. It never blocks. The
// answer tells the client of the path; that it works, the session learns from the client's first authentic datagram.
func (s *Server) HandleProbe(sock Socket, from netip.AddrPort) {
	s.a.offer(func(time.Time) { s.a.m.(*server).probed(sock, from) })
}

// Done returns a channel that is closed when the attempt has ended, and then [Server.Err] says why.
func (s *Server) Done() <-chan struct{} { return s.a.done }

// Err returns why the attempt ended: a [*FailedError], or that it was closed. It is nil while the attempt goes on.
func (s *Server) Err() error {
	_, err := s.a.reported()
	return err
}

// Report returns how far the attempt is.
func (s *Server) Report() Report {
	r, _ := s.a.reported()
	return r
}

// Close ends the attempt, waits for its goroutines and closes its sockets, except those to keep, which then belong to
// the caller. It waits for OpenSocket too, so it must not be called under a lock that OpenSocket takes.
func (s *Server) Close(keep ...Socket) error { return s.a.close(keep) }
