//go:build unix

package widechacha

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNothingOutsideTheBuffersIsTouched(t *testing.T) {
	r := rand.NewChaCha8([32]byte{4})
	ours, reference := pair(t, random(r, KeySize))
	nonce, additional := random(r, NonceSize), random(r, 100)
	page := unix.Getpagesize()
	// fenced returns b at the end or the start of pages that lie between two that may not be touched.
	fenced := func(b []byte, atEnd bool) []byte {
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
	for _, atEnd := range []bool{false, true} {
		nonce := fenced(nonce, atEnd)
		for i, n := range []int{0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 300, 511, 512, 900, 960, 961, 1424, 1984, 1985, 2048, 9152, 20000} {
			additional := fenced(additional[:[]int{0, 1, 16, 100}[i%4]], atEnd)
			plain := random(r, n)
			sealed := reference.Seal(nil, nonce, plain, additional)
			room := fenced(make([]byte, n+TagSize), atEnd)
			if got := ours.Seal(room[:0], nonce, fenced(plain, atEnd), additional); !bytes.Equal(got, sealed) {
				t.Errorf("%d bytes sealed: %x, want %x", n, got, sealed)
			}
			got, err := ours.Open(fenced(make([]byte, n), atEnd)[:0], nonce, fenced(sealed, atEnd), additional)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes opened: %x, %v", n, got, err)
			}
		}
	}
}
