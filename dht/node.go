package dht

import (
	"context"
	"iter"
	"net/netip"

	"omegatun/dht/key"
)

type Node struct{}

func New(cfg Config) (*Node, error)                              { panic("being written") }
func (n *Node) Receive(s Socket, b []byte, from netip.AddrPort) {}
func (n *Node) Ready(ctx context.Context) error                  { return nil }
func (n *Node) Close() error                                     { return nil }
func (n *Node) Info() Info                                       { return Info{} }
func (n *Node) RemoteAddr() (netip.AddrPort, bool)               { return netip.AddrPort{}, false }
func (n *Node) DefaultSocket() Socket                            { return nil }

// Changes returns a channel that is closed at the next change of Info (persistent, firewalled, online, host, port).
func (n *Node) Changes() <-chan struct{} { return nil }
func (n *Node) NetworkChanged()          {}
func (n *Node) Ping(ctx context.Context, s Socket, to netip.AddrPort, retries int) (Pong, error) {
	return Pong{}, nil
}
func (n *Node) RecentNodes(limit int) []netip.AddrPort { return nil }
func (n *Node) FindPeer(ctx context.Context, target key.Target, start []netip.AddrPort) iter.Seq2[PeerReply, error] {
	return nil
}
func (n *Node) Handshake(ctx context.Context, relay netip.AddrPort, s Socket, target key.Target, noise []byte) (HandshakeReply, error) {
	return HandshakeReply{}, nil
}
func (n *Node) Holepunch(ctx context.Context, relay netip.AddrPort, s Socket, target key.Target, id uint64, payload []byte, peer netip.AddrPort) (HolepunchReply, error) {
	return HolepunchReply{}, nil
}

// HandshakeRequest is a handshake for a local server.
type HandshakeRequest struct {
	Noise    []byte // owned by the callee
	Client   netip.AddrPort
	Direct   bool
	From, To netip.AddrPort
	Socket   Socket
}

func (r *HandshakeRequest) Reply(s Socket, noise []byte) error { return nil }

// HolepunchRequest is a hole punch message for a local server.
type HolepunchRequest struct {
	ID             uint64
	Payload        []byte
	Peer, From, To netip.AddrPort
	Socket         Socket
}

func (r *HolepunchRequest) Reply(s Socket, payload []byte) error { return nil }

type Announcement struct{}

func (n *Node) Serve(k key.Private, s Server) (*Announcement, error) { return nil, nil }
func (a *Announcement) Announced(ctx context.Context) error          { return nil }
func (a *Announcement) Relays() []RelayPair                          { return nil }
func (a *Announcement) Addresses() []netip.AddrPort                  { return nil }
func (a *Announcement) IsRelay(netip.AddrPort) bool                  { return false }
func (a *Announcement) Refresh()                                     {}
func (a *Announcement) Close(ctx context.Context) error              { return nil }
