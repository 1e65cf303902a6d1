package dht

import (
	"net/netip"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// relayMode says which leg of its journey a relayed message is on.
//
//	client ──fromClient──▶ relay ──fromRelay──▶ server ──fromServer──▶ relay ──toClient──▶ client
//	client ──fromClient──▶ first ──fromRelay──▶ second ──fromSecondRelay──▶ server ──fromServer──▶ first ──toClient──▶ client
//
// All legs but the last are requests, with the client's tid; only the client repeats them.
type relayMode uint64

const (
	fromClient relayMode = iota
	fromServer
	fromRelay
	fromSecondRelay
	toClient
)

// handshakeMessage is the value of a PEER_HANDSHAKE.
//
//	flags uint | mode uint | noise buffer | peer addr (1) | relay addr (2)
type handshakeMessage struct {
	mode  relayMode
	noise []byte
	peer  netip.AddrPort // the client; in a reply the server. Invalid: absent
	relay netip.AddrPort // the relay to answer, or to go through. Invalid: absent
}

func (m handshakeMessage) encode() []byte { return m.append(nil) }

func (m handshakeMessage) append(b []byte) []byte {
	b = append(b, addrFlags(m.peer, m.relay))
	b = compact.AppendUint(b, uint64(m.mode))
	b = compact.AppendBuffer(b, m.noise)
	return appendPresent(b, m.peer, m.relay)
}

// parseHandshake parses a handshakeMessage. Its noise aliases b.
func parseHandshake(b []byte) (handshakeMessage, error) {
	r := compact.NewReader(b)
	flags := r.Uint()
	m := handshakeMessage{mode: relayMode(r.Uint()), noise: r.Buffer()}
	if flags&1 != 0 {
		m.peer = r.Addr()
	}
	if flags&2 != 0 {
		m.relay = r.Addr()
	}
	if err := r.Err(); err != nil {
		return handshakeMessage{}, wrapParse("handshake", err)
	}
	return m, nil
}

// holepunchMessage is the value of a PEER_HOLEPUNCH.
//
//	flags uint | mode uint | id uint | payload buffer | peer addr (1)
type holepunchMessage struct {
	mode    relayMode
	id      uint64 // the server's number for the handshake; 0 in answers
	payload []byte
	peer    netip.AddrPort // whom to forward to; then who asked; in a reply the server. Invalid: absent
}

func (m holepunchMessage) encode() []byte { return m.append(nil) }

func (m holepunchMessage) append(b []byte) []byte {
	b = append(b, addrFlags(m.peer))
	b = compact.AppendUint(b, uint64(m.mode))
	b = compact.AppendUint(b, m.id)
	b = compact.AppendBuffer(b, m.payload)
	return appendPresent(b, m.peer)
}

// parseHolepunch parses a holepunchMessage. Its payload aliases b.
func parseHolepunch(b []byte) (holepunchMessage, error) {
	r := compact.NewReader(b)
	flags := r.Uint()
	m := holepunchMessage{mode: relayMode(r.Uint()), id: r.Uint(), payload: r.Buffer()}
	if flags&1 != 0 {
		m.peer = r.Addr()
	}
	if err := r.Err(); err != nil {
		return holepunchMessage{}, wrapParse("holepunch", err)
	}
	return m, nil
}

// addrFlags has bit i set if the i-th address is present.
func addrFlags(addrs ...netip.AddrPort) (flags byte) {
	for i, a := range addrs {
		if a.IsValid() {
			flags |= 1 << i
		}
	}
	return flags
}

// appendPresent appends those addresses that are present.
func appendPresent(b []byte, addrs ...netip.AddrPort) []byte {
	for _, a := range addrs {
		if a.IsValid() {
			b = compact.AppendAddr(b, a)
		}
	}
	return b
}

// announceMessage is the value of an ANNOUNCE and of an UNANNOUNCE.
//
//	flags uint | peer record (1) | refresh 32 (2) | signature 64 (4) | bump uint (8)
type announceMessage struct {
	peer      optional[Record]
	refresh   optional[[32]byte] // lets whoever knows its preimage renew the record without a signature
	signature optional[[64]byte]
	bump      uint64 // ms since 1970: tells readers that something behind the topic changed
}

func (m *announceMessage) encode() []byte {
	flags := byte(0)
	for i, set := range []bool{m.peer.set, m.refresh.set, m.signature.set, m.bump != 0} {
		if set {
			flags |= 1 << i
		}
	}
	b := []byte{flags}
	if m.peer.set {
		b = m.peer.v.Append(b)
	}
	if m.refresh.set {
		b = append(b, m.refresh.v[:]...)
	}
	if m.signature.set {
		b = append(b, m.signature.v[:]...)
	}
	if m.bump != 0 {
		b = compact.AppendUint(b, m.bump)
	}
	return b
}

// parseAnnounce parses an announceMessage; the result does not alias b.
func parseAnnounce(b []byte) (m announceMessage, err error) {
	r := compact.NewReader(b)
	flags := r.Uint()
	if flags&1 != 0 {
		m.peer = some(readRecord(&r))
	}
	if flags&2 != 0 {
		m.refresh = some(r.Fixed32())
	}
	if flags&4 != 0 {
		m.signature = some(r.Fixed64())
	}
	if flags&8 != 0 {
		m.bump = r.Uint()
	}
	if err := r.Err(); err != nil {
		return announceMessage{}, wrapParse("announce", err)
	}
	return m, nil
}

// lookupReply is the value of the answer to a LOOKUP.
//
//	count uint | that many records | bump uint (may be missing: 0)
type lookupReply struct {
	peers []Record
	bump  uint64
}

// minRecordSize is the length of a record without relays.
const minRecordSize = 32 + 1

// parseLookupReply parses a lookupReply; the result does not alias b.
func parseLookupReply(b []byte) (m lookupReply, err error) {
	r := compact.NewReader(b)
	if n := r.Count(minRecordSize); n > 0 {
		m.peers = make([]Record, n)
		for i := range m.peers {
			m.peers[i] = readRecord(&r)
		}
	}
	if r.Err() == nil && r.Len() > 0 {
		m.bump = r.Uint()
	}
	if err := r.Err(); err != nil {
		return lookupReply{}, wrapParse("lookup reply", err)
	}
	return m, nil
}

// mutableRecord is a signed value that its owner may replace: the value of the answer to a MUTABLE_GET.
//
//	seq uint | value buffer | signature 64
type mutableRecord struct {
	seq       uint64
	value     []byte
	signature [64]byte
}

func (m *mutableRecord) append(b []byte) []byte {
	return append(appendSignable(b, m.seq, m.value), m.signature[:]...)
}

func readMutable(r *compact.Reader) mutableRecord {
	return mutableRecord{seq: r.Uint(), value: r.Buffer(), signature: r.Fixed64()}
}

// parseMutable parses a mutableRecord. Its value aliases b.
func parseMutable(b []byte) (mutableRecord, error) {
	r := compact.NewReader(b)
	m := readMutable(&r)
	if err := r.Err(); err != nil {
		return mutableRecord{}, wrapParse("mutable record", err)
	}
	return m, nil
}

// mutablePut is the value of a MUTABLE_PUT.
//
//	key 32 | mutable record
type mutablePut struct {
	key    key.Public
	record mutableRecord
}

func (m *mutablePut) encode() []byte { return m.record.append(append([]byte(nil), m.key[:]...)) }

// parseMutablePut parses a mutablePut. Its value aliases b.
func parseMutablePut(b []byte) (mutablePut, error) {
	r := compact.NewReader(b)
	m := mutablePut{key: r.Fixed32(), record: readMutable(&r)}
	if err := r.Err(); err != nil {
		return mutablePut{}, wrapParse("mutable put", err)
	}
	return m, nil
}

// appendSignable appends what a mutable record's signature covers.
//
//	seq uint | value buffer
func appendSignable(b []byte, seq uint64, value []byte) []byte {
	return compact.AppendBuffer(compact.AppendUint(b, seq), value)
}

// parseSeq parses the value of a MUTABLE_GET: the least sequence number wanted.
func parseSeq(b []byte) (uint64, error) {
	r := compact.NewReader(b)
	seq := r.Uint()
	return seq, wrapParse("sequence number", r.Err())
}
