package udx

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// StreamConfig is the configuration of one stream. The zero value works.
type StreamConfig struct {
	ID         ID
	Accept     func(s Socket, from netip.AddrPort) bool
	OnMessage  func(b []byte)
	ReadBuffer int
}

// Stream is one stream. It implements net.Conn.
type Stream struct{}

var _ net.Conn = (*Stream)(nil)

func (s *Stream) ID() ID { return 0 }
func (s *Stream) Connect(sock Socket, remote netip.AddrPort, remoteID ID) error {
	return errors.ErrUnsupported
}
func (s *Stream) ChangeRemote(sock Socket, remote netip.AddrPort, remoteID ID) error {
	return errors.ErrUnsupported
}
func (s *Stream) Read(b []byte) (int, error)         { return 0, errors.ErrUnsupported }
func (s *Stream) Write(b []byte) (int, error)        { return 0, errors.ErrUnsupported }
func (s *Stream) CloseWrite() error                  { return errors.ErrUnsupported }
func (s *Stream) Close() error                       { return errors.ErrUnsupported }
func (s *Stream) Reset(err error)                    {}
func (s *Stream) SendMessage(b []byte) error         { return errors.ErrUnsupported }
func (s *Stream) Heartbeat() error                   { return errors.ErrUnsupported }
func (s *Stream) LocalAddr() net.Addr                { return nil }
func (s *Stream) RemoteAddr() net.Addr               { return nil }
func (s *Stream) SetDeadline(t time.Time) error      { return errors.ErrUnsupported }
func (s *Stream) SetReadDeadline(t time.Time) error  { return errors.ErrUnsupported }
func (s *Stream) SetWriteDeadline(t time.Time) error { return errors.ErrUnsupported }
func (s *Stream) Done() <-chan struct{}              { return nil }
func (s *Stream) Err() error                         { return nil }
func (s *Stream) Stats() Stats                       { return Stats{} }

// Stats are the counters and estimates of a stream.
type Stats struct{}
