package udx

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// udpSocket is a Socket over a net.UDPConn, one system call a datagram.
type udpSocket struct{ conn *net.UDPConn }

func (s *udpSocket) Send(b []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteToUDPAddrPort(b, to)
	return err
}

func (s *udpSocket) LocalAddr() netip.AddrPort {
	return unmap(s.conn.LocalAddr().(*net.UDPAddr).AddrPort())
}

// listenUDP returns a socket on loopback whose datagrams m gets until the test ends.
func listenUDP(t testing.TB, m *Mux) *udpSocket {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadBuffer(4 << 20) // as much as the host allows
	_ = conn.SetWriteBuffer(1 << 20)
	s := &udpSocket{conn}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			m.Receive(s, b[:n], from)
		}
	})
	t.Cleanup(func() {
		_ = m.Close()
		_ = conn.Close()
		wg.Wait()
	})
	return s
}

func BenchmarkLoopback(b *testing.B) {
	ma, mb := NewMux(Config{}), NewMux(Config{})
	sa, sb := listenUDP(b, ma), listenUDP(b, mb)
	from, to := newTestStream(b, ma, StreamConfig{}), newTestStream(b, mb, StreamConfig{})
	connect(b, from, sa, sb.LocalAddr(), to.ID())
	connect(b, to, sb, sa.LocalAddr(), from.ID())
	const size = 1 << 20
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			if _, err := to.Read(buf); err != nil {
				if !errors.Is(err, io.EOF) {
					b.Error(err)
				}
				return
			}
		}
	})
	buf := make([]byte, size)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := from.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := from.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	wg.Wait()
	st := from.Stats()
	b.ReportMetric(float64(st.PacketsResent)/float64(st.PacketsSent)*100, "%resent")
	b.Logf("%+v", st)
}

func BenchmarkHeader(b *testing.B) {
	h := Header{Flags: FlagData, ID: 1, Window: 2, Seq: 3, Ack: 4}
	buf := h.Append(nil)
	for b.Loop() {
		if _, _, err := ParseHeader(buf); err != nil {
			b.Fatal(err)
		}
	}
}
