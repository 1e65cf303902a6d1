package dht

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"omegatun/dht/compact"
)

// PingBack asks the node at to, from socket s, to answer to another port of ours: port, as the node's side of the
// network sees it. It tells whether that port lets the node in. Where the answer arrives is up to the caller, who hands it
// to [Node.Receive]; the error is [ErrTimeout] if it does not. It is asked again each second, retries times.
func (n *Node) PingBack(ctx context.Context, s Socket, to netip.AddrPort, port uint16, retries int) (Pong, error) {
	value := compact.AppendUint16(nil, port)
	a, err := n.ask(ctx, callSpec{sock: s, to: to, command: cmdPingNAT, value: value, retries: retries})
	if err != nil {
		return Pong{}, fmt.Errorf("ping %v for port %d: %w", to, port, err)
	}
	return Pong{From: a.from, To: a.to, RTT: a.rtt}, nil
}

// PingSize is [Node.Ping] with a request of size bytes, IP and UDP headers not counted; its answer is small. It tells
// whether datagrams of that size get through. Sizes below 300 bytes may come out a little different.
func (n *Node) PingSize(ctx context.Context, s Socket, to netip.AddrPort, size, retries int) (Pong, error) {
	const (
		maxSize  = 65507
		maxShort = 0xfc // the largest length that is written as one byte; beyond it takes three
	)
	if size > maxSize {
		return Pong{}, fmt.Errorf("ping %v with %d bytes: no datagram is that large", to, size)
	}
	spec := callSpec{sock: s, to: unmap(to), command: cmdPing, retries: retries}
	head := request{to: spec.to, command: cmdPing, value: []byte{}}
	n.do(func(time.Time) {
		if spec.sock == nil {
			spec.sock = n.defaultSocket()
		}
		head.id = n.idFor(spec.sock)
	})
	if !usable(spec.to) {
		return Pong{}, fmt.Errorf("dht: %v is not the address of a node", to)
	}
	pad := size - len(head.append(nil))
	if pad > maxShort {
		pad -= 2
	}
	spec.value = make([]byte, max(0, pad))
	a, err := n.ask(ctx, spec)
	if err != nil {
		return Pong{}, fmt.Errorf("ping %v with %d bytes: %w", to, size, err)
	}
	return Pong{From: a.from, To: a.to, RTT: a.rtt}, nil
}
