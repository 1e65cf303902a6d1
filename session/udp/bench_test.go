package udp

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// path is one way to carry a batch of datagrams over loopback: out of one socket, then into another.
type path struct {
	send    func(batch [][]byte) error
	receive func(n int) error
}

// connPath is ours.
func connPath(b *testing.B, cfg Config) path {
	a, z, in := listen(b, loopback4, cfg), listen(b, loopback4, cfg), NewBatch()
	return path{
		send: func(batch [][]byte) error {
			if len(batch) == 1 {
				return a.Send(batch[0], z.LocalAddr())
			}
			return a.SendBatch(batch, z.LocalAddr())
		},
		receive: func(n int) error {
			for n > 0 {
				if err := z.Receive(in); err != nil {
					return err
				}
				for i := range in.Len() {
					data, from := in.Datagram(i)
					sink += len(data) + int(from.Port())
				}
				n -= in.Len()
			}
			return nil
		},
	}
}

// netPath is net.UDPConn, one call a datagram.
func netPath(b *testing.B) path {
	open := func() (*net.UDPConn, netip.AddrPort) {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(loopback4))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		if err := c.SetReadBuffer(DefaultReadBuffer); err != nil {
			b.Fatal(err)
		}
		return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	a, _ := open()
	z, to := open()
	in := make([]byte, 64<<10)
	return path{
		send: func(batch [][]byte) error {
			for _, d := range batch {
				if _, err := a.WriteToUDPAddrPort(d, to); err != nil {
					return err
				}
			}
			return nil
		},
		receive: func(n int) error {
			for range n {
				size, from, err := z.ReadFromUDPAddrPort(in)
				if err != nil {
					return err
				}
				sink += size + int(from.Port())
			}
			return nil
		},
	}
}

var sink int

// BenchmarkPath compares the ways of a Conn with net.UDPConn, batch by batch in turn, so that both meet the same
// noise. Reported per datagram: send-ns and receive-ns; and how many times as long net.UDPConn takes.
func BenchmarkPath(b *testing.B) {
	for _, tt := range []struct{ size, count int }{{1400, 46}, {100, 64}, {1400, 8}, {1400, 1}, {100, 1}} {
		batch := datagrams(times(tt.count, tt.size)...)
		for _, mode := range modes {
			b.Run(fmt.Sprintf("%dx%d/%s", tt.count, tt.size, mode.name), func(b *testing.B) {
				var ours, theirs phases
				a, z := connPath(b, mode.cfg), netPath(b)
				b.ReportAllocs()
				for b.Loop() {
					ours.run(b, a, batch)
					theirs.run(b, z, batch)
				}
				packets := float64(b.N * tt.count)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(ours.send)/packets, "send-ns")
				b.ReportMetric(float64(ours.receive)/packets, "receive-ns")
				b.ReportMetric(float64(theirs.send)/float64(ours.send), "x-send")
				b.ReportMetric(float64(theirs.receive)/float64(ours.receive), "x-receive")
				b.ReportMetric(float64(theirs.send+theirs.receive)/float64(ours.send+ours.receive), "x-both")
			})
		}
	}
}

// phases is the time spent in each half of a path.
type phases struct{ send, receive time.Duration }

func (p *phases) run(b *testing.B, way path, batch [][]byte) {
	start := time.Now()
	if err := way.send(batch); err != nil {
		b.Fatal(err)
	}
	sent := time.Now()
	if err := way.receive(len(batch)); err != nil {
		b.Fatal(err)
	}
	p.send += sent.Sub(start)
	p.receive += time.Since(sent)
}
