//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/punch/lab"
)

// box is a NAT that netfilter cannot be made to imitate, in user space. The router's namespace routes into its TUN device what
// comes from the LAN and what is for the public address; it rewrites the packet and writes it back, and the kernel forwards
// it. It knows unfragmented UDP over IPv4, and drops everything else.
type box struct {
	dev *os.File
	wg  sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	cfg    lab.NATConfig
	table  *lab.Table
	random *rand.Rand
}

const boxDev = "nat0"

func newBox(n *Net, cfg lab.NATConfig) (*box, error) {
	b := &box{cfg: cfg, random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
	b.table = lab.NewTable(cfg, b.random)
	var err error
	if b.dev, err = openTUN(n, boxDev, unix.IFF_TUN); err != nil {
		return nil, err
	}
	b.wg.Go(b.run)
	return b, nil
}

func (b *box) close() error {
	err := b.dev.Close()
	b.wg.Wait()
	return err
}

// forget forgets all mappings, as a restart does.
func (b *box) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.table.Forget()
}

func (b *box) setPublic(a netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cfg.Public = a
	b.table.SetPublic(a)
}

func (b *box) run() {
	buf := make([]byte, maxFrame)
	for {
		n, err := b.dev.Read(buf)
		switch {
		case errors.Is(err, unix.EIO): // not up yet
			time.Sleep(time.Millisecond)
			continue
		case err != nil:
			return
		}
		if b.translate(buf[:n]) {
			b.dev.Write(buf[:n]) //nolint:errcheck // a full or closed device loses packets, as a router does
		}
	}
}

// translate rewrites a packet in place. It reports false if it is to be dropped.
func (b *box) translate(p []byte) bool {
	d, ok := parseUDP(p)
	if !ok {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	from, to := d.From, d.To
	inbound := to.Addr() == b.cfg.Public
	if b.cfg.BlockUDP {
		return false
	}
	if !inbound || private(from.Addr()) {
		if inbound && !b.cfg.Hairpin {
			return false
		}
		if from, ok = b.table.Outbound(now, from, to); !ok {
			return false
		}
	}
	if inbound {
		var refused string
		if to, refused = b.table.Inbound(now, from, to); refused != "" {
			return false
		}
	}
	rewrite(p, from, to)
	return true
}

// private reports whether an address belongs to the LANs of this package.
func private(a netip.Addr) bool {
	return a.IsPrivate() || netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10).Contains(a)
}

// rewrite sets source and destination of a UDP packet that parseUDP has accepted, and keeps its checksums right. One of the two
// hops that the way through the device costs is given back.
func rewrite(p []byte, from, to netip.AddrPort) {
	header := int(p[0]&15) * 4
	udp := p[header:]
	var ip, both delta
	ip.set(p[8:10], []byte{p[8] + 1, p[9]}) // TTL shares a word with the protocol
	src, dst := from.Addr().As4(), to.Addr().As4()
	for _, change := range []struct{ field, value []byte }{{p[12:16], src[:]}, {p[16:20], dst[:]}} {
		both.change(change.field, change.value)
		ip.set(change.field, change.value)
	}
	ip.apply(p[10:12])
	both.set(udp[0:2], binary.BigEndian.AppendUint16(nil, from.Port()))
	both.set(udp[2:4], binary.BigEndian.AppendUint16(nil, to.Port()))
	if udp[6] != 0 || udp[7] != 0 { // zero: none
		both.apply(udp[6:8])
		if udp[6] == 0 && udp[7] == 0 {
			udp[6], udp[7] = 0xff, 0xff
		}
	}
}

// delta is the change of a ones' complement checksum (RFC 1624, equation 3).
type delta struct{ sum uint32 }

// change takes note that a field of whole words is to become value.
func (d *delta) change(field, value []byte) {
	for i := 0; i+1 < len(field); i += 2 {
		d.sum += uint32(^binary.BigEndian.Uint16(field[i:])) + uint32(binary.BigEndian.Uint16(value[i:]))
	}
}

// set is change, and writes the value.
func (d *delta) set(field, value []byte) {
	d.change(field, value)
	copy(field, value)
}

// apply updates a checksum.
func (d *delta) apply(field []byte) {
	sum := d.sum + uint32(^binary.BigEndian.Uint16(field))
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(field, ^uint16(sum))
}

// openTUN makes a TUN or TAP device in a namespace.
func openTUN(n *Net, dev string, kind uint16) (*os.File, error) {
	var f *os.File
	err := n.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(dev)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		req.SetUint16(kind | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), dev)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("netlab: device %s in %s: %w", dev, n.Name, err)
	}
	return f, nil
}
