package main

import (
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/cmd/omegatun/internal/exit"
)

// terminal returns a terminal, and what types on it.
func terminal(t *testing.T) (tty, keyboard *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminal to be had:", err)
	}
	t.Cleanup(func() { keyboard.Close() })
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminal to be had:", err)
	}
	t.Cleanup(func() { tty.Close() })
	return tty, keyboard
}

// Ctrl-C is how a person leaves a conversation: it ends as it should.
func TestPersonLeavesProperly(t *testing.T) {
	t.Parallel()
	bootstrap, key, got, _ := served(t)
	state, _ := newIdentity(t)
	tty, keyboard := terminal(t)
	c := start(t, tty, "--state", state, bootstrap, "connect", key)
	if _, err := io.WriteString(keyboard, "hello\n"); err != nil {
		t.Fatal(err)
	}
	c.stdout.want(t, "hello")
	c.stop()
	if status := <-c.done; status != int(exit.Interrupted) {
		t.Errorf("connect: exit status %d, want %d", status, exit.Interrupted)
	}
	select {
	case err := <-got:
		if err != nil {
			t.Errorf("the server got %v, want the end", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the server has got nothing after a minute, want the end")
	}
}
