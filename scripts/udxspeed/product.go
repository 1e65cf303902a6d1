//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

// network is a DHT on loopback.
type network struct {
	nodes     *session.Nodes
	bootstrap netip.AddrPort
}

const dhtNodes = 3

// join starts the network if it has not been.
func (b *bench) join() (err error) {
	if b.network != nil {
		return nil
	}
	n := &network{}
	if n.nodes, err = session.NewNodes(); err != nil {
		return err
	}
	b.network = n
	if err := os.WriteFile(b.config(), nil, 0o644); err != nil {
		return err
	}
	for range dhtNodes {
		cfg := session.NodeConfig{Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
		cfg.DHT.Mode, cfg.DHT.Open, cfg.DHT.Bootstrap = dht.Persistent, true, []string{}
		if n.bootstrap.IsValid() {
			cfg.DHT.Bootstrap = []string{n.bootstrap.String()}
		}
		node, err := n.nodes.Open(cfg)
		if err != nil {
			return err
		}
		if !n.bootstrap.IsValid() {
			n.bootstrap = node.Addr()
		}
	}
	return nil
}

func (n *network) close() { _ = n.nodes.Close() }

// config is a configuration file that says nothing.
func (b *bench) config() string { return filepath.Join(b.tmp, "config.toml") }

// omegatun returns a command of ours, with the identity of a role.
func (b *bench) omegatun(ctx context.Context, role string, args ...string) *exec.Cmd {
	state := filepath.Join(b.tmp, role)
	args = append(args, "--state", state, "--socket", filepath.Join(state, "socket"), "--config", b.config(),
		"--bootstrap="+b.network.bootstrap.String())
	c := exec.CommandContext(ctx, b.program, args...)
	c.Env = append(os.Environ(), "NO_COLOR=1")
	return c
}

// hexKey returns a key in the form that JavaScript programs take, and ours too.
func hexKey(s string) (string, error) {
	k, err := key.ParsePublic(s)
	return k.Hex(), err
}

// zeros returns a file of that many zero bytes, which takes no memory.
func zeros(n int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("zeros", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "zeros")
	return f, f.Truncate(n)
}

// stream moves bytes from the standard input of one end to the standard output of the other.
func (b *bench) stream(from, to string) (measured, error) {
	if err := b.join(); err != nil {
		return measured{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	out, in, err := os.Pipe()
	if err != nil {
		return measured{}, err
	}
	defer func() { _ = out.Close() }()
	var cmd *exec.Cmd
	if to == ours {
		cmd = b.omegatun(ctx, "receiver", "listen", "--allow", "any", "--once")
	} else {
		cmd = b.node(ctx, "stream.js", "listen", b.network.bootstrap.String())
	}
	cmd.Stdout = in
	receiver, err := start(cmd, true)
	_ = in.Close()
	if err != nil {
		return measured{}, err
	}
	key, err := receiver.line("listening ")
	if err == nil {
		key, err = hexKey(key)
	}
	if err != nil {
		return measured{}, err
	}
	data, err := zeros(b.bytes)
	if err != nil {
		receiver.stop()
		return measured{}, err
	}
	defer func() { _ = data.Close() }()
	if from == ours {
		cmd = b.omegatun(ctx, "sender", "connect", key)
	} else {
		cmd = b.node(ctx, "stream.js", "connect", b.network.bootstrap.String(), key)
	}
	cmd.Stdin = data
	sender, err := start(cmd, true)
	if err != nil {
		receiver.stop()
		return measured{}, err
	}
	took, err := drain(out, b.bytes, func() error { return errors.Join(sender.begin(), receiver.begin()) })
	if err != nil {
		cancel()
		return measured{}, errors.Join(err, sender.cmd.Wait(), receiver.cmd.Wait())
	}
	if err := errors.Join(sender.cmd.Wait(), receiver.cmd.Wait()); err != nil {
		return measured{}, err
	}
	s, r, err := cpuOf(sender, receiver)
	return b.result(took, s, r), err
}

// drain takes n bytes from a pipe without touching them, calls begun after the first, and returns how long the rest took.
func drain(pipe *os.File, n int64, begun func() error) (time.Duration, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	fd := int(pipe.Fd()) // blocking from here on
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		return 0, err
	}
	var began time.Time
	for got := int64(0); got < n; {
		m, err := unix.Splice(fd, nil, int(null.Fd()), nil, 1<<20, 0)
		switch {
		case err != nil:
			return 0, err
		case m == 0:
			return 0, fmt.Errorf("%d bytes of %d came", got, n)
		case got == 0:
			if err := begun(); err != nil {
				return 0, err
			}
			began = time.Now()
		}
		got += m
	}
	return time.Since(began), nil
}

// tcp moves bytes from a TCP client behind one end to a TCP server behind the other.
func (b *bench) tcp(from, to string) (measured, error) {
	if err := b.join(); err != nil {
		return measured{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var lc net.ListenConfig
	server, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return measured{}, err
	}
	defer func() { _ = server.Close() }()
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	port := fmt.Sprint(server.Addr().(*net.TCPAddr).Port)
	bootstrap := fmt.Sprintf("--bootstrap=%d", b.network.bootstrap.Port())

	var cmd *exec.Cmd
	prefix := "serving " + port + " "
	if to == ours {
		cmd = b.omegatun(ctx, "receiver", "serve", "--allow", "any", port)
	} else {
		cmd = b.node(ctx, filepath.Join(b.modules, "hypertele/server.js"), "-l="+port, "--seed="+strings.Repeat("ab", 32), bootstrap)
		prefix = "hypertele: "
	}
	receiver, err := start(cmd, false)
	if err != nil {
		return measured{}, err
	}
	defer receiver.stop()
	printed, err := receiver.line(prefix)
	if err != nil {
		return measured{}, err
	}
	key, err := hexKey(printed)
	if err != nil {
		return measured{}, err
	}
	free, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return measured{}, err
	}
	entry := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	if from == ours {
		cmd = b.omegatun(ctx, "sender", "forward", fmt.Sprintf("%d:%s:%s", entry, key, port))
		prefix = "forwarding "
	} else {
		cmd = b.node(ctx, filepath.Join(b.modules, "hypertele/client.js"), fmt.Sprintf("-p=%d", entry), "-s="+key, bootstrap)
		prefix = "Server ready @"
	}
	sender, err := start(cmd, false)
	if err != nil {
		return measured{}, err
	}
	defer sender.stop()
	if _, err := sender.line(prefix); err != nil {
		return measured{}, err
	}
	var d net.Dialer
	client, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", entry))
	if err != nil {
		return measured{}, err
	}
	defer func() { _ = client.Close() }()
	if _, err := client.Write([]byte{0}); err != nil { // the way is open when it arrives
		return measured{}, err
	}
	sent := make(chan error, 1)
	took, err := b.sink(server, func() error {
		go func() { sent <- b.source(client.(*net.TCPConn)) }()
		return errors.Join(sender.begin(), receiver.begin())
	})
	if err != nil {
		return measured{}, err
	}
	s, r, err := cpuOf(sender, receiver)
	return b.result(took, s, r), errors.Join(err, <-sent)
}

// source sends zeros that the kernel makes.
func (b *bench) source(c *net.TCPConn) error {
	f, err := zeros(b.bytes)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = c.ReadFrom(f) // sendfile
	return errors.Join(err, c.CloseWrite())
}

// sink accepts a connection and takes a byte, calls begun, and takes the rest, which the kernel throws away. It returns how
// long that took.
func (b *bench) sink(l net.Listener, begun func() error) (time.Duration, error) {
	c, err := l.Accept()
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return 0, err
	}
	if err := begun(); err != nil {
		return 0, err
	}
	began := time.Now()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	scratch := make([]byte, 1<<20)
	for got := int64(0); got < b.bytes; {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), scratch, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err := errors.Join(err, failed); err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, fmt.Errorf("%d bytes of %d came", got, b.bytes)
		}
		got += int64(n)
	}
	return time.Since(began), nil
}
