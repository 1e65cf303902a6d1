//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"

	"omegatun/session/udp"
	"omegatun/session/udx"
)

// bare moves bytes through a bare stream.
func (b *bench) bare(from, to string) (measured, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	open := func(kind, role string) (p *process, in io.WriteCloser, port string, err error) {
		var cmd *exec.Cmd
		if kind == ours {
			self, err := os.Executable()
			if err != nil {
				return nil, nil, "", err
			}
			cmd = exec.CommandContext(ctx, self, "-end", role, "-size", strconv.FormatInt(b.bytes>>20, 10))
		} else {
			cmd = b.node(ctx, "udx.js", role, strconv.FormatInt(b.bytes, 10))
		}
		if in, err = cmd.StdinPipe(); err != nil {
			return nil, nil, "", err
		}
		if p, err = start(cmd, false); err != nil {
			return nil, nil, "", err
		}
		port, err = p.line("")
		return p, in, port, errors.Join(err, p.begin())
	}
	receiver, receiverIn, toPort, err := open(to, "receive")
	if err != nil {
		return measured{}, err
	}
	sender, senderIn, fromPort, err := open(from, "send")
	if err != nil {
		receiver.stop()
		return measured{}, err
	}
	began := time.Now()
	if _, err = io.WriteString(receiverIn, fromPort+"\n"); err == nil {
		_, err = io.WriteString(senderIn, toPort+"\n")
	}
	got := ""
	if err == nil {
		got, err = receiver.line("")
	}
	took := time.Since(began)
	if err == nil && got != strconv.FormatInt(b.bytes, 10) {
		err = fmt.Errorf("received %q bytes of %d", got, b.bytes)
	}
	if err != nil {
		cancel()
	}
	if err := errors.Join(err, sender.cmd.Wait(), receiver.cmd.Wait()); err != nil {
		return measured{}, err
	}
	s, r, err := cpuOf(sender, receiver)
	return b.result(took, s, r), err
}

// bareEnd is what a process of this program does as one end.
func bareEnd(role string, bytes int64) error {
	conn, err := udp.Listen(udp.Config{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		return err
	}
	mux := udx.NewMux(udx.Config{})
	defer func() { _ = errors.Join(mux.Close(), conn.Close()) }() // the process ends
	go receive(conn, mux)
	id, peerID := udx.ID(1), udx.ID(2)
	if role == "receive" {
		id, peerID = peerID, id
	}
	s, err := mux.NewStream(udx.StreamConfig{ID: id})
	if err != nil {
		return err
	}
	fmt.Println(conn.LocalAddr().Port())
	in := bufio.NewScanner(os.Stdin)
	if !in.Scan() {
		return errors.New("no port on standard input")
	}
	peer, err := netip.ParseAddrPort("127.0.0.1:" + in.Text())
	if err != nil {
		return err
	}
	if err := s.Connect(conn, peer, peerID); err != nil {
		return err
	}
	chunk := make([]byte, 64<<10)
	if role == "send" {
		for left := bytes; left > 0; {
			n, err := s.Write(chunk[:min(left, int64(len(chunk)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		err = s.CloseWrite()
	} else {
		var all int64
		for {
			n, err := s.Read(chunk)
			all += int64(n)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		fmt.Println(all)
		err = s.CloseWrite()
	}
	if err != nil {
		return err
	}
	<-s.Done()
	time.Sleep(100 * time.Millisecond) // the last acknowledgement
	return s.Err()
}

func receive(conn *udp.Conn, mux *udx.Mux) {
	b, burst := udp.NewBatch(), mux.NewBurst()
	for conn.Receive(b) == nil {
		for i := range b.Len() {
			d, from := b.Datagram(i)
			burst.Receive(conn, d, from)
		}
		burst.Flush()
	}
}
