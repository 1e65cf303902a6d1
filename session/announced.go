package session

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// Bounds of what a peer may announce.
const (
	maxAnnounced  = 8 << 10 // bytes of a message
	maxText       = 64      // bytes of a name or version
	maxVirtual    = 16
	maxEndpoints  = 24
	maxRelayNames = 16
)

// EndpointKind says how an endpoint came about.
type EndpointKind uint8

// The kinds of endpoint. Others may be received.
const (
	EndpointLocal  EndpointKind = 0 // an address of one of the machine's interfaces
	EndpointPublic EndpointKind = 1 // what others see its datagrams come from
	EndpointMapped EndpointKind = 2 // a port that the router forwards
)

// Endpoint is an address at which a machine may be reached.
type Endpoint struct {
	Kind EndpointKind
	Addr netip.AddrPort // unmapped
}

// Announced is what one side of a tunnel tells the other about itself. It is authentic, and no more than that: it may be shown, but
// configures nothing. Endpoints are probed before they are used, with datagrams that only the peer can answer.
type Announced struct {
	Version   string       // of the program, for people; printable, at most 64 bytes
	Name      string       // that its owner gave it; as above
	Addresses []netip.Addr // virtual ones, at most 16
	MTU       int          // of its tunnel device in bytes; 0: not said
	Endpoints []Endpoint   // at most 24
	Relays    []key.Public // that it can use, at most 16
	Relaying  bool         // it relays for the receiver
}

// The fields of an announcement: uint tag, buffer value. In a hello all that are not empty; in a change those that changed. Tags that
// are not known are ignored.
const (
	tagVersion   = 1 // text
	tagName      = 2 // text
	tagAddresses = 3 // each: u8 family 4 or 6, octets
	tagMTU       = 4 // uint
	tagEndpoints = 5 // each: u8 kind, u8 family, octets, u16 port
	tagRelays    = 6 // each: public key 32
	tagFlags     = 7 // uint: 1 relays for the receiver

	flagRelaying = 1
)

var errAnnounced = errors.New("session: malformed announcement")

// field returns the value of one field.
func (a *Announced) field(tag uint64) (b []byte) {
	switch tag {
	case tagVersion:
		return []byte(cleanText(a.Version))
	case tagName:
		return []byte(cleanText(a.Name))
	case tagAddresses:
		for _, v := range a.Addresses[:min(len(a.Addresses), maxVirtual)] {
			b = appendIP(b, v)
		}
	case tagMTU:
		if a.MTU > 0 {
			b = compact.AppendUint(b, uint64(a.MTU))
		}
	case tagEndpoints:
		for _, e := range a.Endpoints[:min(len(a.Endpoints), maxEndpoints)] {
			b = appendIP(append(b, byte(e.Kind)), e.Addr.Addr())
			b = compact.AppendUint16(b, e.Addr.Port())
		}
	case tagRelays:
		for _, r := range a.Relays[:min(len(a.Relays), maxRelayNames)] {
			b = append(b, r[:]...)
		}
	case tagFlags:
		if a.Relaying {
			b = compact.AppendUint(b, flagRelaying)
		}
	}
	return b
}

// append appends those fields that differ from old. All fields have to be valid.
func (a *Announced) append(b []byte, old *Announced) []byte {
	for tag := uint64(tagVersion); tag <= tagFlags; tag++ {
		v := a.field(tag)
		if string(v) != string(old.field(tag)) {
			b = compact.AppendUint(b, tag)
			b = compact.AppendBuffer(b, v)
		}
	}
	return b
}

// update sets the fields that b holds. a is as it was if there is an error.
func (a *Announced) update(b []byte) error {
	if len(b) > maxAnnounced {
		return fmt.Errorf("%w: %d bytes", errAnnounced, len(b))
	}
	next := *a
	r := compact.NewReader(b)
	for r.Len() > 0 && r.Err() == nil {
		tag := r.Uint()
		v := compact.NewReader(r.Buffer())
		if r.Err() == nil {
			next.set(tag, &v)
		}
		if err := v.Err(); err != nil {
			r.Fail(fmt.Errorf("field %d: %w", tag, err))
		}
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("%w: %w", errAnnounced, err)
	}
	*a = next
	return nil
}

