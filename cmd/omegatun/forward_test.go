package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// tcpServer runs a TCP server until the test ends, and returns its address. Connections are closed after handle.
func tcpServer(t *testing.T, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// echo sends back what comes.
func echo(c *net.TCPConn) { io.Copy(c, c) }

// portOf returns the port of an address.
func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// pipes is "omegatun serve" for some TCP servers, and "omegatun forward" to each of them.
type pipes struct {
	serve, forward *command
	key            string            // the server's
	keys           []string          // under which each TCP server is served
	at             []string          // where each can be reached
	flags          map[string]string // "bootstrap", "client": the client's state
}

// startPipes starts them in a network of their own.
func startPipes(t *testing.T, servers ...string) *pipes {
	t.Helper()
	bootstrap := network(t)
	state, k := newIdentity(t)
	client, clientKey := newIdentity(t)
	p := &pipes{key: k, flags: map[string]string{"bootstrap": bootstrap, "client": client, "server": state}}
	args := append([]string{"--state", state, "--bootstrap", bootstrap, "serve", "--allow", clientKey}, servers...)
	p.serve = start(t, nil, args...)
	args = []string{"--state", client, "--bootstrap", bootstrap, "forward"}
	for _, s := range servers {
		words := strings.Fields(p.serve.stdout.want(t, "serving "+portOf(t, s)))
		p.keys = append(p.keys, words[2])
		args = append(args, "0:"+k+":"+portOf(t, s))
	}
	p.forward = start(t, nil, args...)
	for _, s := range servers {
		line := p.forward.stdout.want(t, "forwarding 127.0.0.1:")
		words := strings.Fields(line)
		if words[2] != k || words[3] != portOf(t, s) {
			t.Errorf("%q, want the key %s and the port %s", line, k, portOf(t, s))
		}
		p.at = append(p.at, words[1])
	}
	return p
}

// connect opens a TCP connection. The test fails if it is not done with it in time.
func connect(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// readAll opens a TCP connection and reads to its end. A connection that is reset may not even come about.
func readAll(t *testing.T, addr string) ([]byte, error) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, time.Minute)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}

// noise returns n bytes, always the same for a seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(s).Read(b)
	return b
}

func TestForwardCarriesManyConnectionsAtOnce(t *testing.T) {
	p := startPipes(t, tcpServer(t, echo))
	const connections = 200
	conns := make([]*net.TCPConn, connections)
	for i := range conns {
		conns[i] = connect(t, p.at[0])
	}
	var wg sync.WaitGroup
	for i, c := range conns { // all are open before the first ends
		wg.Go(func() {
			data := noise(uint64(i), 1000+i*300)
			wg.Go(func() {
				if _, err := c.Write(data); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			})
			back := make([]byte, len(data))
			if _, err := io.ReadFull(c, back); err != nil || !bytes.Equal(back, data) {
				t.Errorf("connection %d: %v; the same came back: %v", i, err, bytes.Equal(back, data))
			}
		})
	}
	wg.Wait()
	for i, c := range conns {
		if err := c.CloseWrite(); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("connection %d: %d bytes more, %v, want the end", i, n, err)
		}
	}
}

func TestForwardCarries50MBByteForByte(t *testing.T) {
	p := startPipes(t, tcpServer(t, echo))
	c := connect(t, p.at[0])
	data := noise(1, 50<<20)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	hash := sha256.New()
	n, err := io.Copy(hash, c)
	if err := errors.Join(err, <-sent); err != nil || n != int64(len(data)) || [32]byte(hash.Sum(nil)) != sha256.Sum256(data) {
		t.Errorf("%d bytes of %d came back, %v; the same: %v", n, len(data), err, [32]byte(hash.Sum(nil)) == sha256.Sum256(data))
	}
}

