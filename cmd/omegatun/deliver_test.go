package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"omegatun/cmd/omegatun/internal/exit"
)

// TestNothingIsLostAtTheEnd sends much both ways between commands that end as soon as they have read and written all.
func TestNothingIsLostAtTheEnd(t *testing.T) {
	bootstrap := "--bootstrap=" + network(t)
	server, key := newIdentity(t)
	client, _ := newIdentity(t)
	there, back := make([]byte, 8<<20), make([]byte, 20<<20)
	rand.Read(there)
	rand.Read(back)

	served := make(chan []byte, 1)
	ready := newLines()
	status := make(chan int, 1)
	go func() {
		var out bytes.Buffer
		status <- run(t.Context(), []string{"--state", server, bootstrap, "listen", "--allow", "any", "--once"},
			bytes.NewReader(back), &out, ready.pipe)
		served <- out.Bytes()
	}()
	ready.want(t, "listening "+key)
	got, stdout, stderr := output(t, bytes.NewReader(there), "--state", client, bootstrap, "connect", key)
	if got != 0 || stderr != "" {
		t.Errorf("connect: exit status %d, %q", got, stderr)
	}
	if !bytes.Equal(stdout, back) {
		t.Errorf("connect: %d bytes arrived, want the %d that listen sent", len(stdout), len(back))
	}
	if got := <-status; got != 0 {
		t.Errorf("listen: exit status %d", got)
	}
	if out := <-served; !bytes.Equal(out, there) {
		t.Errorf("listen: %d bytes arrived, want the %d that connect sent", len(out), len(there))
	}
}

// Where stdout takes nothing, as on a full disk, the other side learns that its data was not delivered.
func TestFullDiskIsNoEnd(t *testing.T) {
	bootstrap := "--bootstrap=" + network(t)
	server, key := newIdentity(t)
	client, _ := newIdentity(t)
	full := writerFunc(func([]byte) (int, error) {
		return 0, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: errors.New("no space left on device")}
	})
	stdin, keyboard := io.Pipe() // which nobody touches
	defer keyboard.Close()
	ready := newLines()
	status := make(chan int, 1)
	go func() {
		status <- run(t.Context(), []string{"--state", server, bootstrap, "listen", "--allow", "any", "--once"}, stdin, full, ready.pipe)
	}()
	ready.want(t, "listening "+key)
	if got, _, talk := output(t, strings.NewReader("hello\n"), "--state", client, bootstrap, "connect", key); got != int(exit.Refused) {
		t.Errorf("connect: exit status %d, want %d\n%s", got, exit.Refused, talk)
	}
	if got := <-status; got != int(exit.Other) {
		t.Errorf("listen: exit status %d, want %d", got, exit.Other)
	}
}
