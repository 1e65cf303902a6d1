package dht

import (
	"net/netip"
	"slices"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// maxRecordRelays is how many relay addresses of a record are stored; further ones are cut off.
const maxRecordRelays = 3

// Record is what the network stores of a peer. Wire form: key (32), array of relay addresses.
type Record struct {
	Key    key.Public
	Relays []netip.AddrPort
}

// Append appends the wire form of r to b.
func (r Record) Append(b []byte) []byte {
	return compact.AppendAddrs(append(b, r.Key[:]...), r.Relays)
}

// ParseRecord parses the record at the start of b. The result does not alias b; bytes after it are ignored.
func ParseRecord(b []byte) (Record, error) {
	r := compact.NewReader(b)
	rec := readRecord(&r)
	return rec, wrapParse("record", r.Err())
}

func readRecord(r *compact.Reader) Record {
	return Record{Key: r.Fixed32(), Relays: r.Addrs()}
}

// Equal reports whether r and o are the same record.
func (r Record) Equal(o Record) bool { return r.Key == o.Key && slices.Equal(r.Relays, o.Relays) }