func TestForwardCarriesEachEndByItself(t *testing.T) {
	t.Parallel()
	late := make(chan string, 1)
	p := startPipes(t,
		tcpServer(t, func(c *net.TCPConn) { // answers when it has all
			b, err := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes, %v", len(b), err)
		}),
		tcpServer(t, func(c *net.TCPConn) { // says its part, and listens then
			io.WriteString(c, "my part")
			c.CloseWrite()
			b, err := io.ReadAll(c)
			late <- fmt.Sprintf("%s, %v", b, err)
		}),
	)
	c := connect(t, p.at[0])
	if _, err := c.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "100000 bytes, <nil>" {
		t.Errorf("after the client's end the server said %q, %v", b, err)
	}

	c = connect(t, p.at[1])
	if b, err := io.ReadAll(c); err != nil || string(b) != "my part" {
		t.Errorf("until its end the server said %q, %v", b, err)
	}
	if _, err := io.WriteString(c, "your part"); err != nil {
		t.Errorf("after the server's end: %v", err)
	}
	c.Close()
	if got := <-late; got != "your part, <nil>" {
		t.Errorf("after its own end the server got %q", got)
	}
}

// isReset reports whether err is what a connection fails with that the other side has reset.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func TestForwardCarriesResets(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := startPipes(t,
		tcpServer(t, func(c *net.TCPConn) { // waits for more
			io.WriteString(c, "hello")
			_, err := io.ReadAll(c)
			got <- err
		}),
		tcpServer(t, func(c *net.TCPConn) { // has no time for that
			io.ReadFull(c, make([]byte, 5))
			c.SetLinger(0)
		}),
		down.Addr().String(),
	)
	c := connect(t, p.at[0])
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	c.SetLinger(0)
	c.Close()
	select {
	case err := <-got:
		if !isReset(err) {
			t.Errorf("the client reset the connection, the server got: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the client reset the connection, the server does not know after 30 s")
	}

	c = connect(t, p.at[1])
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); !isReset(err) || len(b) > 0 {
		t.Errorf("the server reset the connection, the client got %q, %v", b, err)
	}

	// Where nobody listens.
	down.Close()
	if b, err := readAll(t, p.at[2]); !isReset(err) {
		t.Errorf("there is no server, the client got %q, %v", b, err)
	}
	p.serve.stderr.want(t, "note: the TCP server does not answer: ")
}

func TestForwardMakesTheSenderWait(t *testing.T) {
	t.Parallel()
	read := make(chan struct{})
	got := make(chan int64, 1)
	p := startPipes(t, tcpServer(t, func(c *net.TCPConn) {
		<-read
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}))
	c := connect(t, p.at[0])
	chunk := make([]byte, 64<<10)
	var sent int64
	const most = 64 << 20 // all buffers on the way together are smaller
	for sent < most {
		c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := c.Write(chunk)
		sent += int64(n)
		if err != nil {
			break
		}
	}
	if sent >= most {
		t.Errorf("%d bytes were taken although nobody reads them", sent)
	}
	close(read)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection did not end: %v", err)
	}
	if got := <-got; got != sent {
		t.Errorf("%d bytes arrived of %d", got, sent)
	}
}

