//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Net is one network namespace: a host, a router, or the internet. Its methods may be called concurrently.
type Net struct {
	Name string
	lab  *Lab
	file *os.File // the namespace; keeps it alive
}

// newNet makes a network namespace with the name NAME in /run/netns, its loopback device up.
func (l *Lab) newNet(name string) (*Net, error) {
	n := &Net{Name: l.prefix + name, lab: l}
	path := filepath.Join(netnsDir, n.Name)
	ch := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ch <- func() error {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
			if err != nil {
				return err
			}
			f.Close()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	err := <-ch
	if err == nil {
		n.file, err = os.Open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("netlab: namespace %s: %w", n.Name, err)
	}
	l.nets = append(l.nets, n)
	return n, n.Run("ip", "link", "set", "lo", "up")
}

// remove takes the namespace away; its devices go with it.
func (n *Net) remove() error {
	path := filepath.Join(netnsDir, n.Name)
	return errors.Join(n.file.Close(), unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
}

// Do calls f on a thread inside the namespace: what f opens belongs to it, also after f has returned.
// f must not start goroutines that open anything.
func (n *Net) Do(f func() error) error {
	ch := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			ch <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			ch <- fmt.Errorf("netlab: enter %s: %w", n.Name, err)
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends here, and never serves another goroutine
		}
		ch <- err
	}()
	return <-ch
}

// Run runs a command in the namespace and waits for it. The error includes what it wrote on stderr.
func (n *Net) Run(args ...string) error {
	_, err := n.Output(args...)
	return err
}

// Input is Run with text on the command's stdin.
func (n *Net) Input(stdin string, args ...string) error {
	_, err := n.run(stdin, args)
	return err
}

// Output is Run and returns what the command wrote on stdout.
func (n *Net) Output(args ...string) (string, error) {
	return n.run("", args)
}

// runTimeout bounds the small commands that build and inspect a lab, milliseconds each on an idle machine.
const runTimeout = 30 * time.Second

func (n *Net) run(stdin string, args []string) (string, error) {
	if n.lab.trace != nil {
		n.lab.trace(n.Name, strings.Join(args, " "))
	}
	ctx, cancel := context.WithTimeout(n.lab.ctx, runTimeout)
	defer cancel()
	var out, complaint bytes.Buffer
	cmd := command(ctx, args)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil && n.lab.ctx.Err() != nil {
		return "", context.Cause(n.lab.ctx)
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", n.Name, strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), err
}

// Sysctl sets kernel parameters of the namespace, "net.ipv4.ip_forward=1".
func (n *Net) Sysctl(settings ...string) error {
	return n.Do(func() error {
		for _, s := range settings {
			name, value, _ := strings.Cut(s, "=")
			path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// Listen is net.Listen in the namespace.
func (n *Net) Listen(network string, addr netip.AddrPort) (ln net.Listener, err error) {
	err = n.Do(func() error {
		ln, err = net.Listen(network, addr.String())
		return err
	})
	return ln, err
}

// ListenUDP is net.ListenUDP in the namespace.
func (n *Net) ListenUDP(addr netip.AddrPort) (c *net.UDPConn, err error) {
	err = n.Do(func() error {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	return c, err
}

// Dial connects from inside the namespace.
func (n *Net) Dial(ctx context.Context, network string, addr netip.AddrPort) (c net.Conn, err error) {
	err = n.Do(func() error {
		var d net.Dialer // a literal address: the socket is made on this thread
		c, err = d.DialContext(ctx, network, addr.String())
		return err
	})
	return c, err
}
