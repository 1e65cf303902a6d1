//go:build unix

package aeadtest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Fenced returns b at the end or the start of pages that lie between two that may not be touched.
func Fenced(t *testing.T, b []byte, atEnd bool) []byte {
	t.Helper()
	page := unix.Getpagesize()
	pages := len(b)/page + 1
	m, err := unix.Mmap(-1, 0, (pages+2)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	for _, fence := range [][]byte{m[:page], m[(pages+1)*page:]} {
		if err := unix.Mprotect(fence, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	in := m[page : (pages+1)*page]
	if atEnd {
		in = in[len(in)-len(b):]
	}
	copy(in, b)
	return in[:len(b):len(b)]
}
