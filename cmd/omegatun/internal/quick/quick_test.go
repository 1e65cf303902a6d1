package quick

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// data returns n bytes that do not repeat.
func data(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

// pipe returns both ends of a pipe, which end with the test.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

func TestFilesAreReadFromWhereTheyStand(t *testing.T) {
	all := data(300_000)
	for _, row := range []struct{ name, folder string }{
		{"on disk", t.TempDir()},
		{"in memory", "/dev/shm"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := os.Stat(row.folder); err != nil {
				t.Skip("this system has no folder in memory")
			}
			f, err := os.CreateTemp(row.folder, "quick")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				f.Close()
				os.Remove(f.Name())
			})
			if _, err := f.Write(all); err != nil {
				t.Fatal(err)
			}
			const from = 1000
			if _, err := f.Seek(from, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(NewReader(f))
			if err != nil || !bytes.Equal(got, all[from:]) {
				t.Errorf("read %d bytes, %v; want the %d from %d on", len(got), err, len(all)-from, from)
			}
			if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != int64(len(all)) {
				t.Errorf("the file stands at %d, %v; want its end at %d", at, err, len(all))
			}
		})
	}
}

func TestFilesAreWrittenToWhereTheyStand(t *testing.T) {
	all := data(300_000)
	name := filepath.Join(t.TempDir(), "f")
	for _, row := range []struct {
		name string
		flag int
		want []byte
	}{
		{"anew", os.O_TRUNC, all},
		{"at the end", os.O_APPEND, append([]byte("before"), all...)},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := os.WriteFile(name, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(name, os.O_WRONLY|row.flag, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w := NewWriter(f)
			for b := all; len(b) > 0; {
				n := min(len(b), 70_000)
				if m, err := w.Write(b[:n]); m != n || err != nil {
					t.Fatalf("Write: %d, %v; want %d", m, err, n)
				}
				b = b[n:]
			}
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, row.want) {
				t.Errorf("the file has %d bytes, %v; want %d", len(got), err, len(row.want))
			}
		})
	}
}

// TestPipesCarryMoreThanTheyHold has both ends wait for each other many times.
func TestPipesCarryMoreThanTheyHold(t *testing.T) {
	r, w := pipe(t)
	all := data(1 << 20)
	wrote := make(chan error, 1)
	go func() {
		out := NewWriter(w)
		for b := all; len(b) > 0; {
			n := min(len(b), 100_000)
			if m, err := out.Write(b[:n]); m != n || err != nil {
				wrote <- errors.Join(err, io.ErrShortWrite)
				return
			}
			b = b[n:]
		}
		wrote <- w.Close()
	}()
	got, err := io.ReadAll(NewReader(r))
	if e := <-wrote; err != nil || e != nil || !bytes.Equal(got, all) {
		t.Errorf("read %d bytes, %v; wrote with %v; want %d", len(got), err, e, len(all))
	}
}

func TestErrorsAreThoseOfTheFile(t *testing.T) {
	r, w := pipe(t)
	r.Close()
	if n, err := NewWriter(w).Write(make([]byte, 10)); n != 0 || err == nil {
		t.Errorf("Write to a pipe that nobody reads: %d, %v; want an error", n, err)
	} else if _, ok := errors.AsType[*fs.PathError](err); !ok {
		t.Errorf("Write: %T, want a PathError", err)
	}
	for _, err := range []error{
		func() error { _, err := NewReader(r).Read(make([]byte, 1)); return err }(),
		func() error { _, err := NewReader(w).Read(make([]byte, 1)); return err }(),
	} {
		if _, ok := errors.AsType[*fs.PathError](err); !ok {
			t.Errorf("Read: %v, want a PathError", err)
		}
	}
	if n, err := NewReader(w).Read(nil); n != 0 || err != nil {
		t.Errorf("Read of nothing: %d, %v", n, err)
	}
}

func TestWhatIsNoFileStaysAsItIs(t *testing.T) {
	var b bytes.Buffer
	if NewReader(&b) != io.Reader(&b) || NewWriter(&b) != io.Writer(&b) {
		t.Error("a buffer was wrapped")
	}
	var none *os.File
	if n, err := NewReader(none).Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("Read of no file: %d, %v; want an error", n, err)
	}
}

// connPair returns both ends of a TCP connection, one of them as a Conn.
func connPair(t *testing.T) (c *Conn, peer *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return NewConn(a.(*net.TCPConn)), b.(*net.TCPConn)
}

// TestConnectionsCarryMoreThanTheyHold has both ends wait for each other many times, in both directions at once.
func TestConnectionsCarryMoreThanTheyHold(t *testing.T) {
	c, peer := connPair(t)
	all := data(16 << 20)
	echoed := make(chan error, 1)
	go func() {
		_, err := io.Copy(peer, struct{ io.Reader }{peer})
		echoed <- errors.Join(err, peer.CloseWrite())
	}()
	wrote := make(chan error, 1)
	go func() {
		n, err := io.Copy(c, struct{ io.Reader }{bytes.NewReader(all)})
		if err == nil && n != int64(len(all)) {
			err = io.ErrShortWrite
		}
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	var got bytes.Buffer
	n, err := io.Copy(&got, c)
	if e := errors.Join(<-wrote, <-echoed); err != nil || e != nil || n != int64(len(all)) || !bytes.Equal(got.Bytes(), all) {
		t.Errorf("%d bytes came back, %v; sent with %v; want %d", n, err, e, len(all))
	}
}

func TestConnectionsEndAsThoseOfTheNetPackage(t *testing.T) {
	wantOp := func(t *testing.T, what string, err, want error) {
		t.Helper()
		e, ok := errors.AsType[*net.OpError](err)
		if !ok || e.Addr == nil || e.Source == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want a net.OpError of %v", what, err, want)
		}
	}
	b := make([]byte, 100)
	t.Run("deadline", func(t *testing.T) {
		c, _ := connPair(t)
		c.SetReadDeadline(time.Unix(1, 0))
		_, err := c.Read(b)
		wantOp(t, "Read", err, os.ErrDeadlineExceeded)
		c.SetWriteDeadline(time.Unix(1, 0))
		_, err = c.Write(b)
		wantOp(t, "Write", err, os.ErrDeadlineExceeded)
		c.SetWriteDeadline(time.Time{})
		if n, err := c.Write(b); n != len(b) || err != nil {
			t.Errorf("Write after the deadline was taken away: %d, %v", n, err)
		}
	})
	t.Run("closed while it waits", func(t *testing.T) {
		c, _ := connPair(t)
		done := make(chan error, 1)
		go func() {
			_, err := c.Read(b)
			done <- err
		}()
		c.Close()
		wantOp(t, "Read", <-done, net.ErrClosed)
		_, err := c.Write(b)
		wantOp(t, "Write", err, net.ErrClosed)
	})
	t.Run("reset", func(t *testing.T) {
		c, peer := connPair(t)
		NewConn(peer).Reset(nil)
		_, err := c.Read(b)
		wantOp(t, "Read", err, nil)
		if errors.Is(err, io.EOF) {
			t.Error("a reset looks like the end")
		}
		for range 2 { // one that finds out, and one more
			_, err = c.Write(b)
		}
		wantOp(t, "Write", err, nil)
	})
	t.Run("end", func(t *testing.T) {
		c, peer := connPair(t)
		if _, err := peer.Write([]byte("last")); err != nil {
			t.Fatal(err)
		}
		peer.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "last" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if n, err := c.Read(nil); n != 0 || err != nil {
			t.Errorf("Read of nothing: %d, %v", n, err)
		}
	})
}
