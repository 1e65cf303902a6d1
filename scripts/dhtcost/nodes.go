//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"omegatun/dht"
)

// socket is a UDP socket of the system that counts what it sends.
type socket struct {
	*net.UDPConn
	addr netip.AddrPort
	sent *atomic.Int64
}

func (s *socket) LocalAddr() netip.AddrPort { return s.addr }
func (s *socket) Send(b []byte, to netip.AddrPort) error {
	s.sent.Add(int64(len(b)))
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

func listen(sent *atomic.Int64) (*socket, error) {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		return nil, err
	}
	return &socket{UDPConn: c, addr: c.LocalAddr().(*net.UDPAddr).AddrPort(), sent: sent}, nil
}

// nodes does what nodes.js does, with nodes of package dht.
func nodes(count int) error {
	var sent atomic.Int64
	var first netip.AddrPort
	say := func(event string) error {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"event": event, "port": first.Port(), "bytes": sent.Load()})
	}
	for i := range count {
		client, err := listen(&sent)
		if err != nil {
			return err
		}
		server, err := listen(&sent)
		if err != nil {
			return err
		}
		cfg := dht.Config{Client: client, Server: server, Bootstrap: []string{}, Mode: dht.Persistent, Open: true}
		if i > 0 {
			cfg.Bootstrap = []string{first.String()}
		} else {
			first = server.addr
		}
		n, err := dht.New(cfg)
		if err != nil {
			return err
		}
		for _, s := range []*socket{client, server} {
			go func() {
				b := make([]byte, 2048)
				for {
					size, from, err := s.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					n.Receive(s, b[:size], from)
				}
			}()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err = n.Ready(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
	}
	if err := say("ready"); err != nil {
		return err
	}
	for range time.Tick(time.Second) {
		if err := say("sent"); err != nil {
			return err // whoever listened is gone
		}
	}
	return nil
}
