//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// The ends of the cable. The addresses are public ones, as package netlab says.
var (
	addrA = netip.MustParsePrefix("192.88.99.101/24")
	addrB = netip.MustParsePrefix("192.88.99.102/24")

	addrRelay = netip.MustParseAddr("192.88.99.110") // of a machine between them
)

// The addresses inside those tunnels that let us choose.
var (
	innerA = netip.MustParsePrefix("10.9.0.1/24")
	innerB = netip.MustParsePrefix("10.9.0.2/24")
)

const tunnelMTU = "1420"

// bed is two hosts with a tunnel between them.
type bed struct {
	o       *options
	system  string
	lab     *netlab.Lab
	dir     string
	a, b    *netlab.Net
	middle  *netlab.Net // reached by both, which do not reach each other; nil: a cable joins them
	from    netip.Addr  // a's address inside the tunnel
	to      netip.Addr  // b's
	daemons []*netlab.Process
}

// starters start each system, and set from, to and daemons.
var starters = map[string]func(context.Context, *bed) error{
	"veth":            startNothing,
	"omegatun":        func(ctx context.Context, b *bed) error { return startOmegatun(ctx, b, "omegatun", b.o.prefix) },
	"omegatun-old":    func(ctx context.Context, b *bed) error { return startOmegatun(ctx, b, "omegatun-old", nil) },
	"omegatun-chacha": func(ctx context.Context, b *bed) error { return startOmegatun(ctx, b, "omegatun", withoutAES) },
	"omegatun-relay":  startRelayed,
	"null-cipher":     func(ctx context.Context, b *bed) error { return startOmegatun(ctx, b, "omegatun-null", b.o.prefix) },
	"wireguard-go":    func(ctx context.Context, b *bed) error { return startWireGuard(ctx, b, "wireguard-go") },
	"tailscale":       func(ctx context.Context, b *bed) error { return startWireGuard(ctx, b, "tailscale") },
	"nebula":          startNebula,
	"nebula-1.12":     startNebula,
	"yggdrasil":       startYggdrasil,
	"tinc":            startTinc,
	"openvpn":         startOpenVPN,
}

// withoutAES lets a Go program believe that its processor has no AES, so that it offers ChaCha20-Poly1305 only.
var withoutAES = []string{"env", "GODEBUG=cpu.aes=off,cpu.pclmulqdq=off"}

// routed are the systems whose ends cannot reach each other directly.
var routed = map[string]bool{"omegatun-relay": true}

// sites adds both ends behind routers that pick a random port for each destination, and a machine that both can reach.
func (b *bed) sites() error {
	for i, n := range []**netlab.Net{&b.a, &b.b} {
		s, err := b.lab.Site(string("ab"[i]), netlab.NAT{
			WAN: []netip.Prefix{addrA, addrB}[i].Addr(), Random: true,
			LAN: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1 + byte(i), 0}), 24),
		})
		if err != nil {
			return err
		}
		*n = s.Host()
	}
	var err error
	b.middle, err = b.lab.Open("relay", addrRelay)
	return err
}

func startNothing(_ context.Context, b *bed) error {
	b.from, b.to = addrA.Addr(), addrB.Addr()
	return nil
}

// identity makes an omegatun on n.
func (b *bed) identity(n *netlab.Net, bin, name, bootstrap string) (*peer.Peer, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return peer.New(n, bin, dir, bootstrap)
}

// up starts p's daemon.
func (b *bed) up(p *peer.Peer, prefix []string, args ...string) error {
	up, err := p.UpWith(prefix, nil, append(args, b.o.omegatun...)...)
	if err == nil {
		b.daemons = append(b.daemons, up.Process)
	}
	return err
}

func startOmegatun(ctx context.Context, b *bed, name string, prefix []string) error {
	bin := filepath.Join(b.o.bin, name)
	var nodes []netip.AddrPort
	for i := range 3 {
		a := netip.AddrFrom4([4]byte{192, 88, 99, byte(10 + i)})
		if err := b.a.Run("ip", "addr", "add", a.String()+"/32", "dev", "lo"); err != nil {
			return err
		}
		nodes = append(nodes, netip.AddrPortFrom(a, 49737))
	}
	err := peer.Nodes(ctx, b.a, bin, nodes...)
	if err != nil {
		return err
	}
	var peers [2]*peer.Peer
	for i, n := range []*netlab.Net{b.a, b.b} {
		if peers[i], err = b.identity(n, bin, string("ab"[i]), nodes[0].String()); err != nil {
			return err
		}
	}
	b.from, b.to = peers[0].IPv4, peers[1].IPv4
	return errors.Join(b.up(peers[0], prefix, peers[1].Key), b.up(peers[1], prefix, peers[0].Key))
}

