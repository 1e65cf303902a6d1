package dht

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// hexBytes is a byte string that is hex in the vectors, as such or as {"hex": …}; nil if it is null there.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	var s *string
	if len(b) > 0 && b[0] == '{' {
		var o struct{ Hex *string }
		if err := json.Unmarshal(b, &o); err != nil {
			return err
		}
		s = o.Hex
	} else if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if s == nil {
		*h = nil
		return nil
	}
	v, err := hex.DecodeString(*s)
	*h = append(hexBytes{}, v...)
	return err
}

// option returns h as an optional field.
func option[T ~[32]byte | ~[64]byte](h hexBytes, conv func([]byte) T) optional[T] {
	if h == nil {
		return optional[T]{}
	}
	return some(conv(h))
}

func toTarget(b []byte) key.Target { return key.Target(b) }
func toToken(b []byte) Token       { return Token(b) }
func to32(b []byte) [32]byte       { return [32]byte(b) }
func to64(b []byte) [64]byte       { return [64]byte(b) }

// hostPort is an address in the vectors; null is the zero AddrPort.
type hostPort struct{ netip.AddrPort }

func (h *hostPort) UnmarshalJSON(b []byte) error {
	var o *struct {
		Host *string
		Port uint16
	}
	if err := json.Unmarshal(b, &o); err != nil || o == nil || o.Host == nil {
		return err
	}
	ip, err := netip.ParseAddr(*o.Host)
	h.AddrPort = netip.AddrPortFrom(ip, o.Port)
	return err
}

func addrPorts(list []hostPort) (addrs []netip.AddrPort) {
	for _, h := range list {
		addrs = append(addrs, h.AddrPort)
	}
	return addrs
}

// number is an integer that may be a string in the vectors.
type number uint64

func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 64)
	*n = number(v)
	return err
}

