package dht

import (
	"omegatun/dht/key"
)

// nsName is the name under which HyperDHT separates its signatures; the number is that of the command.
const nsName = "hyperswarm/dht"

// announceSignable returns what the signature of an ANNOUNCE or UNANNOUNCE covers: the namespace of the
// command and the hash of target, id of the storing node, its token, record, and refresh if present. So it is
// good for one place, one node and a few seconds.
func announceSignable(cmd Command, target, node key.Target, token Token, m *announceMessage) []byte {
	ns := key.Namespace(nsName, byte(cmd.number()))
	var refresh []byte
	if m.refresh.set {
		refresh = m.refresh.v[:]
	}
	h := key.Hash(target[:], node[:], token[:], m.peer.v.Append(nil), refresh)
	return append(ns[:], h[:]...)
}

// signAnnounce signs m for one storing node. m.peer is set and belongs to k.
func signAnnounce(k key.Private, cmd Command, target, node key.Target, token Token, m *announceMessage) {
	m.signature = some(k.Sign(announceSignable(cmd, target, node, token, m)))
}

// verifyAnnounce reports whether m has a record and a signature of its owner for this node and token.
func verifyAnnounce(cmd Command, target, node key.Target, token Token, m *announceMessage) bool {
	return m.peer.set && m.signature.set &&
		m.peer.v.Key.Verify(announceSignable(cmd, target, node, token, m), m.signature.v)
}

// mutableSignable returns what the signature of a mutable record covers.
func mutableSignable(seq uint64, value []byte) []byte {
	ns := key.Namespace(nsName, byte(cmdMutablePut.number()))
	h := key.Hash(appendSignable(nil, seq, value))
	return append(ns[:], h[:]...)
}

// signMutable returns the record that stores value under k.
func signMutable(k key.Private, seq uint64, value []byte) mutableRecord {
	return mutableRecord{seq: seq, value: value, signature: k.Sign(mutableSignable(seq, value))}
}

// verify reports whether m was signed by the owner of k.
func (m *mutableRecord) verify(k key.Public) bool {
	return k.Verify(mutableSignable(m.seq, m.value), m.signature)
}