func TestSeveralPortsAreToldApart(t *testing.T) {
	t.Parallel()
	say := func(word string) string {
		return tcpServer(t, func(c *net.TCPConn) {
			io.WriteString(c, word)
			c.CloseWrite()
			io.Copy(io.Discard, c)
		})
	}
	servers := []string{say("first"), say("second"), say("third")}
	p := startPipes(t, servers...)
	flags := []string{"--state", p.flags["client"], "--bootstrap", p.flags["bootstrap"]}
	for i, want := range []string{"first", "second", "third"} {
		if b, err := readAll(t, p.at[i]); err != nil || string(b) != want {
			t.Errorf("port %d: %q, %v, want %q", i, b, err, want)
		}
		// Programs that know nothing of ports use the port's key.
		status, out, talk := output(t, noInput(), append(flags, "connect", p.keys[i])...)
		if status != 0 || string(out) != want {
			t.Errorf("connect to the key of port %d: exit status %d, %q, want %q\n%s", i, status, out, want, talk)
		}
	}
	if status, out, _ := output(t, noInput(), append(flags, "connect", p.key)...); status != 0 || string(out) != "first" {
		t.Errorf("connect to the server's key: exit status %d, %q, want the first port", status, out)
	}
	// Nobody else gets through.
	stranger, _ := newIdentity(t)
	status, out, _ := output(t, noInput(), "--state", stranger, "--bootstrap", p.flags["bootstrap"], "connect", "--timeout", "1m", p.keys[1])
	if status != int(exit.Refused) || len(out) > 0 {
		t.Errorf("connect of a stranger: exit status %d, %q, want %d", status, out, exit.Refused)
	}

	// A port that is not served.
	f := start(t, nil, append(flags, "forward", "0:"+p.key+":9")...)
	note := f.stderr.want(t, "note: ")
	if !strings.Contains(note, "does not serve port 9, but ") || !strings.Contains(note, portOf(t, servers[2])) {
		t.Errorf("forward of a port that is not served: %q", note)
	}
	if b, err := readAll(t, strings.Fields(f.stdout.want(t, "forwarding "))[1]); !isReset(err) {
		t.Errorf("a port that is not served: %q, %v, want a reset", b, err)
	}
	f.stop()

	// Later there is one port only: the list does not say otherwise.
	p.serve.stop()
	if status := <-p.serve.done; status != 0 {
		t.Errorf("serve after Ctrl-C: exit status %d, want 0", status)
	}
	s := start(t, nil, "--state", p.flags["server"], "--bootstrap", p.flags["bootstrap"], "--json",
		"serve", "--allow", "any", servers[2])
	var e servingEvent
	decode(t, s.stdout.want(t, "{"), &e)
	if e.Schema != 1 || e.Event != "serving" || e.Address != servers[2] || e.Key.String() != p.key {
		t.Errorf("serving: %+v", e)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		f := start(t, nil, append(flags, "--json", "forward", "0:"+p.key+":"+portOf(t, servers[2]))...)
		var e forwardingEvent
		decode(t, f.stdout.want(t, "{"), &e)
		b, err := readAll(t, e.Listen)
		f.stop()
		<-f.done
		if string(b) == "third" && err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the one port: %q, %v, want third", b, err)
		}
	}
}

// noInput is an empty stdin.
func noInput() io.Reader { return strings.NewReader("") }

func TestCtrlCResetsWhatIsOpen(t *testing.T) {
	t.Parallel()
	p := startPipes(t, tcpServer(t, echo))
	for _, side := range []*command{p.serve, p.forward} {
		if side == p.forward {
			p = startPipes(t, tcpServer(t, echo))
			side = p.forward
		}
		c := connect(t, p.at[0])
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		side.stop()
		if b, err := io.ReadAll(c); !isReset(err) {
			t.Errorf("after Ctrl-C: %q, %v, want a reset", b, err)
		}
		if status := <-side.done; status != 0 {
			t.Errorf("exit status %d after Ctrl-C, want 0", status)
		}
	}
}

