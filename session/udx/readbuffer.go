package udx

import "sync"

const (
	blockSize      = 32 << 10
	smallBlockSize = 2 << 10 // the first of an idle buffer, so that quiet streams stay small
)

// blocks recycles the large blocks of readBuffers.
var blocks = sync.Pool{New: func() any { return new([blockSize]byte) }} //nolint:gochecknoglobals // a cache

// readBuffer is the queue of bytes received in order. It copies bytes into blocks as they come, and hands out whole
// blocks.
type readBuffer struct {
	queue [][]byte // the unread parts of blocks, none empty; all but the last are not added to
	len   int
}

// add appends a copy of b.
func (r *readBuffer) add(b []byte) {
	r.len += len(b)
	for len(b) > 0 {
		if len(r.queue) == 0 {
			r.queue = append(r.queue, r.block(len(b)))
		}
		last := &r.queue[len(r.queue)-1]
		n := copy((*last)[len(*last):cap(*last)], b)
		*last = (*last)[:len(*last)+n]
		if b = b[n:]; len(b) > 0 {
			r.queue = append(r.queue, r.block(len(b)))
		}
	}
}

func (r *readBuffer) block(n int) []byte {
	if len(r.queue) == 0 && n <= smallBlockSize {
		return make([]byte, 0, smallBlockSize)
	}
	return blocks.Get().(*[blockSize]byte)[:0]
}

// take removes the block at the front and returns its unread bytes, nil if the buffer is empty. The caller gives it to
// recycleBlock when it has read them.
func (r *readBuffer) take() []byte {
	if len(r.queue) == 0 {
		return nil
	}
	b := r.queue[0]
	r.queue[0] = nil
	r.queue = r.queue[1:]
	if len(r.queue) == 0 {
		r.queue = nil
	}
	r.len -= len(b)
	return b
}

// recycleBlock gives back a block that take returned. whole is its slice as returned.
func recycleBlock(whole []byte) {
	if cap(whole) == blockSize {
		blocks.Put((*[blockSize]byte)(whole[:blockSize]))
	}
}

// drop forgets everything.
func (r *readBuffer) drop() {
	for b := r.take(); b != nil; b = r.take() {
		recycleBlock(b)
	}
}
