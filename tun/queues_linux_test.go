package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"omegatun/tun/tuntest"
)

// flowID tells flows apart.
type flowID struct {
	version byte // of IP
	port    uint16
}

// queueOfFlows is what the readers of several queues have seen.
type queueOfFlows struct {
	mu       sync.Mutex
	queue    map[flowID]int
	last     map[flowID]uint32 // number of the last packet
	overtook []string
	packets  atomic.Int64
}

// see notes the packet of a flow that was read from a queue.
func (s *queueOfFlows) see(f flowID, number uint32, queue int) {
	s.mu.Lock()
	if was, known := s.queue[f]; known && (was != queue || number != s.last[f]+1) {
		s.overtook = append(s.overtook, fmt.Sprintf(
			"flow %v: packet %d in queue %d after %d in queue %d", f, number, queue, s.last[f], was))
	}
	s.queue[f], s.last[f] = queue, number
	s.mu.Unlock()
	s.packets.Add(1)
}

// TestFlowsStayInTheirQueues sends 100 flows at once, and answers each packet, so that the kernel could learn where the flow comes
// from. No packet may overtake another one of its flow, which it can only in another queue.
func TestFlowsStayInTheirQueues(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	const flows, rounds, burst = 100, 20, 5 // the kernel keeps 1,000 packets for each queue
	for _, count := range []int{2, 4} {
		d := openTest(t, Config{MTU: 1400, Queues: count}).(Large)
		bringUp(t, d, []string{"10.64.0.1/32", "fd6f:6d65:6761::1/128"}, []string{"10.64.0.2/32", "fd6f:6d65:6761::2/128"})
		seen := &queueOfFlows{queue: make(map[flowID]int), last: make(map[flowID]uint32)}
		read := make(chan struct{}, flows*burst)
		var readers sync.WaitGroup
		for i, q := range d.Queues() {
			readers.Go(func() {
				for {
					n, err := q.ReadLarge()
					if err != nil {
						return // closed
					}
					for j := range n {
						for b, _ := q.Cut(j, MinHeadroom, true); b != nil; b, _ = q.Cut(j, MinHeadroom, true) {
							packet := bytes.Clone(b)
							ip, transport := packet[MinHeadroom:], 20
							if ip[0]>>4 == 6 {
								transport = 40
							}
							udp := ip[min(transport, len(ip)):]
							if len(udp) != udpLen+4 || binary.BigEndian.Uint16(udp[2:]) != 2000 {
								continue // chatter of the host's
							}
							seen.see(flowID{ip[0] >> 4, binary.BigEndian.Uint16(udp)}, binary.BigEndian.Uint32(udp[udpLen:]), i)
							swapAddresses(ip)
							copy(udp[:4], []byte{udp[2], udp[3], udp[0], udp[1]})
							if _, err := d.WriteLarge([][]byte{append(make([]byte, 16-MinHeadroom), packet...)}, 16, nil); err != nil {
								t.Error(err)
							}
							read <- struct{}{}
						}
					}
				}
			})
		}
		conns := make([]*net.UDPConn, flows)
		for i := range conns {
			local, remote := "10.64.0.1:0", "10.64.0.2:2000"
			if i%2 == 1 {
				local, remote = "[fd6f:6d65:6761::1]:0", "[fd6f:6d65:6761::2]:2000"
			}
			c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local)),
				net.UDPAddrFromAddrPort(netip.MustParseAddrPort(remote)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns[i] = c
		}
		for round := range rounds {
			for i := range burst {
				for _, c := range conns {
					if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(round*burst+i))); err != nil {
						t.Fatal(err)
					}
				}
			}
			for range flows * burst {
				<-read // or the test times out
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		readers.Wait()
		used := make(map[int]int)
		for _, q := range seen.queue {
			used[q]++
		}
		if got := seen.packets.Load(); got != flows*rounds*burst || len(seen.queue) != flows {
			t.Errorf("%d queues: %d packets of %d flows were read, want %d of %d", count, got, len(seen.queue), flows*rounds*burst, flows)
		}
		if len(used) != count { // by chance once in 10^12
			t.Errorf("%d queues: flows are divided so: %v", count, used)
		}
		if len(seen.overtook) > 0 {
			t.Errorf("%d queues: %d packets overtook others or changed queues, the first: %s", count, len(seen.overtook), seen.overtook[0])
		}
	}
}

// TestOneQueueWhereThereCannotBeMore lets the system refuse the files that other queues need.
func TestOneQueueWhereThereCannotBeMore(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	if err := openTest(t, Config{}).Close(); err != nil { // skips where there is none, and has Go open what it needs
		t.Error(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = uint64(null.Fd()) + 8
	if err := errors.Join(null.Close(), unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	d := openTest(t, Config{Queues: 32, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if n := len(d.(Large).Queues()); n != 1 {
		t.Errorf("there are %d queues, want 1", n)
	}
	if !bytes.Contains(log.Bytes(), []byte("one queue")) {
		t.Errorf("the log says %q, want that there is one queue", log.String())
	}
	if files, err := openQueues(d.Name(), unix.IFF_VNET_HDR|unix.IFF_MULTI_QUEUE, 2); err == nil {
		t.Errorf("an interface made for one queue got %d others", len(files))
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestQueuesEndWithTheDevice(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	for _, row := range []struct {
		name string
		end  func(d Device) error
	}{
		{"closed", Device.Close},
		{"interface removed", func(d Device) error {
			link, err := netlink.LinkByName(d.Name())
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		}},
	} {
		d := openTest(t, Config{Queues: 3}).(Large)
		bringUp(t, d, nil, nil)
		var wg sync.WaitGroup
		for i, q := range d.Queues() {
			wg.Go(func() {
				for {
					if _, err := q.ReadLarge(); err != nil {
						if !errors.Is(err, os.ErrClosed) {
							t.Errorf("%s: queue %d ends with %v, want ErrClosed", row.name, i, err)
						}
						return
					}
				}
			})
		}
		if err := row.end(d); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := errors.Join(d.Close(), d.Close()); err != nil {
			t.Errorf("%s: Close: %v", row.name, err)
		}
		if _, err := netlink.LinkByName(d.Name()); err == nil {
			t.Errorf("%s: the interface is still there", row.name)
		}
		b := make([]byte, 16+20)
		b[16] = 0x45
		if _, err := d.WriteLarge([][]byte{b}, 16, nil); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: WriteLarge: %v, want ErrClosed", row.name, err)
		}
	}
}
