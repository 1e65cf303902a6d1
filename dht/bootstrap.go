package dht

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"omegatun/dht/compact"
)

// bootstrapHost is a node to enter the network by.
type bootstrapHost struct {
	ip   netip.Addr // invalid: only the name is known
	name string     // empty: only the address is known
	port uint16
}

// parseBootstrap parses entries of the forms "host:port" and "ip@host:port".
func parseBootstrap(list []string) ([]bootstrapHost, error) {
	hosts := make([]bootstrapHost, 0, len(list))
	for _, s := range list {
		host, portText, err := net.SplitHostPort(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("dht: bootstrap node %q: want host:port", s)
		}
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("dht: bootstrap node %q: %q is not a port", s, portText)
		}
		h := bootstrapHost{port: uint16(port), name: host}
		if ip, name, both := strings.Cut(host, "@"); both {
			if h.ip, err = netip.ParseAddr(ip); err != nil {
				return nil, fmt.Errorf("dht: bootstrap node %q: %q is not an address", s, ip)
			}
			h.name = name
		}
		if ip, err := netip.ParseAddr(h.name); err == nil {
			h.name = ""
			if !h.ip.IsValid() {
				h.ip = ip
			}
		}
		h.ip = h.ip.Unmap()
		if h.ip.IsValid() && !h.ip.Is4() {
			return nil, fmt.Errorf("dht: bootstrap node %q: the network speaks IPv4 only", s)
		}
		if h.ip.IsValid() && !usable(netip.AddrPortFrom(h.ip, h.port)) {
			return nil, fmt.Errorf("dht: bootstrap node %q: %v is not the address of a host", s, h.ip)
		}
		if !h.ip.IsValid() && h.name == "" {
			return nil, fmt.Errorf("dht: bootstrap node %q: no host", s)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// resolvedFor is how long the address of a bootstrap node's name is used.
const resolvedFor = 5 * time.Minute

// resolveTimeout bounds the lookup of a name. Resolvers wait 5 s for a name server; this is enough for the second.
const resolveTimeout = 12 * time.Second

// resolution is the address of a name, or a lookup of it that is on its way.
type resolution struct {
	addr    netip.Addr // invalid: not found
	until   time.Time
	failed  bool // the last lookup that has ended found no address
	waiting []func(now time.Time, addr netip.Addr)
}

// resolve calls f with the IPv4 address of name, at once if it is known, invalid if there is none. f is called
// with the mutex held.
func (n *Node) resolve(now time.Time, name string, f func(now time.Time, addr netip.Addr)) {
	r := n.resolved[name]
	if r != nil && r.waiting == nil && now.Before(r.until) {
		f(now, r.addr)
		return
	}
	if r != nil && r.waiting != nil {
		r.waiting = append(r.waiting, f)
		return
	}
	if r == nil {
		r = new(resolution)
		n.resolved[name] = r // as many as there are bootstrap nodes
	}
	r.waiting = append(r.waiting, f)
	if n.closed {
		return
	}
	n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, resolveTimeout)
		defer cancel()
		addrs, err := n.lookupHost(ctx, name)
		if err != nil {
			n.log.Debug("bootstrap node not resolved", "host", name, "err", err)
		}
		n.do(func(now time.Time) {
			r.addr = netip.Addr{}
			for _, a := range addrs {
				if a = a.Unmap(); a.Is4() && (isPublic(a) || n.mayBePrivate(name)) {
					r.addr, r.until = a, now.Add(resolvedFor)
					n.private = n.private || !isPublic(a)
					break
				}
			}
			r.failed = !r.addr.IsValid()
			waiting := r.waiting
			r.waiting = nil
			for _, f := range waiting {
				if !n.closed {
					f(now, r.addr)
				}
			}
		})
	})
}

// mayBePrivate reports whether the bootstrap node of that name may be at an address that is not public. One that is known at a
// public address is not: a network that wants a login first gives every name an address of its own. n.mu is held.
func (n *Node) mayBePrivate(name string) bool {
	return n.private || !slices.ContainsFunc(n.bootstraps, func(h bootstrapHost) bool { return h.name == name && isPublic(h.ip) })
}

// Unresolved returns the names of bootstrap nodes that had no address when they were last looked up, sorted. A name
// that comes with an address is looked up only if nobody answers there.
func (n *Node) Unresolved() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name, r := range n.resolved {
		if r.failed {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// bootstrap looks around from our own place in the network, which is a random one at first.
//
// If a node that answers can reach our server socket as well, or if the node is to be a member anyhow, the
// network state is checked, and if that gives the node its real id, it looks around once more.
func (n *Node) bootstrap(now time.Time) {
	probed := false
	reachable := n.mode == Persistent && !n.persistent
	first := func(now time.Time, f found) {
		if probed || !n.firewalled || n.mode == Persistent {
			return
		}
		probed = true
		n.call(now, n.pingNAT(f.addr), func(now time.Time, a *answer, _ error) {
			if a == nil || a.sock != n.server {
				return
			}
			if reachable = true; n.bootstrapped {
				n.checkNetwork(now, true, func(time.Time, bool) {}) // the answer came late
			}
		})
	}
	spec := lookupSpec{target: n.table.own, bootstrap: true, enough: 1, found: first}
	n.background(now, spec, func(now time.Time, _ []found, err error) {
		if halted(err) {
			return
		}
		if !reachable {
			n.finishBootstrap(now)
			return
		}
		n.checkNetwork(now, n.mode != Persistent, func(now time.Time, ok bool) {
			if !ok {
				n.finishBootstrap(now)
				return
			}
			n.background(now, lookupSpec{target: n.table.own, enough: 1}, func(now time.Time, _ []found, _ error) {
				n.finishBootstrap(now)
			})
		})
	})
}

// finishBootstrap makes the node ready, whatever it found.
func (n *Node) finishBootstrap(now time.Time) {
	if n.closed || n.suspended || n.bootstrapped {
		return
	}
	n.bootstrapped = true
	n.log.Info("bootstrapped", "nodes", n.table.n, "persistent", n.persistent, "firewalled", n.firewalled)
	close(n.ready)
	n.notify()
	n.wakeAnnouncements(now)
}

// pingNAT is a request for a ping to our server socket.
func (n *Node) pingNAT(to netip.AddrPort) callSpec {
	port := compact.AppendUint16(nil, n.server.LocalAddr().Port())
	return callSpec{to: to, command: cmdPingNAT, value: port, retries: defaultRetries}
}
