//go:build linux

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

const (
	// One gigabyte goes through the tunnel as TCP, of which every byte must arrive, in as many connections as it
	// takes to keep the line busy although each of them is slowed down by the losses; and then more as numbered
	// UDP datagrams, of which none may arrive twice or altered. Half of each goes either way.
	tcpBytes       = 1_000_000_000
	tcpConnections = 16
	udpBytes       = 250_000_000
	udpPayload     = 1200
	accidentLimit  = 6 * time.Minute
)

// accidents happen to packets on the cable of one host, in each direction.
var accidents = netlab.Impairment{Loss: 0.05, Duplicate: 0.01, Reorder: 0.01, Corrupt: 0.005, Seed: 1}

func TestOneGigabyteOverABadLine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes; not with -short")
	}
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	a := e2etest.Site(t, l, "a", func(n *netlab.NAT) { n.Link = &netlab.Impairment{Seed: accidents.Seed} })
	b := e2etest.Site(t, l, "b", nil)
	tun := e2etest.NewTunnel(t, bootstrap, a.Host(), b.Host())
	a.Link.Set(accidents)
	ctx := e2etest.Within(t, accidentLimit)
	for i, p := range tun.Peers {
		other := tun.Peers[1-i]
		start := time.Now()
		if err := transferTCP(ctx, p, other, tcpBytes/2, tcpConnections); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		t.Logf("TCP from %s: %d bytes in %v, %.0f Mbit/s", p.Net.Name, tcpBytes/2, took.Round(time.Millisecond),
			tcpBytes/2*8/1e6/took.Seconds())

		start = time.Now()
		stats, err := transferUDP(ctx, p, other, udpBytes/2)
		if err != nil {
			t.Fatal(err)
		}
		took = time.Since(start)
		t.Logf("UDP from %s: %+v in %v, %.0f Mbit/s", p.Net.Name, stats, took.Round(time.Millisecond),
			float64(stats.Sent)*udpPayload*8/1e6/took.Seconds())
		if stats.Twice > 0 || stats.Altered > 0 {
			t.Errorf("UDP from %s: %d datagrams delivered twice, %d altered, want none", p.Net.Name, stats.Twice, stats.Altered)
		}
		if least := stats.Sent * 85 / 100; stats.Received < least {
			t.Errorf("UDP from %s: %d of %d datagrams arrived, want at least %d", p.Net.Name, stats.Received, stats.Sent, least)
		}
	}
	s := a.Link.Stats()
	t.Logf("on the line: %+v", s)
	if least := s.Frames / 1000; s.Lost < least || s.Duplicated < least || s.Reordered < least || s.Corrupted < least {
		t.Errorf("on the line: %+v, want more accidents", s)
	}
	for _, u := range tun.Ups {
		select {
		case <-u.Done():
			t.Errorf("%s: ended:\n%s", u.Name, u.Output())
		default:
		}
	}
	a.Link.Set(netlab.Impairment{})
	tun.Ping(t, 0)
}

// transferTCP sends size bytes from one host to another over several connections at once, and checks them.
func transferTCP(ctx context.Context, from, to *peer.Peer, size int64, connections int) error {
	addr := netip.AddrPortFrom(to.IPv6, 9000)
	ln, err := to.Net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var wg sync.WaitGroup
	errs := make(chan error, 2*connections)
	part := size / int64(connections)
	for i := range connections {
		wg.Go(func() {
			c, err := from.Net.Dial(ctx, "tcp", addr)
			if err != nil {
				errs <- err
				return
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			// The first byte says which stream this is.
			_, err = c.Write([]byte{byte(i)})
			if err == nil {
				_, err = io.CopyBuffer(onlyWriter{c}, peer.Random(byte(i), part), make([]byte, 64<<10))
			}
			errs <- err
		})
		wg.Go(func() {
			c, err := ln.Accept()
			if err != nil {
				errs <- err
				return
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			errs <- checkStream(c, part)
		})
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("TCP from %s to %v: %w", from.Net.Name, addr, errors.Join(context.Cause(ctx), err))
	}
	return nil
}

type onlyWriter struct{ io.Writer }

func checkStream(c net.Conn, size int64) error {
	var seed [1]byte
	if _, err := io.ReadFull(c, seed[:]); err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if got, want := hex.EncodeToString(h.Sum(nil)), peer.Sum(seed[0], size); n != size || got != want {
		return fmt.Errorf("stream %d: %d bytes with checksum %s, want %d with %s", seed[0], n, got, size, want)
	}
	return nil
}

// udpStats counts datagrams.
type udpStats struct{ Sent, Received, Twice, Altered int }

// window is how many numbered datagrams may be on their way, so that no socket buffer overflows.
const window = 48

// transferUDP sends numbered datagrams from one host to another, each with contents that follow from its number. They
// are IPv4 without a checksum, so that nothing but the tunnel finds damage.
func transferUDP(ctx context.Context, from, to *peer.Peer, size int) (udpStats, error) {
	addr := netip.AddrPortFrom(to.IPv4, 9001)
	in, err := to.Net.ListenUDP(addr)
	if err != nil {
		return udpStats{}, err
	}
	defer in.Close()
	out, err := from.Net.ListenUDP(netip.AddrPortFrom(from.IPv4, 0))
	if err != nil {
		return udpStats{}, err
	}
	defer out.Close()
	if err := noChecksum(out); err != nil {
		return udpStats{}, err
	}
	stats := udpStats{Sent: size / udpPayload}
	var highest atomic.Int64 // received
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2*udpPayload)
		seen := make([]bool, stats.Sent)
		want := make([]byte, udpPayload)
		for {
			n, _, err := in.ReadFromUDPAddrPort(b)
			if err != nil {
				return // closed, or nothing more came
			}
			var seq uint64
			if n >= 8 {
				seq = binary.LittleEndian.Uint64(b)
			}
			if n != udpPayload || seq >= uint64(stats.Sent) || string(numbered(want, seq)) != string(b[:n]) {
				stats.Altered++
				continue
			}
			if seen[seq] {
				stats.Twice++
				continue
			}
			seen[seq] = true
			stats.Received++
			highest.Store(max(highest.Load(), int64(seq)))
		}
	}()
	b := make([]byte, udpPayload)
	for seq := range stats.Sent {
		if _, err := out.WriteToUDPAddrPort(numbered(b, uint64(seq)), addr); err != nil {
			return stats, fmt.Errorf("UDP from %s: datagram %d: %w", from.Net.Name, seq, err)
		}
		// Wait for room, but not for datagrams that were lost.
		for wait := 0; int64(seq)-highest.Load() > window && wait < 20; wait++ {
			select {
			case <-time.After(100 * time.Microsecond):
			case <-ctx.Done():
				return stats, context.Cause(ctx)
			}
		}
	}
	if err := in.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return stats, err
	}
	<-done
	return stats, nil
}

// noChecksum makes a socket send IPv4 datagrams with a checksum of zero: none.
func noChecksum(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
	return errors.Join(err, failed)
}

// numbered fills b with its number and bytes that follow from it, and returns it.
func numbered(b []byte, seq uint64) []byte {
	binary.LittleEndian.PutUint64(b, seq)
	rng := rand.NewPCG(seq, 0)
	for rest := b[8:]; len(rest) >= 8; rest = rest[8:] {
		binary.LittleEndian.PutUint64(rest, rng.Uint64())
	}
	return b
}