func TestForwardThatCannotWork(t *testing.T) {
	t.Parallel()
	bootstrap := network(t)
	state, k := newIdentity(t)
	_, other := newIdentity(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	flags := []string{"--state", state, "--bootstrap", bootstrap}
	status, out, talk := output(t, nil, append(flags, "forward", taken.Addr().String()+":"+other+":80")...)
	if status != int(exit.Other) || len(out) > 0 || !strings.Contains(talk, "is in use already") {
		t.Errorf("a port that is taken: exit status %d, %q, %s", status, out, talk)
	}
	if status, _, talk = output(t, nil, append(flags, "forward", "192.0.2.1:8080:"+other+":80")...); status != int(exit.Usage) {
		t.Errorf("an address of others: exit status %d, %s", status, talk)
	}

	// A peer that is not there: the connection is reset, and one is told once.
	f := start(t, nil, append(flags, "--json", "forward", "0:"+other+":80")...)
	var e forwardingEvent
	if err := json.Unmarshal([]byte(f.stdout.want(t, "{")), &e); err != nil {
		t.Fatal(err)
	}
	if e.Schema != 1 || e.Event != "forwarding" || e.Key.String() != other || e.Port != 80 {
		t.Errorf("%+v", e)
	}
	for range 2 {
		if b, err := readAll(t, e.Listen); !isReset(err) {
			t.Errorf("a peer that is not there: %q, %v, want a reset", b, err)
		}
	}
	if note := f.stderr.want(t, "{"); !strings.Contains(note, `"event":"note"`) || !strings.Contains(note, "not announced in the DHT") {
		t.Errorf("a peer that is not there: %s", note)
	}
	f.stop()
	if status := <-f.done; status != 0 {
		t.Errorf("forward after Ctrl-C: exit status %d, want 0", status)
	}
	select {
	case line, ok := <-f.stderr.c:
		if ok {
			t.Errorf("said twice: %s", line)
		}
	case <-time.After(30 * time.Second):
		t.Error("stderr stays open")
	}

	// Two cannot serve with one identity.
	s := start(t, nil, append(flags, "serve", "9", "--allow", "any")...)
	s.stdout.want(t, "serving 9 "+k)
	status, _, talk = output(t, nil, append(flags, "serve", "9", "--allow", "any")...)
	if status != int(exit.Other) || !strings.Contains(talk, "another omegatun uses "+filepath.Clean(state)) {
		t.Errorf("second serve: exit status %d, %s", status, talk)
	}
}

// tcpPair returns the two ends of a TCP connection.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestWatchClientNoticesThatItLeaves(t *testing.T) {
	client, server := tcpPair(t)
	waiting, settle := watchClient(t.Context(), server)
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	client.SetLinger(0)
	client.Close()
	select {
	case <-waiting.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was noticed")
	}
	if err := context.Cause(waiting); !errors.Is(err, errClientLeft) {
		t.Errorf("it ended with %v, want that the client has left", err)
	}
	settle()
}

func TestWatchClientLosesNothing(t *testing.T) {
	for _, row := range []struct {
		name          string
		before, after string
		closed        bool // the client's direction ends while it waits
	}{
		{"nothing is sent", "", "", false},
		{"something is sent", "early, ", "late", false},
		{"everything is sent", "early", "", true},
		{"more than is kept", strings.Repeat("x", 3*maxEarly), "late", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			client, server := tcpPair(t)
			waiting, settle := watchClient(t.Context(), server)
			sent := make(chan error, 1)
			go func() {
				_, err := io.WriteString(client, row.before)
				if row.closed {
					err = errors.Join(err, client.CloseWrite())
				}
				sent <- err
			}()
			if len(row.before) < maxEarly {
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
			c := settle()
			if err := context.Cause(waiting); !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v", err)
			}
			if !row.closed {
				go func() {
					if len(row.before) >= maxEarly {
						<-sent
					}
					io.WriteString(client, row.after)
					client.CloseWrite()
				}()
			}
			got, err := io.ReadAll(io.Reader(c))
			if err != nil || string(got) != row.before+row.after {
				t.Errorf("%d bytes were read, %v, want %d", len(got), err, len(row.before+row.after))
			}
		})
	}
}

// Whoever waits behind many others waits as long as those come about, and no longer.
func TestForwardWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ports := &peerPorts{dialing: make(chan struct{}, 1)}
		f := forwarder{timeout: 30 * time.Second, ports: map[key.Public]*peerPorts{{}: ports}}
		v := new(forwarded)
		ports.dialing <- struct{}{}
		start := time.Now()
		if _, err := f.turn(t.Context(), v); exit.From(err).Code != exit.Timeout || time.Since(start) != f.timeout {
			t.Errorf("while no stream comes about: %v after %v", err, time.Since(start))
		}
		start = time.Now()
		go func() {
			for range 5 {
				time.Sleep(20 * time.Second)
				v.reached.Store(new(time.Now()))
			}
			<-ports.dialing
		}()
		done, err := f.turn(t.Context(), v)
		if err != nil || time.Since(start) != 100*time.Second {
			t.Fatalf("while streams come about: %v after %v, want success after 100 s", err, time.Since(start))
		}
		done()
		if len(ports.dialing) != 0 {
			t.Error("the turn is not given back")
		}
	})
}
