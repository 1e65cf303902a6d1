//go:build linux

package interop

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// hypertele is npm's TCP proxy over HyperDHT, of which holesail has its pipes, too. It joins through 127.0.0.1 only.
const hypertele = "hypertele"

// Where the TCP server of a test is, and where its client finds it.
const (
	serverPort = 7007
	clientPort = 8008
)

// A TCP server behind one implementation, a client behind the other. Where both are hypertele it is seen what it
// does by itself.
func TestPipesCarryTCPConnections(t *testing.T) {
	for _, row := range []struct{ server, client string }{
		{hypertele, hypertele},
		{hypertele, omegatun},
		{omegatun, hypertele},
		{omegatun, omegatun},
	} {
		t.Run(fmt.Sprintf("server=%s client=%s", row.server, row.client), func(t *testing.T) {
			if reason := noJavaScript(); reason != "" {
				t.Skip(reason)
			}
			s := loopback(t, javascript)
			ended := tcpServer(t, s)
			var key string
			if row.server == hypertele {
				key = printed(t, s.server, "hypertele: ", "node", "node_modules/hypertele/server.js",
					fmt.Sprintf("-l=%d", serverPort), "--seed="+strings.Repeat("ab", 32), bootstrapPort(t, s))
			} else {
				p := e2etest.Peer(t, s.server, s.bootstrap)
				printed(t, s.server, fmt.Sprintf("serving %d ", serverPort),
					p.Args("serve", "--allow", "any", fmt.Sprintf("127.0.0.1:%d", serverPort))...)
				key = hexKey(t, p)
			}
			if row.client == hypertele {
				printed(t, s.client, "Server ready @", "node", "node_modules/hypertele/client.js",
					fmt.Sprintf("-p=%d", clientPort), "-s="+key, bootstrapPort(t, s))
			} else {
				p := e2etest.Peer(t, s.client, s.bootstrap)
				printed(t, s.client, "forwarding ", p.Args("forward", fmt.Sprintf("%d:%s:%d", clientPort, key, serverPort))...)
			}

			t.Run("bytes", func(t *testing.T) { pipesCarryBytes(t, s) })
			t.Run("many", func(t *testing.T) { pipesCarryMany(t, s) })
			t.Run("answer", func(t *testing.T) { pipesCarryAnAnswer(t, s) })
			t.Run("end", func(t *testing.T) { pipesCarryTheEnd(t, s) })
			t.Run("reset", func(t *testing.T) { pipesCarryResets(t, s, ended) })
		})
	}
}

// bootstrapPort is hypertele's argument for the scene's DHT.
func bootstrapPort(t *testing.T, s scene) string {
	t.Helper()
	return fmt.Sprintf("--bootstrap=%d", netip.MustParseAddrPort(s.bootstrap).Port())
}

// printed starts a program and returns what follows prefix on the first line that begins with it.
func printed(t *testing.T, n *netlab.Net, prefix string, args ...string) string {
	t.Helper()
	found := make(chan string, 1)
	p, err := n.Start(netlab.Cmd{Args: args, OnLine: func(line string) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			select {
			case found <- rest:
			default:
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	e2etest.LogOnFailure(t, p)
	select {
	case rest := <-found:
		return rest
	case <-p.Done():
		t.Fatalf("%s: ended:\n%s", p.Name, p.Output())
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: no line %q after 20 s:\n%s", p.Name, prefix, p.Output())
	}
	panic("unreachable")
}

// The first byte that the TCP server gets says what it does.
const (
	wantEcho   = 'e' // it echoes what follows
	wantAnswer = 'a' // it sends answerSize bytes and closes the connection, as an HTTP server may
	answerSize = 3 << 20
)

// tcpServer does what the first byte says. It tells how each connection ended: nil for a proper end of the client's side.
func tcpServer(t *testing.T, s scene) <-chan error {
	t.Helper()
	l, err := s.server.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), serverPort))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				mode := make([]byte, 1)
				_, err := io.ReadFull(c, mode)
				switch {
				case err != nil:
				case mode[0] == wantAnswer:
					_, err = io.Copy(c, peer.Random(9, answerSize))
				default:
					_, err = io.Copy(c, c)
				}
				ended <- err
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return ended
}

// dialPipe connects to the client's side of the pipe and says what the server is to do.
func dialPipe(t *testing.T, s scene, mode byte) *net.TCPConn {
	t.Helper()
	c, err := s.client.Dial(t.Context(), "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), clientPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{mode}); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// echoed sends size bytes and wants them back.
func echoed(c net.Conn, seed byte, size int64) error {
	data, err := io.ReadAll(peer.Random(seed, size))
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	back := make([]byte, size)
	n, err := io.ReadFull(c, back)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("%d bytes of %d came back: %w", n, size, err)
	}
	if !bytes.Equal(back, data) {
		return errors.New("other bytes came back")
	}
	return nil
}

func pipesCarryBytes(t *testing.T, s scene) {
	if err := echoed(dialPipe(t, s, wantEcho), 1, 20<<20); err != nil {
		t.Error(err)
	}
}

func pipesCarryMany(t *testing.T, s scene) {
	var wg sync.WaitGroup
	for i := range 50 {
		c := dialPipe(t, s, wantEcho)
		wg.Go(func() {
			if err := echoed(c, byte(i), 10_000); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func pipesCarryAnAnswer(t *testing.T, s scene) {
	hash := sha256.New()
	n, err := io.Copy(hash, dialPipe(t, s, wantAnswer))
	if err != nil || hex.EncodeToString(hash.Sum(nil)) != peer.Sum(9, answerSize) {
		t.Errorf("%d bytes of %d came, %v, or others", n, answerSize, err)
	}
}

func pipesCarryTheEnd(t *testing.T, s scene) {
	c := dialPipe(t, s, wantEcho)
	if err := echoed(c, 2, 1000); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("after the end: %q, %v, want the end", b, err)
	}
}

func pipesCarryResets(t *testing.T, s scene, ended <-chan error) {
	for len(ended) > 0 {
		<-ended
	}
	c := dialPipe(t, s, wantEcho)
	if err := echoed(c, 3, 1000); err != nil {
		t.Fatal(err)
	}
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case err := <-ended:
		t.Logf("the server's side ended with: %v", err)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, os.ErrClosed) {
			t.Errorf("the server's side ended with: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the server's side goes on after 5 s")
	}
}
