package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// maxPath is the longest path of a unix socket on every system we know, with room for the closing zero.
const maxPath = 103

// maxRequestBytes bounds the body of a request.
const maxRequestBytes = 1 << 20

// Listen opens the socket at path, mode 0660, and makes its folder if it is not there. A socket that a dead process
// left is replaced; one that answers is not: then the error is an [exit.Error] with [ErrRunning] as its cause.
func Listen(path string) (*net.UnixListener, error) {
	if len(path) > maxPath {
		return nil, exit.New(exit.Usage, "the socket's path has %d characters, systems allow %d: %s", len(path), maxPath, path).
			WithTry("--socket <a shorter path>")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, socketError(path, err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, exit.New(exit.Other, "%w, with the socket %s", ErrRunning, path).
			WithTry("omegatun down, or a second one beside it: --state <folder> --socket <path>")
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket != 0 {
			os.Remove(path) //nolint:errcheck // if it is still there, listening says why it must not be
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, socketError(path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil && runtime.GOOS != "windows" {
		l.Close()
		return nil, socketError(path, err)
	}
	return l, nil
}

// ErrRunning is the cause of Listen's error if somebody answers on the socket already.
var ErrRunning = errors.New("another omegatun is running")

func socketError(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return exit.New(exit.Permission, "may not make the control socket: %w", err).
			WithTry("sudo omegatun …, or --socket <a path of your own>")
	}
	return exit.New(exit.Other, "cannot make the control socket %s: %w", path, err).
		WithTry("--socket <another path>")
}

// Server answers on the socket. Make one with [Serve].
type Server struct {
	http   *http.Server
	socket *net.UnixListener
	done   chan struct{}
	cancel context.CancelFunc
	daemon Daemon
	log    *slog.Logger
}

// Serve starts answering on l with what d says. It owns l. log may be nil.
func Serve(l *net.UnixListener, d Daemon, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{socket: l, done: make(chan struct{}), cancel: cancel, daemon: d, log: log}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, checkCaller(c))
		},
	}
	go func() { // ends when Retire closes l
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("the control socket failed", "error", err)
		}
	}()
	return s
}

// Retire removes the socket, so that the next daemon can make its own. Calls that have begun go on.
func (s *Server) Retire() { s.socket.Close() }

// Close ends the server: streams are cut, other answers have up to a second to be read. It waits for them.
func (s *Server) Close() error {
	s.Retire()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, net.ErrClosed) { // by Retire
		err = nil
	}
	if err != nil {
		err = s.http.Close()
	}
	<-s.done
	return err
}

// callerKey is where a connection's context has the outcome of checkCaller: an error or nil.
type callerKey struct{}

// checkCaller returns why the process at the other end of c may not talk to us, nil if it may.
func checkCaller(c net.Conn) error {
	uid, gids, err := peerCredentials(c)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // the socket's mode must do
	}
	if err != nil {
		return exit.New(exit.Permission, "cannot tell who is calling: %w", err)
	}
	if mayControl(uid, gids, os.Geteuid(), os.Getegid()) {
		return nil
	}
	return exit.New(exit.Permission, "user %d may not control this omegatun: it belongs to user %d and group %d",
		uid, os.Geteuid(), os.Getegid()).WithTry("sudo omegatun …")
}

// mayControl reports whether a user with these groups may control an omegatun that runs as user me, group mine.
func mayControl(uid int, gids []int, me, mine int) bool {
	return uid == 0 || uid == me || slices.Contains(gids, mine)
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		status, err := s.daemon.Status(r.Context())
		if err != nil {
			s.fail(w, err)
			return
		}
		status.Schema = Schema
		s.answer(w, http.StatusOK, status)
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		lines := newStream(w)
		lines.end(s.daemon.Events(r.Context(), lines.event))
	})
	mux.HandleFunc("POST /v1/up", func(w http.ResponseWriter, r *http.Request) {
		var req struct{ Peers []key.Public }
		if err := decode(w, r, &req); err != nil {
			s.fail(w, err)
			return
		}
		lines := newStream(w)
		lines.end(s.daemon.Up(r.Context(), req.Peers, lines.event))
	})
	mux.HandleFunc("POST /v1/ping", func(w http.ResponseWriter, r *http.Request) {
		var req Ping
		if err := decode(w, r, &req); err != nil {
			s.fail(w, err)
			return
		}
		lines := newStream(w)
		lines.end(s.daemon.Ping(r.Context(), req, func(p Pong) error {
			p.Schema = Schema
			return lines.write(p)
		}))
	})
	mux.HandleFunc("POST /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		var req waitRequest
		if err := decode(w, r, &req); err != nil {
			s.fail(w, err)
			return
		}
		lines := newStream(w)
		a, err := s.daemon.Explain(r.Context(), req.Peer, time.Duration(req.TimeoutMS)*time.Millisecond, func(step Step) error {
			return lines.write(step)
		})
		if err == nil {
			err = lines.write(a)
		}
		lines.end(err)
	})
	mux.HandleFunc("POST /v1/wait", func(w http.ResponseWriter, r *http.Request) {
		var req waitRequest
		if err := decode(w, r, &req); err != nil {
			s.fail(w, err)
			return
		}
		ctx, cancel := r.Context(), func() {}
		if req.TimeoutMS > 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(req.TimeoutMS)*time.Millisecond)
		}
		defer cancel()
		s.finish(w, s.daemon.Wait(ctx, req.Peer))
	})
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		s.finish(w, s.daemon.Reload(r.Context()))
	})
	mux.HandleFunc("POST /v1/down", func(w http.ResponseWriter, r *http.Request) {
		s.log.Info("asked to go down")
		s.finish(w, s.daemon.Down(r.Context()))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, http.StatusNotFound, exit.New(exit.Other, "this omegatun does not know %s %s", r.Method, r.URL.Path).
			WithTry("the same version of omegatun on both ends: omegatun version"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err, _ := r.Context().Value(callerKey{}).(error); err != nil {
			s.answer(w, http.StatusForbidden, err)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// waitRequest is the body of /v1/wait and /v1/explain.
type waitRequest struct {
	Peer      key.Public `json:"peer"`
	TimeoutMS int64      `json:"timeout_ms"` // 0: none
}

// decode reads the body of r into v.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes)).Decode(v); err != nil {
		return exit.New(exit.Usage, "cannot read the request: %w", err)
	}
	return nil
}

// answer sends v as the whole answer.
func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("the caller has gone", "error", err)
	}
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	e := exit.From(err)
	if e.Code == exit.Usage {
		status = http.StatusBadRequest
	}
	s.answer(w, status, e)
}

// finish answers a request that has no answer but its end.
func (s *Server) finish(w http.ResponseWriter, err error) {
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, struct{}{})
}

// stream writes objects, one a line, each sent at once.
type stream struct {
	w     io.Writer
	flush func() error
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	st := &stream{w: w, flush: http.NewResponseController(w).Flush}
	st.flush() //nolint:errcheck // the first write tells
	return st
}

func (st *stream) write(v any) error {
	if err := json.NewEncoder(st.w).Encode(v); err != nil {
		return fmt.Errorf("control: the caller has gone: %w", err)
	}
	return st.flush()
}

func (st *stream) event(e Event) error {
	e.Schema = Schema
	return st.write(e)
}

// end writes err, if it is one, as the last line.
func (st *stream) end(err error) {
	if err != nil {
		st.write(exit.From(err)) //nolint:errcheck // nobody is left to tell
	}
}
