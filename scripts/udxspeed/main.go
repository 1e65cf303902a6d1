// Command udxspeed moves bytes over UDX streams on loopback between this implementation and npm's udx-native, each end
// a process, in all four combinations one after the other, and compares throughput and CPU time:
//
//	npm ci --prefix scripts/interop && go run ./scripts/udxspeed           # 1 GiB each
//	go run ./scripts/udxspeed -size 256 -rounds 3 -json                    # the best of three rounds
//
// Go's end is a udx.Stream on a udp.Conn with batches and offloads, as in the product, without encryption on either side.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"omegatun/session/udp"
	"omegatun/session/udx"
)

// measured is one transfer.
type measured struct {
	From     string  `json:"from"`
	To       string  `json:"to"`
	Bytes    int64   `json:"bytes"`
	Seconds  float64 `json:"seconds"`
	MBytes   float64 `json:"mbyte_per_s"`
	Sender   float64 `json:"sender_cpu_s_per_gib"`
	Receiver float64 `json:"receiver_cpu_s_per_gib"`
}

func (m measured) cpu() float64 { return m.Sender + m.Receiver }

const timeout = 10 * time.Minute // for one transfer

func main() {
	log.SetFlags(0)
	size := flag.Int64("size", 1024, "`MiB` to move")
	rounds := flag.Int("rounds", 1, "`times` to do everything; the fastest counts")
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	dir := flag.String("js", "scripts/udxspeed/udx.js", "`file` of the JavaScript end")
	modules := flag.String("modules", "scripts/interop/node_modules", "`folder` with udx-native")
	end := flag.String("end", "", "be one end: send or receive")
	flag.Parse()
	bytes := *size << 20
	if *end != "" {
		if err := goEnd(*end, bytes); err != nil {
			log.Fatal(err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	abs, err := filepath.Abs(*modules)
	if err != nil {
		log.Fatal(err)
	}
	command := func(ctx context.Context, kind, role string) *exec.Cmd {
		if kind == "go" {
			return exec.CommandContext(ctx, self, "-end", role, "-size", strconv.FormatInt(*size, 10))
		}
		c := exec.CommandContext(ctx, "node", *dir, role, strconv.FormatInt(bytes, 10))
		c.Env = append(os.Environ(), "NODE_PATH="+abs)
		return c
	}
	var all []measured
	for _, from := range []string{"go", "js"} {
		for _, to := range []string{"go", "js"} {
			var best measured
			for range *rounds {
				m, err := transfer(command, from, to, bytes)
				if err != nil {
					log.Fatalf("%s to %s: %v", from, to, err)
				}
				if best.Seconds == 0 || m.Seconds < best.Seconds {
					best = m
				}
			}
			all = append(all, best)
		}
	}
	if *asJSON {
		err = json.NewEncoder(os.Stdout).Encode(struct {
			Schema    int        `json:"schema"`
			Transfers []measured `json:"transfers"`
		}{1, all})
	} else {
		_, err = io.WriteString(os.Stdout, table(all))
	}
	if err != nil {
		log.Fatal(err)
	}
}

func table(all []measured) string {
	var b strings.Builder
	js := all[len(all)-1]
	fmt.Fprintf(&b, "%-10s %9s %15s %17s %12s %10s\n", "", "MB/s", "sender s/GiB", "receiver s/GiB", "throughput", "CPU")
	for _, m := range all {
		fmt.Fprintf(&b, "%-10s %9.0f %15.2f %17.2f %11.2fx %9.2fx\n", m.From+" to "+m.To, m.MBytes, m.Sender, m.Receiver,
			m.MBytes/js.MBytes, m.cpu()/js.cpu())
	}
	return b.String()
}

// process is one end.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func start(cmd *exec.Cmd) (p process, port string, err error) {
	p.cmd = cmd
	cmd.Stderr = os.Stderr
	if p.in, err = cmd.StdinPipe(); err != nil {
		return p, "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return p, "", err
	}
	p.out = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		return p, "", err
	}
	if !p.out.Scan() {
		return p, "", errors.Join(errors.New("the process ended; is udx-native installed? run npm ci --prefix scripts/interop"), cmd.Wait())
	}
	return p, p.out.Text(), nil
}

// cpu is what a process that has ended took, in seconds per GiB.
func (p process) cpu(bytes int64) float64 {
	s := p.cmd.ProcessState
	return (s.UserTime() + s.SystemTime()).Seconds() / float64(bytes) * (1 << 30)
}

func transfer(command func(context.Context, string, string) *exec.Cmd, from, to string, bytes int64) (measured, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	receiver, toPort, err := start(command(ctx, to, "receive"))
	if err != nil {
		return measured{}, err
	}
	sender, fromPort, err := start(command(ctx, from, "send"))
	if err != nil {
		cancel()
		return measured{}, errors.Join(err, receiver.cmd.Wait())
	}
	began := time.Now()
	if _, err = io.WriteString(receiver.in, fromPort+"\n"); err == nil {
		_, err = io.WriteString(sender.in, toPort+"\n")
	}
	got := ""
	if err == nil && receiver.out.Scan() {
		got = receiver.out.Text()
	}
	took := time.Since(began).Seconds()
	if got != strconv.FormatInt(bytes, 10) {
		cancel()
		err = errors.Join(err, fmt.Errorf("received %q bytes of %d", got, bytes))
	}
	if err := errors.Join(err, sender.cmd.Wait(), receiver.cmd.Wait()); err != nil {
		return measured{}, err
	}
	return measured{
		From: from, To: to, Bytes: bytes, Seconds: took, MBytes: float64(bytes) / took / 1e6,
		Sender: sender.cpu(bytes), Receiver: receiver.cpu(bytes),
	}, nil
}

// goEnd is what a process of this program does as one end.
func goEnd(role string, bytes int64) error {
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
	if role == "send" {
		chunk := make([]byte, 64<<10)
		for left := bytes; left > 0; {
			n, err := s.Write(chunk[:min(left, int64(len(chunk)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		err = s.CloseWrite()
	} else {
		var n int64
		if n, err = io.Copy(io.Discard, struct{ io.Reader }{s}); err == nil {
			fmt.Println(n)
			err = s.CloseWrite()
		}
	}
	if err != nil {
		return err
	}
	<-s.Done()
	time.Sleep(100 * time.Millisecond) // the last acknowledgement
	return s.Err()
}

func receive(conn *udp.Conn, mux *udx.Mux) {
	b := udp.NewBatch()
	for conn.Receive(b) == nil {
		for i := range b.Len() {
			d, from := b.Datagram(i)
			mux.Receive(conn, d, from)
		}
	}
}