// startRelayed joins two omegatun through a third, which both list.
func startRelayed(ctx context.Context, b *bed) error {
	bin := filepath.Join(b.o.bin, "omegatun")
	nodes, err := b.lab.PublicAddrs(3)
	if err != nil {
		return err
	}
	if err := peer.Nodes(ctx, b.lab.Internet, bin, nodes...); err != nil {
		return err
	}
	var peers [3]*peer.Peer
	for i, n := range []*netlab.Net{b.a, b.b, b.middle} {
		if peers[i], err = b.identity(n, bin, []string{"a", "b", "relay"}[i], nodes[0].String()); err != nil {
			return err
		}
	}
	err = os.WriteFile(filepath.Join(peers[2].State(), "config.toml"), []byte("relay = true\n"), 0o600)
	if err != nil {
		return err
	}
	b.from, b.to = peers[0].IPv4, peers[1].IPv4
	return errors.Join(
		b.up(peers[2], b.o.prefix, peers[0].Key, peers[1].Key),
		b.up(peers[0], b.o.prefix, peers[1].Key, peers[2].Key),
		b.up(peers[1], b.o.prefix, peers[0].Key, peers[2].Key),
	)
}

func startWireGuard(ctx context.Context, b *bed, name string) error {
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return err
		}
	}
	b.from, b.to = innerA.Addr(), innerB.Addr()
	for i, end := range []struct {
		n            *netlab.Net
		inner, there netip.Prefix
		remote       netip.Prefix
	}{{b.a, innerA, innerB, addrB}, {b.b, innerB, innerA, addrA}} {
		dev := "wg" + string("ab"[i])
		p, err := end.n.Start(netlab.Cmd{
			Args: []string{filepath.Join(b.o.bin, name), "-f", dev},
			Env:  []string{"LOG_LEVEL=error"},
		})
		if err != nil {
			return err
		}
		b.daemons = append(b.daemons, p)
		configuration := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=51820\npublic_key=%s\n"+
			"endpoint=%s\nallowed_ip=%s/32\n\n", hex.EncodeToString(keys[i].Bytes()),
			hex.EncodeToString(keys[1-i].PublicKey().Bytes()), netip.AddrPortFrom(end.remote.Addr(), 51820), end.there.Addr())
		if err := configureWireGuard(ctx, "/var/run/wireguard/"+dev+".sock", configuration); err != nil {
			return fmt.Errorf("%w\n%s", err, p.Output())
		}
		err = errors.Join(
			end.n.Run("ip", "link", "set", dev, "mtu", tunnelMTU, "up"),
			end.n.Run("ip", "addr", "add", end.inner.String(), "dev", dev),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// configureWireGuard sends text to a daemon's socket once that is there.
func configureWireGuard(ctx context.Context, path, text string) error {
	var c net.Conn
	err := retry(ctx, 5*time.Second, func() (err error) {
		c, err = net.Dial("unix", path)
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != "errno=0" {
		return fmt.Errorf("the daemon answered %q, %w", answer, err)
	}
	return nil
}

// retry calls f until it succeeds or the time is up.
func retry(ctx context.Context, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func startNebula(_ context.Context, b *bed) error {
	version := strings.TrimPrefix(b.system, "nebula")
	bin := func(name string) string { return filepath.Join(b.o.bin, name+version) }
	file := func(name string) string { return filepath.Join(b.dir, name) }
	if err := b.a.Run(bin("nebula-cert"), "ca", "-name", "bench", "-out-crt", file("ca.crt"), "-out-key", file("ca.key")); err != nil {
		return err
	}
	b.from, b.to = innerA.Addr(), innerB.Addr()
	for i, end := range []struct {
		n             *netlab.Net
		inner, there  netip.Prefix
		local, remote netip.Prefix
	}{{b.a, innerA, innerB, addrA, addrB}, {b.b, innerB, innerA, addrB, addrA}} {
		name := string("ab"[i])
		err := b.a.Run(bin("nebula-cert"), "sign", "-ca-crt", file("ca.crt"), "-ca-key", file("ca.key"), "-name", name,
			"-ip", end.inner.String(), "-out-crt", file(name+".crt"), "-out-key", file(name+".key"))
		if err != nil {
			return err
		}
		configuration := fmt.Sprintf(nebulaConfig, file("ca.crt"), file(name+".crt"), file(name+".key"),
			end.there.Addr(), end.remote.Addr())
		if err := os.WriteFile(file(name+".yml"), []byte(configuration), 0o600); err != nil {
			return err
		}
		p, err := end.n.Start(netlab.Cmd{Args: []string{bin("nebula"), "-config", file(name + ".yml")}})
		if err != nil {
			return err
		}
		b.daemons = append(b.daemons, p)
	}
	return nil
}

const nebulaConfig = `
pki: {ca: %s, cert: %s, key: %s}
static_host_map: {"%s": ["%s:4242"]}
lighthouse: {am_lighthouse: false}
cipher: aes
listen: {host: 0.0.0.0, port: 4242, udp_offloads: true, batch: 64}
routines: 2
tun: {dev: nebula1, mtu: 1420, use_offloads: true, tx_queue: 500}
punchy: {punch: false}
logging: {level: error}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`
