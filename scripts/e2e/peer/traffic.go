//go:build linux

package peer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"omegatun/scripts/netlab"
)

// Random returns a stream of size bytes that follow from the seed, and hardly compress.
func Random(seed byte, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

// Sum returns the SHA-256 of Random(seed, size), in hex.
func Sum(seed byte, size int64) string {
	h := sha256.New()
	io.Copy(h, Random(seed, size)) //nolint:errcheck // neither side can fail
	return hex.EncodeToString(h.Sum(nil))
}

// ServeHTTP serves Random(7, size) at /<size> on a host, until stop is called.
func ServeHTTP(n *netlab.Net, addr netip.AddrPort) (stop func(), err error) {
	ln, err := n.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			size, err := strconv.ParseInt(r.URL.Path[1:], 10, 64)
			if err != nil {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
			io.CopyBuffer(onlyWriter{w}, Random(7, size), make([]byte, 256<<10)) //nolint:errcheck // the client sees it
		}),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(ln) //nolint:errcheck // ends when closed
	}()
	return func() {
		srv.Close() //nolint:errcheck // there is nothing to save
		<-done
	}, nil
}

// onlyWriter hides the other methods of a writer, so that the caller's buffer is used.
type onlyWriter struct{ io.Writer }

// Download fetches url with curl, an ordinary program, and returns the size and the SHA-256 in hex.
func Download(ctx context.Context, n *netlab.Net, url string) (size int64, sum string, took time.Duration, err error) {
	h := sha256.New()
	count := &counter{w: h}
	start := time.Now()
	p, err := n.Start(netlab.Cmd{
		Args:   []string{"curl", "--silent", "--show-error", "--fail", "--globoff", "--noproxy", "*", url},
		Stdout: count,
	})
	if err != nil {
		return 0, "", 0, err
	}
	code, err := p.Wait(ctx)
	took = time.Since(start)
	if err != nil {
		p.Kill()
		return count.n, "", took, err
	}
	if code != 0 {
		return count.n, "", took, fmt.Errorf("curl %s: exit status %d: %s", url, code, p.Output())
	}
	return count.n, hex.EncodeToString(h.Sum(nil)), took, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return c.w.Write(b)
}

// SessionStats is how an interactive session felt.
type SessionStats struct {
	Keys         int // typed and echoed
	Lines        int // the server sent by itself meanwhile
	Median, Most time.Duration
}

// Session holds one long TCP connection, as ssh would: the client types keys, the server echoes each and prints
// lines of its own in between. Both directions are checked byte for byte.
func Session(ctx context.Context, server *netlab.Net, addr netip.AddrPort, client *netlab.Net, keys int, pause time.Duration) (SessionStats, error) {
	var stats SessionStats
	ln, err := server.Listen("tcp", addr)
	if err != nil {
		return stats, err
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() { served <- serveSession(ctx, ln, keys) }()
	c, err := client.Dial(ctx, "tcp", addr)
	if err != nil {
		return stats, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var took []time.Duration
	b := make([]byte, 1)
	next := func() (byte, error) {
		_, err := io.ReadFull(c, b)
		return b[0], err
	}
	for i := range keys {
		start := time.Now()
		typed := 'a' + byte(i%26)
		if _, err := c.Write([]byte{typed}); err != nil {
			return stats, fmt.Errorf("session: key %d: %w", i, cause(ctx, err))
		}
		for {
			got, err := next()
			if err != nil {
				return stats, fmt.Errorf("session: echo of key %d: %w", i, cause(ctx, err))
			}
			if got == '\n' {
				stats.Lines++
				continue
			}
			if got != typed {
				return stats, fmt.Errorf("session: key %d: %q came back for %q", i, got, typed)
			}
			break
		}
		took = append(took, time.Since(start))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return stats, context.Cause(ctx)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return stats, err
	}
	for {
		got, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || got != '\n' {
			return stats, fmt.Errorf("session: at the end: %q, %w", got, cause(ctx, err))
		}
		stats.Lines++
	}
	if err := <-served; err != nil {
		return stats, err
	}
	slices.Sort(took)
	stats.Keys, stats.Median, stats.Most = keys, took[len(took)/2], took[len(took)-1]
	return stats, nil
}

// serveSession echoes keys of one connection and sends a newline after every tenth.
func serveSession(ctx context.Context, ln net.Listener, keys int) error {
	c, err := ln.Accept()
	if err != nil {
		return fmt.Errorf("session: server: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	b := make([]byte, 1)
	for i := 0; ; i++ {
		_, err := c.Read(b)
		if errors.Is(err, io.EOF) && i == keys {
			return nil
		}
		if err == nil {
			_, err = c.Write(b)
		}
		if err == nil && i%10 == 9 {
			_, err = c.Write([]byte{'\n'})
		}
		if err != nil {
			return fmt.Errorf("session: server after %d keys: %w", i, cause(ctx, err))
		}
	}
}

// cause explains err with the end of ctx, if that is what it came from.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
