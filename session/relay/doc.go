// Package relay carries the packets of two peers that cannot reach each other: blind relaying, as HyperDHT programs do
// it, both the client's side and the relay's.
//
//	         control connection                          control connection
//	client ═══ pair(token, initiator, 501) ══▶ relay ◀══ pair(token, responder, 502) ═══ client
//	client ◀══════ pair(token, 1001) ══════════  ║  ═════════ pair(token, 1000) ═══════▶ client
//	                                             ║
//	       ── ff 01 … id 1001 … ──────────▶ rewrite id ──────── ff 01 … id 502 … ──────▶
//	       ◀─ ff 01 … id 501 … ───────────  rewrite id ◀─────── ff 01 … id 1000 … ──────
//
// Both clients connect to the relay as to any peer, and name the same token there. The relay gives each a UDX
// stream id: packets that come in for the one go out to the other, unchanged but for the id in bytes 4 to 7. What
// is in the packets is sealed end to end; the relay sees ids, sizes and times. A tunnel's datagrams cross a relay
// as UDX messages.
//
// On the control connection runs the protomux protocol "blind-relay", whose channel id is the public key of the client:
//
//	message 0, pair     u8 flags (1: initiator), token 32, uint stream id, uint seq = 0 (ignored)
//	message 1, unpair   u8 flags = 0, token 32
//
// In a pair to the relay the id is that of the client's stream; the relay answers the same token and flag, with the
// id that the client's packets must carry. The client sends them from the socket and to the address of the control
// connection, and the relay takes them from nowhere else.
//
// # Being relayed
//
// With conn the encrypted stream to the relay, which was dialled with the key local, and stream a udx.Stream that
// the peer knows the id of:
//
//	mux := protomux.New(conn, protomux.Config{Protocols: []string{relay.Protocol}})
//	client, err := relay.NewClient(mux, local)
//	id, err := client.Pair(ctx, initiator, token, stream.ID()) // 15 s, as the reference waits
//	err = stream.Connect(socket, address, id)                  // of conn's own UDX stream
//	go relay.Knock(knocking, stream)                           // until the peer is heard
//
// Then the stream is used as if the peer were there. Datagrams that are no stream's, as a tunnel's, go over a
// [Path] in its place, and what comes is told apart by the id that [Unwrap] returns; the control connection's
// socket receives it. The relayed path lasts as long as the control connection: see [Client.Done]. A path cannot
// move; after a change of address both sides must pair anew, with another token. To leave for a direct path, call
// ChangeRemote with the peer's own stream id, keep the relay until authenticated packets have come over the new
// path, then close mux.
//
// # Being a relay
//
//	server := relay.NewServer(relay.Config{Reserve: func() (udx.ID, func(), error) {
//		s, err := streams.NewStream(udx.StreamConfig{}) // streams is the host's udx.Mux: ids are unique in it
//		if err != nil {
//			return 0, nil, err
//		}
//		return s.ID(), func() { s.Reset(nil) }, nil
//	}})
//
// Each socket's receiving goroutine owns a [Batch]. It asks it first about every datagram that starts with ff 01, and
// flushes it after those that were received together:
//
//	for i := range received.Len() {
//		b, from := received.Datagram(i)
//		if !batch.Add(socket, b, from) {
//			streams.Receive(socket, b, from)
//		}
//	}
//	batch.Flush()
//
// And for each connection conn that was accepted from a client (who may be one is for the listener to say):
//
//	mux := protomux.New(conn, protomux.Config{Protocols: []string{relay.Protocol}})
//	err := server.Serve(ctx, mux, relay.Control{Key: conn.RemoteKey(), Path: path})
//	mux.Close()
//
// where path tells over which socket, and from which address, the client is talking.
//
// # What a client may cause
//
// Each key has a number of tokens that may wait, of links, and of bytes a second. Tokens that nobody answers are
// forgotten, and so are links that carry nothing. The first packet of a stream must come from the address of the
// control connection, later ones from where the first came from: a relay cannot be pointed at strangers. Packets
// that arrive before the other client has been heard are kept, a few, and delivered then. A packet is at most
// forwarded: nothing is answered.
//
// # Limitations
//
//   - The protocol has no word for a refusal, nor for a link that has ended: a client that is over its limits and
//     has nothing else going on sees its channel closed, others wait in vain.
//   - Relays other than ours drop what arrives before they have heard the other client. Knock makes that short, but
//     data that is written before the peer is heard may be among it, and come again a second later.
//   - Both clients of a link talk to the same relay; relays are not chained.
//   - Forwarding happens in the goroutine that received, and waits when the outgoing socket is full.
//
// Source: npm blind-relay 1.6.1; libudx, relaying in src/udx.c.
package relay
