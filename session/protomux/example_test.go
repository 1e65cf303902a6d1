package protomux_test

import (
	"context"
	"errors"
	"fmt"
	"io"

	"omegatun/session/protomux"
)

// conn is a stream of messages within the program.
type conn struct {
	in  <-chan []byte
	out chan<- []byte
	end chan struct{}
}

func (c conn) ReadMessage() ([]byte, error) {
	select {
	case b := <-c.in:
		return b, nil
	case <-c.end:
		return nil, io.EOF
	}
}

func (c conn) WriteMessage(b []byte) error { c.out <- b; return nil }
func (c conn) Close() error                { return nil }

func Example() {
	ctx := context.Background()
	ab, ba, end := make(chan []byte, 10), make(chan []byte, 10), make(chan struct{})
	client := protomux.New(conn{ba, ab, end}, protomux.Config{})
	server := protomux.New(conn{ab, ba, end}, protomux.Config{Protocols: []string{"greeting"}})

	go func() {
		offer, err := server.Accept(ctx, "greeting")
		if err != nil {
			return
		}
		c, err := offer.Accept(nil)
		if err != nil {
			return
		}
		defer c.Close()
		_, name, err := c.Receive(ctx)
		if err == nil {
			_ = c.Send(ctx, 0, append([]byte("hello, "), name...))
		}
	}()

	c, err := client.Open("greeting", nil, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	_ = c.Send(ctx, 0, []byte("world")) // an error would show in Receive
	_, reply, err := c.Receive(ctx)
	fmt.Println(string(reply), err)
	_, _, err = c.Receive(ctx)
	fmt.Println(errors.Is(err, io.EOF))
	close(end)
	<-client.Done()
	<-server.Done()
	// Output:
	// hello, world <nil>
	// true
}
