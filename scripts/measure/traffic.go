//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"omegatun/scripts/netlab"
)

// figures are what was measured of one system in one round, by name. The end of a name is its unit.
type figures map[string]float64

func (f figures) String() string {
	var b strings.Builder
	for _, c := range columns {
		if v, ok := f[c.name]; ok {
			fmt.Fprintf(&b, "%s %.4g  ", c.title, v)
		}
	}
	return b.String()
}

// firstReply waits until b answers a's pings and returns how long that took since began.
func (b *bed) firstReply(ctx context.Context, began time.Time) (time.Duration, error) {
	for time.Since(began) < 30*time.Second {
		p, err := b.a.Start(netlab.Cmd{Args: []string{"ping", "-n", "-c", "1", "-W", "0.05", b.to.String()}})
		if err != nil {
			return 0, err
		}
		if code, err := p.Wait(ctx); err == nil && code == 0 {
			return time.Since(began), nil
		}
		for _, d := range b.daemons {
			select {
			case <-d.Done():
				return 0, fmt.Errorf("a daemon has ended:\n%s", d.Output())
			default:
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	var outputs []string
	for _, d := range b.daemons {
		outputs = append(outputs, d.Output())
	}
	return 0, fmt.Errorf("no reply within 30 s:\n%s", strings.Join(outputs, "\n"))
}

// take runs the traffic.
func (b *bed) take(ctx context.Context, f figures) error {
	server, err := b.b.Start(netlab.Cmd{Args: []string{"iperf3", "-s", "-B", b.to.String()}})
	if err != nil {
		return err
	}
	defer server.Kill()
	time.Sleep(300 * time.Millisecond) // it listens, and the path is settled
	if b.o.has("idle") {
		times, err := b.ping(ctx, 200)
		if err != nil {
			return err
		}
		f["ping_ms"], f["ping_p99_ms"] = quantile(times, 0.5), quantile(times, 0.99)
	}
	f["idle_mib"] = b.memory("VmRSS")
	for _, run := range []struct {
		part string
		args []string
	}{{"tcp", nil}, {"reverse", []string{"-R"}}, {"four", []string{"-P", "4"}}} {
		if !b.o.has(run.part) {
			continue
		}
		before, start := b.cpu(), time.Now()
		gbits, bytes, retransmits, err := b.iperf(ctx, run.args...)
		if err != nil {
			return err
		}
		f[run.part+"_gbits"] = gbits
		f[run.part+"_retransmits"] = retransmits
		cpu := b.cpu() - before
		f[run.part+"_cpu_s_per_gb"] = cpu / (bytes / 1e9)
		f[run.part+"_cores"] = cpu / time.Since(start).Seconds()
	}
	f["loaded_mib"] = b.memory("VmHWM")
	b.drops("after TCP")
	if b.o.has("load") {
		if err := b.load(ctx, f); err != nil {
			return err
		}
	}
	for _, size := range []int{64, 1400} {
		if name := fmt.Sprintf("udp%d", size); b.o.has(name) {
			kpps, err := b.udp(size)
			if err != nil {
				return err
			}
			f[name+"_kpps"] = kpps
		}
	}
	b.drops("at the end")
	return nil
}

// drops prints, if asked to, what the kernels have dropped so far: of TUN devices, and for want of socket buffers.
func (b *bed) drops(when string) {
	if !b.o.verbose {
		return
	}
	for _, n := range []*netlab.Net{b.a, b.b} {
		out, err := n.Output("sh", "-c", "tail -n +3 /proc/net/dev | grep -v lo: ; grep ^Udp: /proc/net/snmp")
		if err != nil {
			out = err.Error()
		}
		fmt.Fprintf(os.Stderr, "%s, %s: %s\n", n.Name, when, out)
	}
}

func (o *options) has(part string) bool { return slices.Contains(strings.Split(o.parts, ","), part) }

// load pings while one TCP flow goes the same way.
func (b *bed) load(ctx context.Context, f figures) error {
	const pings, interval = 250, 10 * time.Millisecond
	done := make(chan error, 1)
	go func() {
		_, _, _, err := b.iperf(ctx, "-t", strconv.Itoa(int((pings*interval).Seconds())+2))
		done <- err
	}()
	time.Sleep(800 * time.Millisecond) // past the slow start
	times, err := b.ping(ctx, pings)
	if err = errors.Join(err, <-done); err != nil {
		return err
	}
	f["loaded_ping_ms"], f["loaded_ping_p99_ms"] = quantile(times, 0.5), quantile(times, 0.99)
	return nil
}

// iperf runs a client on a and returns the rate at the receiver. The server may not be done with the one before.
func (b *bed) iperf(ctx context.Context, args ...string) (gbits, bytes, retransmits float64, err error) {
	for range 4 {
		if gbits, bytes, retransmits, err = b.iperfOnce(ctx, args...); err == nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	return gbits, bytes, retransmits, err
}

func (b *bed) iperfOnce(ctx context.Context, args ...string) (gbits, bytes, retransmits float64, err error) {
	all := []string{"iperf3", "-c", b.to.String(), "-B", b.from.String(), "-J", "-t", strconv.Itoa(b.o.seconds)}
	if b.o.tcp != "" {
		all = append(all, "-C", b.o.tcp)
	}
	var out strings.Builder
	p, err := b.a.Start(netlab.Cmd{Args: append(all, args...), Stdout: &out})
	if err != nil {
		return 0, 0, 0, err
	}
	if _, err := p.Wait(ctx); err != nil {
		p.Kill()
		return 0, 0, 0, err
	}
	return parseIperf([]byte(out.String()))
}

// parseIperf returns what iperf3 -J says of all flows together.
func parseIperf(b []byte) (gbits, bytes, retransmits float64, err error) {
	var result struct {
		Error string
		End   struct {
			Sent     struct{ Retransmits float64 } `json:"sum_sent"`
			Received struct {
				Bytes         float64
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(b, &result); err != nil {
		return 0, 0, 0, fmt.Errorf("iperf3: %w", err)
	}
	r := result.End.Received
	switch {
	case result.Error != "":
		return 0, 0, 0, fmt.Errorf("iperf3: %s", result.Error)
	case r.Bytes <= 0 || r.BitsPerSecond <= 0:
		return 0, 0, 0, errors.New("iperf3: nothing was received")
	}
	return r.BitsPerSecond / 1e9, r.Bytes, result.End.Sent.Retransmits, nil
}

var pingTime = regexp.MustCompile(`time=([0-9.]+) ms`)

// ping returns the round-trip times in milliseconds, 100 a second. What is lost counts as a second.
func (b *bed) ping(ctx context.Context, count int) ([]float64, error) {
	var out strings.Builder
	p, err := b.a.Start(netlab.Cmd{
		Args: []string{"ping", "-n", "-i", "0.01", "-W", "1", "-c", strconv.Itoa(count), b.to.String()}, Stdout: &out,
	})
	if err != nil {
		return nil, err
	}
	if _, err := p.Wait(ctx); err != nil {
		p.Kill()
		return nil, err
	}
	return parsePings(out.String(), count)
}

// parsePings returns the times of the replies that ping lists, and a second for each of count that has none.
func parsePings(out string, count int) (times []float64, err error) {
	for _, m := range pingTime.FindAllStringSubmatch(out, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return nil, err
		}
		times = append(times, v)
	}
	for len(times) < count {
		times = append(times, 1000)
	}
	return times, nil
}

// cpu returns the seconds of processor time that the daemons have used.
func (b *bed) cpu() (seconds float64) {
	for _, d := range b.daemons {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.PID()))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		for _, i := range []int{11, 12} { // utime, stime
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				seconds += v / 100
			}
		}
	}
	return seconds
}

// memory returns the larger daemon's VmRSS or VmHWM in MiB.
func (b *bed) memory(what string) (mib float64) {
	for _, d := range b.daemons {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			var kib float64
			if n, _ := fmt.Sscanf(line, what+": %f kB", &kib); n == 1 {
				mib = max(mib, kib/1024)
			}
		}
	}
	return mib
}

// quantile returns the value below which a share q of the values lie.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

const (
	maxLoss    = 0.001
	searchSpan = 600 * time.Millisecond // of each rate tried
	searches   = 9
)

// udp searches for the highest rate of datagrams of which less than one in a thousand is lost, in thousands a second.
func (b *bed) udp(size int) (kpps float64, err error) {
	data, control := netip.AddrPortFrom(b.to, 5300), netip.AddrPortFrom(b.control(), 5301)
	sinkProcess, err := b.b.Start(netlab.Cmd{Args: []string{b.o.self, "udp-sink", data.String(), control.String()}})
	if err != nil {
		return 0, err
	}
	defer sinkProcess.Kill()
	time.Sleep(100 * time.Millisecond)
	out, err := b.a.Output(b.o.self, "udp-blast", "-size", strconv.Itoa(size), data.String(), control.String())
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

// control returns an address of b that a reaches even if the tunnel loses packets.
func (b *bed) control() netip.Addr {
	if b.middle != nil {
		return b.to
	}
	return addrB.Addr()
}

// listenUDP opens a socket with large buffers.
func listenUDP(addr string) (*net.UDPConn, error) {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP("udp", a)
	if err != nil {
		return nil, err
	}
	return c, largeBuffers(c)
}

func largeBuffers(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	})
}

// sink counts datagrams by the number that they start with, and tells the count to whoever asks for a number.
func sink(args []string) error {
	data, err := listenUDP(args[0])
	if err != nil {
		return err
	}
	control, err := listenUDP(args[1])
	if err != nil {
		return err
	}
	counts := make(chan map[uint64]uint64, 1)
	counts <- make(map[uint64]uint64)
	go func() {
		pc := ipv4.NewPacketConn(data)
		messages := make([]ipv4.Message, 64)
		for i := range messages {
			messages[i].Buffers = [][]byte{make([]byte, 2048)}
		}
		for {
			n, err := pc.ReadBatch(messages, 0)
			if err != nil {
				return
			}
			c := <-counts
			for _, m := range messages[:n] {
				if m.N >= 8 {
					c[binary.LittleEndian.Uint64(m.Buffers[0])]++
				}
			}
			counts <- c
		}
	}()
	b := make([]byte, 16)
	for {
		n, from, err := control.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		if n < 8 {
			continue
		}
		c := <-counts
		binary.LittleEndian.PutUint64(b[8:], c[binary.LittleEndian.Uint64(b)])
		counts <- c
		if _, err := control.WriteToUDPAddrPort(b[:16], from); err != nil {
			return err
		}
	}
}

// blast prints the highest rate that arrives.
func blast(args []string) error {
	set := flag.NewFlagSet("udp-blast", flag.ExitOnError)
	size := set.Int("size", 64, "bytes of each datagram's payload")
	if err := set.Parse(args); err != nil {
		return err
	}
	data, err := net.Dial("udp", set.Arg(0))
	if err != nil {
		return err
	}
	if err := largeBuffers(data.(*net.UDPConn)); err != nil {
		return err
	}
	control, err := net.Dial("udp", set.Arg(1))
	if err != nil {
		return err
	}
	best := 0.0
	low, high := 2e3, 1.2e6
	for id := uint64(1); id <= searches; id++ {
		rate := math.Sqrt(low * high)
		sent, took := send(data.(*net.UDPConn), id, *size, rate)
		time.Sleep(100 * time.Millisecond)
		got, err := ask(control, id)
		if err != nil {
			return err
		}
		if float64(got) >= (1-maxLoss)*float64(sent) && float64(sent) >= 0.95*rate*took.Seconds() {
			low, best = rate, max(best, float64(got)/took.Seconds())
		} else {
			high = rate
		}
	}
	_, err = fmt.Println(best / 1000)
	return err
}

// send sends datagrams at a steady rate, in bursts of at most 32 where the clock has run ahead.
func send(c *net.UDPConn, id uint64, size int, rate float64) (sent int, took time.Duration) {
	messages := make([]ipv4.Message, 32)
	for i := range messages {
		b := make([]byte, size)
		binary.LittleEndian.PutUint64(b, id)
		messages[i].Buffers = [][]byte{b}
	}
	pc := ipv4.NewPacketConn(c)
	start := time.Now()
	for {
		took = time.Since(start)
		if took >= searchSpan {
			return sent, took
		}
		due := min(int(rate*took.Seconds())-sent, len(messages))
		if due < 1 {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		n, err := pc.WriteBatch(messages[:due], 0)
		if err != nil {
			n = due // refused: lost
		}
		sent += n
	}
}

func ask(c net.Conn, id uint64) (uint64, error) {
	b := make([]byte, 16)
	for range 10 {
		binary.LittleEndian.PutUint64(b, id)
		if _, err := c.Write(b[:8]); err != nil {
			return 0, err
		}
		if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			return 0, err
		}
		if n, err := c.Read(b); err == nil && n == 16 && binary.LittleEndian.Uint64(b) == id {
			return binary.LittleEndian.Uint64(b[8:]), nil
		}
	}
	return 0, errors.New("the sink does not answer")
}