func (a *Announced) set(tag uint64, r *compact.Reader) {
	switch tag {
	case tagVersion:
		a.Version = cleanText(string(r.Rest()))
	case tagName:
		a.Name = cleanText(string(r.Rest()))
	case tagAddresses:
		a.Addresses = readList(r, maxVirtual, readIP)
	case tagMTU:
		a.MTU = 0
		if r.Len() > 0 {
			mtu := r.Uint()
			if mtu > 65535 {
				r.Fail(compact.ErrRange)
			}
			a.MTU = int(mtu)
		}
	case tagEndpoints:
		a.Endpoints = readList(r, maxEndpoints, func(r *compact.Reader) Endpoint {
			return Endpoint{EndpointKind(r.Uint8()), netip.AddrPortFrom(readIP(r), r.Uint16())}
		})
	case tagRelays:
		a.Relays = readList(r, maxRelayNames, func(r *compact.Reader) key.Public { return r.Fixed32() })
	case tagFlags:
		a.Relaying = false
		if r.Len() > 0 {
			a.Relaying = r.Uint()&flagRelaying != 0
		}
	}
}

// readList reads elements until r is empty. More than limit are an error.
func readList[T any](r *compact.Reader, limit int, read func(*compact.Reader) T) (list []T) {
	for r.Len() > 0 && r.Err() == nil {
		if len(list) == limit {
			r.Fail(compact.ErrRange)
			return nil
		}
		list = append(list, read(r))
	}
	return list
}

func appendIP(b []byte, a netip.Addr) []byte {
	family := byte(6)
	if a = a.Unmap(); a.Is4() {
		family = 4
	}
	return append(append(b, family), a.AsSlice()...)
}

func readIP(r *compact.Reader) netip.Addr {
	var n int
	switch family := r.Uint8(); family {
	case 4:
		n = 4
	case 6:
		n = 16
	default:
		r.Fail(fmt.Errorf("address family %d", family))
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(r.Bytes(n))
	return a.Unmap()
}

// cleanText makes a peer's text fit for a terminal: what is not printable is replaced, and what is too long is cut off.
func cleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func (a Announced) clone() Announced {
	a.Addresses = slices.Clone(a.Addresses)
	a.Endpoints = slices.Clone(a.Endpoints)
	a.Relays = slices.Clone(a.Relays)
	return a
}

// Announce sets what connected peers are told about this machine: Version, Name, Addresses and MTU are the caller's, the rest is
// the Host's own. Peers that are connected are told of changes.
func (h *Host) Announce(a Announced) {
	h.mu.Lock()
	h.announced = a.clone()
	h.mu.Unlock()
	h.announceChanges()
}

// announcement returns what the peer of a link is told.
func (h *Host) announcement() Announced {
	h.mu.Lock()
	a := h.announced.clone()
	a.Relays = slices.Clone(h.through)
	h.mu.Unlock()
	a.Endpoints = nil
	for _, e := range h.localAddresses() {
		a.Endpoints = append(a.Endpoints, Endpoint{EndpointLocal, e})
	}
	for _, e := range h.localAddresses6() {
		a.Endpoints = append(a.Endpoints, Endpoint{EndpointLocal, e})
	}
	if e, ok := h.Mapped(); ok {
		a.Endpoints = append(a.Endpoints, Endpoint{EndpointMapped, e})
	}
	if info := h.node.Info(); info.Host.IsValid() && info.Port != 0 {
		a.Endpoints = append(a.Endpoints, Endpoint{EndpointPublic, netip.AddrPortFrom(info.Host, info.Port)})
	}
	a.Relaying = h.relayServer.Load() != nil
	return a
}

// announceChanges tells connected peers what is new.
func (h *Host) announceChanges() {
	a := h.announcement()
	h.eachLink(func(l *link) {
		if c := l.control.Load(); c != nil {
			c.announce(a)
		}
	})
}
