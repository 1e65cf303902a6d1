package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// Client talks to the daemon behind a socket. Methods return [exit.Error]s: NoDaemon if nothing answers, Permission
// if it may not be asked, and else what the daemon says. It is safe for concurrent use.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the socket at path. It does not connect yet.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// Status asks what the daemon is doing.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	if err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Events calls do for what happened so far that still holds, and then for what happens, until the daemon stops, ctx
// ends or do returns an error.
func (c *Client) Events(ctx context.Context, do func(Event) error) error {
	return decodeEach(c.lines(ctx, http.MethodGet, "/v1/events", nil), do)
}

// Up has the daemon admit and dial peers, and calls do for the outcome of each.
func (c *Client) Up(ctx context.Context, peers []key.Public, do func(Event) error) error {
	return decodeEach(c.lines(ctx, http.MethodPost, "/v1/up", map[string]any{"peers": peers}), do)
}

// Ping has the daemon measure the way to a peer, and calls do for each answer and each lack of one.
func (c *Client) Ping(ctx context.Context, ping Ping, do func(Pong) error) error {
	return decodeEach(c.lines(ctx, http.MethodPost, "/v1/ping", ping), do)
}

// Explain has the daemon connect to a peer, and calls do for each step. It returns what came of it.
func (c *Client) Explain(ctx context.Context, peer key.Public, timeout time.Duration, do func(Step) error) (*Attempt, error) {
	var attempt *Attempt
	lines := c.lines(ctx, http.MethodPost, "/v1/explain", waitRequest{Peer: peer, TimeoutMS: timeout.Milliseconds()})
	err := lines(func(line json.RawMessage) error {
		var step Step
		if err := json.Unmarshal(line, &step); err != nil {
			return err
		}
		if step.Event == "step" {
			return do(step)
		}
		attempt = new(Attempt)
		return json.Unmarshal(line, attempt)
	})
	if err == nil && attempt == nil {
		err = c.cut()
	}
	return attempt, err
}

// Wait returns when the daemon has a way to the peer; for the zero key, when its peers can find it. After timeout the
// error says why it has not; 0: never.
func (c *Client) Wait(ctx context.Context, peer key.Public, timeout time.Duration) error {
	return c.call(ctx, http.MethodPost, "/v1/wait", waitRequest{Peer: peer, TimeoutMS: timeout.Milliseconds()}, nil)
}

// Reload has the daemon read its configuration again.
func (c *Client) Reload(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/reload", nil, nil)
}

// Down stops the daemon, and returns when everything it did to the host is undone.
func (c *Client) Down(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/down", nil, nil)
}

// do sends a request and returns the answer, or the error that the answer is.
func (c *Client) do(ctx context.Context, method, url string, body any) (*http.Response, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://omegatun"+url, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, fs.ErrPermission):
		return nil, exit.New(exit.Permission, "may not talk to the omegatun behind %s: permission denied", c.path).
			WithTry("sudo omegatun …")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, exit.New(exit.NoDaemon, "no omegatun is running here: nothing answers on %s", c.path).
			WithTry("start one: sudo omegatun up <key>\nor, if it runs with another --state or --socket, name it here too")
	case err != nil:
		return nil, exit.New(exit.NoDaemon, "the omegatun behind %s does not answer: %w", c.path, err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		var e exit.Error
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxRequestBytes)).Decode(&e); err != nil {
			return nil, exit.New(exit.Other, "the omegatun behind %s says %s", c.path, resp.Status)
		}
		return nil, &e
	}
	return resp, nil
}

// call sends a request and decodes the answer into v, unless that is nil.
func (c *Client) call(ctx context.Context, method, url string, body, v any) error {
	resp, err := c.do(ctx, method, url, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if v == nil {
		v = new(struct{})
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return c.cut()
	}
	return nil
}

// cut is the error for an answer that ended too early.
func (c *Client) cut() error {
	return exit.New(exit.NoDaemon, "the omegatun behind %s went away before it had answered", c.path)
}

// lines returns an iterator over the lines of the answer, which returns the error that is the last line.
func (c *Client) lines(ctx context.Context, method, url string, body any) func(do func(json.RawMessage) error) error {
	return func(do func(json.RawMessage) error) error {
		resp, err := c.do(ctx, method, url, body)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		for dec := json.NewDecoder(resp.Body); ; {
			var line json.RawMessage
			switch err := dec.Decode(&line); {
			case errors.Is(err, io.EOF):
				return nil
			case ctx.Err() != nil && err != nil:
				return context.Cause(ctx)
			case err != nil:
				return c.cut()
			}
			var e exit.Error
			if json.Unmarshal(line, &e) == nil {
				return &e
			}
			if err := do(line); err != nil {
				return err
			}
		}
	}
}

// decodeEach decodes lines into T and calls do for each.
func decodeEach[T any](lines func(func(json.RawMessage) error) error, do func(T) error) error {
	return lines(func(line json.RawMessage) error {
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return err
		}
		return do(v)
	})
}
