package dht

import (
	"net/netip"
	"time"
)

const (
	probeNodes = 5 // nodes asked to reach our server socket
	probeWant  = 3 // of that many, so many must succeed; of fewer, one
)

// sampled takes in how the node at from sees our default socket.
func (n *Node) sampled(now time.Time, from, a netip.AddrPort) {
	before := n.publicAddr()
	n.nat.add(now, from, a)
	after := n.publicAddr()
	if before == after {
		return
	}
	n.log.Debug("public address", "addr", after)
	n.notify()
	if n.mode == Adaptive && n.persistent && after.Addr().IsValid() && after.Addr() != n.joined {
		n.leave() // our id named the old address
		n.maintenance.stableTicks = stableTicks
	}
	if after.Port() != 0 && after != n.lastPublic { // not for every doubt about the port
		n.lastPublic = after
		n.refreshAnnouncements(now)
	}
}

// considerJoining checks whether the node can be a member, if it is time for that.
func (n *Node) considerJoining(now time.Time) {
	if n.persistent || n.mode == Ephemeral {
		return
	}
	if n.mode == Adaptive {
		if n.maintenance.stableTicks--; n.maintenance.stableTicks > 0 {
			return
		}
		if n.lastChecked.IsValid() && n.lastChecked == n.publicAddr().Addr() {
			n.maintenance.stableTicks = moreStableTicks // no use to check the same network again
			return
		}
	} else if n.tick%recentTicks != 0 && n.lastChecked == n.publicAddr().Addr() {
		return // once a minute, or as soon as we learn of another address
	}
	n.checkNetwork(now, false, func(time.Time, bool) {})
}

// checkNetwork finds out whether others can reach our server socket, and makes the node a member if they can,
// unless onlyFirewall. It reports whether anything came of it.
func (n *Node) checkNetwork(now time.Time, onlyFirewall bool, done func(now time.Time, ok bool)) {
	addr := n.publicAddr()
	if n.persistent || onlyFirewall && !n.firewalled || n.checkingState {
		done(now, false)
		return
	}
	if !onlyFirewall {
		n.maintenance.stableTicks = moreStableTicks
		n.lastChecked = addr.Addr()
	}
	if !addr.Addr().IsValid() || addr.Port() == 0 {
		done(now, false)
		return
	}
	conclude := func(now time.Time, ok bool, at natSampler) {
		// The network may have changed meanwhile.
		if !ok || n.persistent || addr != n.publicAddr() {
			done(now, false)
			return
		}
		probed := n.firewalled
		if probed {
			n.firewalled = false
			n.nat = at
			n.strangers = nil
		}
		id := addr
		if !n.public.IsValid() {
			id = n.nat.addr
		}
		if onlyFirewall {
			n.rename(now, id)
		} else {
			n.join(now, id)
		}
		n.log.Info("reachable", "addr", id, "persistent", n.persistent)
		n.notify()
		n.refreshAnnouncements(now)
		done(now, true)
	}
	if !n.firewalled {
		conclude(now, true, n.nat)
		return
	}
	n.checkingState = true
	n.probe(now, func(now time.Time, ok bool, at natSampler) {
		n.checkingState = false
		conclude(now, ok && at.addr.Addr() == addr.Addr(), at)
	})
}

// probe asks nodes to reach our server socket, from which nothing was sent so far. It reports whether enough of
// them did, and how they see it.
func (n *Node) probe(now time.Time, done func(now time.Time, ok bool, at natSampler)) {
	var nodes []netip.AddrPort
	for m := n.table.latest; m != nil && len(nodes) < probeNodes; m = m.older {
		nodes = append(nodes, m.addr())
	}
	if len(nodes) < probeNodes {
		nodes = append(nodes, n.knownBootstraps(now)...)
	}
	if len(nodes) == 0 {
		done(now, false, natSampler{})
		return
	}
	asked, left, reached := len(nodes), len(nodes), 0
	var at natSampler
	for _, a := range nodes {
		n.call(now, n.pingNAT(a), func(now time.Time, a *answer, _ error) {
			if a != nil && a.sock == n.server && usable(a.to) {
				reached++
				at.add(now, a.from, a.to)
			}
			if left--; left > 0 || n.closed {
				return
			}
			need := 1
			if asked >= probeNodes {
				need = probeWant
			}
			done(now, reached >= need && at.addr.Port() == n.server.LocalAddr().Port(), at)
		})
	}
}

// knownBootstraps returns the bootstrap nodes whose addresses are known.
func (n *Node) knownBootstraps(now time.Time) (addrs []netip.AddrPort) {
	for _, h := range n.bootstraps {
		ip := h.ip
		if r := n.resolved[h.name]; r != nil && now.Before(r.until) {
			ip = r.addr
		}
		if ip.IsValid() {
			addrs = append(addrs, netip.AddrPortFrom(ip, h.port))
		}
	}
	return addrs
}

// join makes the node a member of the network, under the id of address a.
func (n *Node) join(now time.Time, a netip.AddrPort) {
	n.persistent = true
	n.joined = a.Addr()
	n.rename(now, a)
}

// leave makes the node a mere client again.
func (n *Node) leave() {
	n.persistent = false
	n.log.Info("no longer a member of the network")
	n.notify()
}

// rename gives the node the id of address a, and with it another view of the network.
func (n *Node) rename(now time.Time, a netip.AddrPort) {
	if id := NodeID(a); id != n.table.own {
		n.table = n.table.renamed(id)
		if n.bootstrapped {
			n.refresh(now)
		}
	}
}