func readVectors(t testing.TB, name string, into any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// checkCodec checks that a value is encoded as wire, that wire is decoded and encoded again as itself, with and
// without bytes after it, and that no part of it is accepted but those listed in whole.
func checkCodec(t *testing.T, note string, encoded, wire []byte, again func([]byte) ([]byte, error), whole ...int) {
	t.Helper()
	if !bytes.Equal(encoded, wire) {
		t.Errorf("%s: encoded as\n%x, want\n%x", note, encoded, wire)
	}
	for _, b := range [][]byte{wire, append(bytes.Clone(wire), 1, 2, 3)} {
		if got, err := again(b); err != nil || !bytes.Equal(got, wire) {
			t.Errorf("%s: %x decoded and encoded again as\n%x, %v", note, b, got, err)
		}
	}
	for n := range wire {
		if _, err := again(wire[:n]); (err == nil) != slices.Contains(whole, n) {
			t.Errorf("%s: the first %d of %d bytes: %v", note, n, len(wire), err)
		}
	}
}

func againRequest(b []byte) ([]byte, error) {
	r, err := parseRequest(b)
	if err != nil {
		return nil, err
	}
	return r.append(nil), nil
}

func againResponse(b []byte) ([]byte, error) {
	r, err := parseResponse(b)
	if err != nil {
		return nil, err
	}
	return r.append(nil), nil
}

func TestPacketVectors(t *testing.T) {
	var v struct {
		Requests []struct {
			Note   string
			Fields struct {
				TID               uint16
				To                hostPort
				ID, Token, Target hexBytes
				Internal          bool
				Command           uint64
				Value             hexBytes
			}
			Hex hexBytes
		}
		Responses []struct {
			Note   string
			Fields struct {
				TID         uint16
				To          hostPort
				ID, Token   hexBytes
				CloserNodes []hostPort
				Error       uint64
				Value       hexBytes
			}
			Hex hexBytes
		}
	}
	readVectors(t, "rpc.json", &v)
	if len(v.Requests) == 0 || len(v.Responses) == 0 {
		t.Fatal("no vectors")
	}
	for _, e := range v.Requests {
		f := e.Fields
		r := request{
			tid: f.TID, to: f.To.AddrPort, id: option(f.ID, toTarget), token: option(f.Token, toToken),
			command: Command(f.Command), target: option(f.Target, toTarget), value: f.Value,
		}
		if f.Internal {
			r.command |= internalCommand
		}
		checkCodec(t, e.Note, r.append(nil), e.Hex, againRequest)
	}
	for _, e := range v.Responses {
		f := e.Fields
		r := response{
			tid: f.TID, to: f.To.AddrPort, id: option(f.ID, toTarget), token: option(f.Token, toToken),
			closer: addrPorts(f.CloserNodes), code: f.Error, value: f.Value,
		}
		checkCodec(t, e.Note, r.append(nil), e.Hex, againResponse)
		withoutCloser := r
		withoutCloser.closer = nil
		if got, want := r.size(), len(withoutCloser.append(nil)); got != want {
			t.Errorf("%s: size %d, want %d", e.Note, got, want)
		}
	}
}

func TestUnknownFlagsAreIgnored(t *testing.T) {
	r := request{to: netip.MustParseAddrPort("1.2.3.4:5"), command: cmdPing}
	b := r.append(nil)
	b[1] |= 0x60
	if got, err := againRequest(b); err != nil || !bytes.Equal(got, r.append(nil)) {
		t.Errorf("request with unknown flags: %x, %v", got, err)
	}
	a := response{to: r.to, code: 3}
	b = a.append(nil)
	b[1] |= 0x60
	if got, err := againResponse(b); err != nil || !bytes.Equal(got, a.append(nil)) {
		t.Errorf("response with unknown flags: %x, %v", got, err)
	}
}

func TestOtherVersionsAreRefused(t *testing.T) {
	r := request{to: netip.MustParseAddrPort("1.2.3.4:5"), command: cmdPing}
	for _, first := range []byte{0x00, 0x02, 0x04, 0x13, 0x23, 0xff} {
		b := r.append(nil)
		if b[0] = first; first != requestByte {
			if _, err := parseRequest(b); err == nil {
				t.Errorf("request with first byte %#x is accepted", first)
			}
		}
	}
}

func TestNodeIDVectors(t *testing.T) {
	var v struct {
		NodeIds []struct {
			Host netip.Addr
			Port uint16
			ID   hexBytes
		}
	}
	readVectors(t, "node-id.json", &v)
	if len(v.NodeIds) == 0 {
		t.Fatal("no vectors")
	}
	for _, e := range v.NodeIds {
		if a := netip.AddrPortFrom(e.Host, e.Port); NodeID(a) != key.Target(e.ID) {
			t.Errorf("id of %v = %v, want %x", a, NodeID(a), e.ID)
		}
	}
}

// append appends the wire form of m to b. Members join records that they have encoded already.
func (m *lookupReply) append(b []byte) []byte {
	b = compact.AppendUint(b, uint64(len(m.peers)))
	for _, p := range m.peers {
		b = p.Append(b)
	}
	return compact.AppendUint(b, m.bump)
}

// message is one message in the vectors.
type message[T any] struct {
	Note string
	// Value is absent where the input decodes to something that is encoded otherwise.
	Value *T
	Hex   hexBytes
}

type peerFields struct {
	PublicKey      hexBytes
	RelayAddresses []hostPort
}

func (p peerFields) record() Record {
	return Record{Key: key.Public(p.PublicKey), Relays: addrPorts(p.RelayAddresses)}
}

func TestMessageVectors(t *testing.T) {
	var v struct {
		Handshake []message[struct {
			Mode                      uint64
			Noise                     hexBytes
			PeerAddress, RelayAddress hostPort
		}]
		Holepunch []message[struct {
			Mode, ID    uint64
			Payload     hexBytes
			PeerAddress hostPort
		}]
		Peer           []message[peerFields]
		LookupRawReply []message[struct {
			Peers []hexBytes
			Bump  uint64
		}]
		Announce []message[struct {
			Peer               *peerFields
			Refresh, Signature hexBytes
			Bump               uint64
		}]
		MutablePutRequest []message[struct {
			PublicKey, Value, Signature hexBytes
			Seq                         uint64
		}]
		MutableGetResponse []message[struct {
			Value, Signature hexBytes
			Seq              uint64
		}]
		MutableSignable []message[struct {
			Seq   uint64
			Value hexBytes
		}]
		MutableGetRequest []message[uint64]
	}
	readVectors(t, "messages.json", &v)
	total := 0
	for _, e := range v.Handshake {
		total++
		m := handshakeMessage{relayMode(e.Value.Mode), e.Value.Noise, e.Value.PeerAddress.AddrPort, e.Value.RelayAddress.AddrPort}
		checkCodec(t, "handshake "+e.Note, m.encode(), e.Hex, func(b []byte) ([]byte, error) {
			m, err := parseHandshake(b)
			return m.encode(), err
		})
	}
	for _, e := range v.Holepunch {
		total++
		m := holepunchMessage{relayMode(e.Value.Mode), e.Value.ID, e.Value.Payload, e.Value.PeerAddress.AddrPort}
		checkCodec(t, "holepunch "+e.Note, m.encode(), e.Hex, func(b []byte) ([]byte, error) {
			m, err := parseHolepunch(b)
			return m.encode(), err
		})
	}
	for _, e := range v.Peer {
		total++
		checkCodec(t, "peer "+e.Note, e.Value.record().Append(nil), e.Hex, func(b []byte) ([]byte, error) {
			r, err := ParseRecord(b)
			return r.Append(nil), err
		})
	}
	for _, e := range v.LookupRawReply {
		total++
		again := func(b []byte) ([]byte, error) {
			m, err := parseLookupReply(b)
			return m.append(nil), err
		}
		if e.Value == nil || strings.Contains(e.Note, "missing") {
			if got, err := again(e.Hex); err != nil || !bytes.HasPrefix(got, e.Hex) {
				t.Errorf("lookup reply %s: %x, %v", e.Note, got, err)
			}
			continue
		}
		m := lookupReply{bump: e.Value.Bump}
		for _, p := range e.Value.Peers {
			r, err := ParseRecord(p)
			if err != nil {
				t.Fatal(err)
			}
			m.peers = append(m.peers, r)
		}
		withoutBump := len(m.append(nil)) - len(compact.AppendUint(nil, m.bump))
		checkCodec(t, "lookup reply "+e.Note, m.append(nil), e.Hex, again, withoutBump)
	}
	for _, e := range v.Announce {
		total++
		m := announceMessage{
			refresh: option(e.Value.Refresh, to32), signature: option(e.Value.Signature, to64), bump: e.Value.Bump,
		}
		if e.Value.Peer != nil {
			m.peer = some(e.Value.Peer.record())
		}
		checkCodec(t, "announce "+e.Note, m.encode(), e.Hex, func(b []byte) ([]byte, error) {
			m, err := parseAnnounce(b)
			return m.encode(), err
		})
	}
	for _, e := range v.MutablePutRequest {
		total++
		m := mutablePut{
			key:    key.Public(e.Value.PublicKey),
			record: mutableRecord{e.Value.Seq, e.Value.Value, [64]byte(e.Value.Signature)},
		}
		checkCodec(t, "mutable put "+e.Note, m.encode(), e.Hex, func(b []byte) ([]byte, error) {
			m, err := parseMutablePut(b)
			return m.encode(), err
		})
	}
	for _, e := range v.MutableGetResponse {
		total++
		m := mutableRecord{e.Value.Seq, e.Value.Value, [64]byte(e.Value.Signature)}
		checkCodec(t, "mutable record "+e.Note, m.append(nil), e.Hex, func(b []byte) ([]byte, error) {
			m, err := parseMutable(b)
			return m.append(nil), err
		})
	}
	for _, e := range v.MutableSignable {
		total++
		if got := appendSignable(nil, e.Value.Seq, e.Value.Value); !bytes.Equal(got, e.Hex) {
			t.Errorf("mutable signable %s: %x, want %x", e.Note, got, e.Hex)
		}
	}
	for _, e := range v.MutableGetRequest {
		total++
		if got, err := parseSeq(e.Hex); err != nil || got != *e.Value {
			t.Errorf("mutable get %d: %d, %v", *e.Value, got, err)
		}
	}
	if total < 30 {
		t.Errorf("only %d vectors", total)
	}
}

func TestSignatureVectors(t *testing.T) {
	var v struct {
		Announce []struct {
			Kind                                       string
			Seed, Target, NodeID, Token                hexBytes
			PeerEncoding, Refresh, Signable, Signature hexBytes
			RequestValue                               hexBytes
		}
		Mutable []struct {
			Seed, Value, Signable, Signature  hexBytes
			PutRequestValue, GetResponseValue hexBytes
			Seq                               number
		}
	}
	readVectors(t, "signatures.json", &v)
	if len(v.Announce) == 0 || len(v.Mutable) == 0 {
		t.Fatal("no vectors")
	}
	for i, e := range v.Announce {
		cmd := cmdAnnounce
		if e.Kind == "unannounce" {
			cmd = cmdUnannounce
		}
		target, node, token := key.Target(e.Target), key.Target(e.NodeID), Token(e.Token)
		m, err := parseAnnounce(e.RequestValue)
		if err != nil {
			t.Fatal(err)
		}
		if got := announceSignable(cmd, target, node, token, &m); !bytes.Equal(got, e.Signable) {
			t.Errorf("announce %d: signable %x, want %x", i, got, e.Signable)
		}
		if !verifyAnnounce(cmd, target, node, token, &m) {
			t.Errorf("announce %d does not verify", i)
		}
		signAnnounce(key.FromSeed([32]byte(e.Seed)), cmd, target, node, token, &m)
		if got := m.encode(); !bytes.Equal(got, e.RequestValue) || m.signature.v != [64]byte(e.Signature) {
			t.Errorf("announce %d: signed %x, want %x", i, got, e.RequestValue)
		}
		for what, ok := range map[string]bool{
			"another target":  verifyAnnounce(cmd, key.Target{}, node, token, &m),
			"another node":    verifyAnnounce(cmd, target, key.Target{}, token, &m),
			"another token":   verifyAnnounce(cmd, target, node, Token{}, &m),
			"another command": verifyAnnounce(cmdAnnounce+cmdUnannounce-cmd, target, node, token, &m),
		} {
			if ok {
				t.Errorf("announce %d verifies for %s", i, what)
			}
		}
	}
	for i, e := range v.Mutable {
		k := key.FromSeed([32]byte(e.Seed))
		if got := mutableSignable(uint64(e.Seq), e.Value); !bytes.Equal(got, e.Signable) {
			t.Errorf("mutable %d: signable %x, want %x", i, got, e.Signable)
		}
		m := signMutable(k, uint64(e.Seq), e.Value)
		if got := m.append(nil); !bytes.Equal(got, e.GetResponseValue) || m.signature != [64]byte(e.Signature) {
			t.Errorf("mutable %d: record %x, want %x", i, got, e.GetResponseValue)
		}
		put := mutablePut{key: k.Public(), record: m}
		if got := put.encode(); !bytes.Equal(got, e.PutRequestValue) {
			t.Errorf("mutable %d: put %x, want %x", i, got, e.PutRequestValue)
		}
		if !m.verify(k.Public()) {
			t.Errorf("mutable %d does not verify", i)
		}
		if m.seq++; m.verify(k.Public()) {
			t.Errorf("mutable %d verifies with another seq", i)
		}
	}
}

// TestCapturedDatagrams decodes the datagrams of whole networks of the reference, and encodes them again.
func TestCapturedDatagrams(t *testing.T) {
	var v [][2]string
	readVectors(t, "captures.json", &v)
	values := 0
	for _, e := range v {
		kind := e[0]
		wire, err := hex.DecodeString(e[1])
		if err != nil {
			t.Fatal(err)
		}
		var got, value []byte
		if wire[0] == requestByte {
			var r request
			r, err = parseRequest(wire)
			got, value = r.append(nil), r.value
			switch {
			case err != nil || value == nil || r.command.Internal() || strings.HasPrefix(kind, "bad-token"):
				value = nil
			case r.command == cmdAnnounce || r.command == cmdUnannounce:
				m, merr := parseAnnounce(value)
				value, err = m.encode(), merr
			case r.command == cmdPeerHandshake:
				m, merr := parseHandshake(value)
				value, err = m.encode(), merr
			case r.command == cmdPeerHolepunch:
				m, merr := parseHolepunch(value)
				value, err = m.encode(), merr
			case r.command == cmdMutablePut:
				m, merr := parseMutablePut(value)
				value, err = m.encode(), merr
			default:
				value = nil
			}
			if value != nil {
				values++
				if !bytes.Equal(value, r.value) {
					t.Errorf("%s: value encoded again as\n%x, want\n%x", kind, value, r.value)
				}
			}
		} else {
			var r response
			r, err = parseResponse(wire)
			got = r.append(nil)
		}
		if err != nil || !bytes.Equal(got, wire) {
			t.Errorf("%s: encoded again as\n%x, want\n%x, %v", kind, got, wire, err)
		}
	}
	if len(v) < 300 || values < 20 {
		t.Errorf("only %d datagrams, %d values", len(v), values)
	}
}

func TestTableVectors(t *testing.T) {
	var v struct {
		OwnID hexBytes
		Nodes []struct {
			ID       hexBytes
			Bucket   int
			Accepted bool
		}
		Closest []struct {
			Target hexBytes
			Bucket int
			Result []hexBytes
		}
	}
	readVectors(t, "kademlia.json", &v)
	tab := newTable(key.Target(v.OwnID))
	for _, e := range v.Nodes {
		id := key.Target(e.ID)
		if got := prefixLen(tab.own, id); got != e.Bucket {
			t.Errorf("row of %v = %d, want %d", id, got, e.Bucket)
		}
		if got := tab.add(&node{id: id}); got != e.Accepted {
			t.Errorf("add %v: %v, want %v", id, got, e.Accepted)
		}
	}
	for _, e := range v.Closest {
		target := key.Target(e.Target)
		if got := prefixLen(tab.own, target); got != e.Bucket {
			t.Errorf("row of %v = %d, want %d", target, got, e.Bucket)
		}
		// The reference takes whole rows; ours are the nearest, so never farther than its.
		got := tab.closest(target, bucketSize)
		if len(got) != len(e.Result) {
			t.Fatalf("%d closest, want %d", len(got), len(e.Result))
		}
		far := key.Target(e.Result[0])
		for _, id := range e.Result {
			if closerTo(target, far, key.Target(id)) {
				far = key.Target(id)
			}
		}
		if last := got[len(got)-1].id; closerTo(target, far, last) {
			t.Errorf("closest to %v: %v is farther than the reference's %v", target, last, far)
		}
	}
}
