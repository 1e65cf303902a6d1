package udx

import (
	"errors"
	"log/slog"
	"net/netip"
)

// ID names a stream at its receiver. Every value is valid.
type ID uint32

// Config is the configuration of a Mux. The zero value works.
type Config struct {
	Logger *slog.Logger // nil: discard
}

// Mux is the table of streams of one host.
type Mux struct{}

// NewMux returns a Mux without streams.
func NewMux(cfg Config) *Mux { return &Mux{} }

// Close resets all streams and waits for their goroutines.
func (m *Mux) Close() error { return nil }

// Receive handles one datagram.
func (m *Mux) Receive(s Socket, b []byte, from netip.AddrPort) bool { return false }

// NewStream registers a stream.
func (m *Mux) NewStream(cfg StreamConfig) (*Stream, error) { return nil, errors.ErrUnsupported }
