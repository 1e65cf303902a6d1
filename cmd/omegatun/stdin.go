package main

import (
	"context"
	"errors"
	"io"
	"sync"
)

// sharedReader hands what it reads to one writer after the other, and loses nothing between them.
type sharedReader struct {
	chunks chan []byte // unbuffered; closed at the end
	err    error       // why it ended, nil for io.EOF; set before chunks is closed

	mu   sync.Mutex
	left []byte // of a chunk that was taken but not written
}

// shareReader starts reading r. Its goroutine ends with r, or when ctx ends at the next read.
func shareReader(ctx context.Context, r io.Reader) *sharedReader {
	s := &sharedReader{chunks: make(chan []byte)}
	go func() {
		defer close(s.chunks)
		for {
			b := make([]byte, 32<<10)
			n, err := r.Read(b)
			if n > 0 {
				select {
				case s.chunks <- b[:n]:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					s.err = err
				}
				return
			}
		}
	}()
	return s
}

// copyTo writes to w until all has been read, for which it returns nil, or ctx ends. What w did not take is for the next
// writer.
func (s *sharedReader) copyTo(ctx context.Context, w io.Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if len(s.left) == 0 {
			select {
			case b, ok := <-s.chunks:
				if !ok {
					return s.err
				}
				s.left = b
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		n, err := w.Write(s.left)
		s.left = s.left[n:]
		if err != nil {
			return err
		}
	}
}
