// Package udp is the UDP socket under everything that omegatun sends: DHT messages, punch probes, UDX packets
// and sealed tunnel datagrams share one [Conn].
//
// One system call a datagram is what limits a userspace tunnel, so on Linux a Conn moves them in trains:
//
//	SendBatch ─▶ │ a 1200 │ b 1200 │ c 700 │ ─▶ one message with UDP_SEGMENT = 1200 ─┐
//	             │ d  300 │                  ─▶ one plain message                   ─┴▶ one sendmmsg
//
//	recvmmsg ─▶ 16 slots of 64 KiB, each one datagram or, marked UDP_GRO = 1200, a train ─▶ Batch.Datagram(i)
//
// The kernel carries a train through its stack (and through a device that can cut it) as one packet. Nothing is
// copied on the way: datagrams are gathered where they lie and sliced where they arrive, and no call allocates.
// What the kernel lacks is found out by [Listen] or by the first refusal, and done without; every step down,
// to plain calls of the net package, is also what other systems run and what the tests compare with.
//
// # Ordinary trouble
//
// A Conn outlives its errors. A datagram that is too large gives [ErrTooLarge], so that the path's size can be
// lowered; an ICMP error that the kernel reports late, full buffers and interrupted calls are retried or counted as a
// datagram lost, which is what the network may do anyway. Only [Conn.Close] ends Receive, with [net.ErrClosed].
//
// # Don't fragment
//
// Every datagram leaves with DF set and without regard to the kernel's path MTU cache (Linux IP_PMTUDISC_PROBE): a
// forged ICMP message cannot lower our packet size, and packet size probing sees the path as it is.
// Source: libudx, udx_socket_bind.
//
// # Socket buffers
//
// A buffer that never drains is delay and nothing else, so both are as small as they can be without losing bursts.
// The receive buffer must hold what arrives while the receiver is kept from running: 1 MiB holds 900 datagrams of 1400
// bytes or more, 2.5 ms at 4 Gbit/s and 10 ms at 1 Gbit/s, a few scheduling delays. At 7 MiB, which WireGuard
// implementations ask for, a slow receiver adds over 56 ms to every packet of a 1 Gbit/s flow. The send buffer holds
// four trains, 256 KiB: a full one makes Send wait, so that the queue builds up before the tunnel, where the flows inside
// can be told apart, and not behind. On Linux it becomes smaller, down to 8 KiB, and trains with it, as long as half of it takes more than 4 ms
// to leave, and larger again when that takes less than 1 ms: at 20 Mbit/s it was 100 ms of delay.
// The kernel's limits (net.core.rmem_max) are passed where we have CAP_NET_ADMIN, and kept to elsewhere.
//
// # Limitations
//
//   - Trains, batches, [Source] and the kernel's count of dropped datagrams exist on Linux only. On other systems
//     SendTTL changes the socket's TTL and holds back other senders meanwhile.
//   - DF is set on Linux, macOS, FreeBSD and Windows, elsewhere not.
//   - One goroutine receives from a Conn. Several at one port need a Conn each ([Conn.Beside], Linux only), and what
//     one sender sends comes to one of them.
//   - A [Source] for an IPv6 link-local address needs the zone by the interface's name or number.
package udp
