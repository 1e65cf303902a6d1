package daemon

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
	"omegatun/routes"
	"omegatun/session"
	"omegatun/session/relay"
	"omegatun/tun/hostnet"
)

// listedLocked returns all peers that are to be admitted: those of the configuration and those that were asked for,
// but not this machine. d.mu is held.
func (d *Daemon) listedLocked() config.Peers {
	listed := slices.DeleteFunc(slices.Clone(d.settings.Peers), func(p config.Peer) bool { return p.Key == d.own })
	known := make(map[key.Public]bool, len(listed))
	for _, p := range listed {
		known[p.Key] = true
	}
	for _, k := range d.extra {
		if !known[k] && k != d.own {
			listed = append(listed, config.Peer{Key: k})
			known[k] = true
		}
	}
	return listed
}

// networks returns the networks that this machine is on.
func (d *Daemon) networks() []netip.Prefix {
	networks, err := hostnet.Networks()
	if err != nil {
		d.log.Warn("addresses may collide with networks that this machine is on", "error", err)
	}
	return networks
}

// planLocked decides who has which IPv4 address, on a machine that is on the given networks. d.mu is held.
func (d *Daemon) planLocked(networks []netip.Prefix) routes.Addresses {
	listed := d.listedLocked()
	peers := make([]routes.Listed, len(listed))
	for i, p := range listed {
		peers[i] = routes.Listed{Key: p.Key, IPv4: p.IPv4}
	}
	return routes.Plan4(routes.Listed{Key: d.own, IPv4: d.settings.IPv4}, peers, networks)
}

// apply makes the admitted peers those of settings, nil for the present ones, and those that were asked for: it admits the new ones, ends
// connections to those that are gone, and moves addresses. What could not be done for one peer is a note.
func (d *Daemon) apply(settings *config.Config) {
	d.applying.Lock()
	defer d.applying.Unlock()
	networks := d.networks()
	d.mu.Lock()
	if settings != nil {
		d.settings = settings
	}
	plan := d.planLocked(networks)
	wanted := make(map[key.Public]*member)
	for _, p := range d.listedLocked() {
		a6 := routes.Addr6(p.Key)
		m := &member{name: p.Name, prefixes: []netip.Prefix{netip.PrefixFrom(a6, 128)}}
		if a4, ok := plan.Peers[p.Key]; ok && d.addr4.IsValid() {
			m.prefixes = append(m.prefixes, netip.PrefixFrom(a4, 32))
		}
		wanted[p.Key] = m
	}
	gone := d.leaveLocked(wanted)
	var fresh []*member
	d.notes = nil
	through := d.settings.Peers.Relays()
	var serve *relay.Config // nil: no relay
	if d.settings.Relay {
		serve = &relay.Config{}
	}
	d.mu.Unlock()
	d.host.RelayThrough(through)
	d.host.SetRelay(serve)

	var notes []error
	for _, c := range plan.Conflicts {
		notes = append(notes, c)
	}
	for _, m := range gone {
		notes = append(notes, d.dismiss(m))
	}
	for _, k := range slices.SortedFunc(maps.Keys(wanted), key.Public.Compare) {
		m := wanted[k]
		if err := d.admit(k, m); err != nil {
			notes = append(notes, err)
		}
		if m.session != nil {
			fresh = append(fresh, m)
		}
	}
	d.mu.Lock()
	for _, m := range fresh {
		d.peers[m.session.Key()] = m
	}
	d.mu.Unlock()
	for _, err := range append(d.hostnet.Problems(), notes...) {
		if err != nil {
			d.note("%v", err)
		}
	}
}

// leaver is a member that is one no more.
type leaver struct {
	*member
	stays bool // connected: it is admitted again, with other addresses
}

// leaveLocked makes those that are not wanted as they are members no more, and takes those that are out of wanted. d.mu is held.
func (d *Daemon) leaveLocked(wanted map[key.Public]*member) (gone []leaver) {
	for k, old := range d.peers {
		m := wanted[k]
		if m != nil && slices.Equal(m.prefixes, old.prefixes) {
			old.name = m.name
			delete(wanted, k)
			continue
		}
		delete(d.peers, k)
		gone = append(gone, leaver{old, m != nil})
		if m != nil {
			m.session = old.session
		}
	}
	return gone
}

// admit lets packets flow to and from a peer, and lets it connect. Without a session in m afterwards, it is not.
func (d *Daemon) admit(k key.Public, m *member) error {
	if m.session == nil {
		p, err := d.host.AddPeer(k)
		if err != nil {
			return err
		}
		m.session = p
	}
	var err error
	m.route, err = d.forwarder.Load().AddPeer(routes.PeerConfig{Key: k, Prefixes: m.prefixes, Session: m.session, MTU: d.mtu})
	if err != nil {
		d.host.RemovePeer(k)
		m.session = nil
		return err
	}
	d.inbound.Store(m.session, m.route)
	if m.session.MTU() != 0 {
		d.mtuChanged(m.session)
	}
	var problems []error
	for _, p := range m.prefixes {
		switch err := d.hostnet.AddRoute(p); {
		case errors.Is(err, hostnet.ErrIPv6Disabled): // has been said
		case err != nil:
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// dismiss undoes admit, but for the connection if that stays.
func (d *Daemon) dismiss(m leaver) error {
	var problems []error
	for _, p := range m.prefixes {
		problems = append(problems, d.hostnet.RemoveRoute(p))
	}
	d.forwarder.Load().RemovePeer(m.route)
	if !m.stays {
		d.inbound.Delete(m.session)
		d.host.RemovePeer(m.session.Key())
		d.events.forget(m.session.Key())
	}
	return errors.Join(problems...)
}

// unlist takes a peer off the session host's list, unless it has been admitted meanwhile.
func (d *Daemon) unlist(k key.Public) {
	d.applying.Lock()
	defer d.applying.Unlock()
	d.mu.Lock()
	admitted := d.peers[k] != nil
	d.mu.Unlock()
	if !admitted {
		d.host.RemovePeer(k)
	}
}

// connectListed connects, in the given way, to the peers that are to be kept connected.
func (d *Daemon) connectListed(connect func(*session.Peer)) {
	d.mu.Lock()
	var peers []*member
	if len(d.peers) <= keptConnected {
		peers = slices.Collect(maps.Values(d.peers))
	} else {
		for _, k := range d.extra {
			if m := d.peers[k]; m != nil {
				peers = append(peers, m)
			}
		}
	}
	d.mu.Unlock()
	for _, m := range peers {
		connect(m.session)
	}
}

// member returns the peer with this key, if it is admitted.
func (d *Daemon) member(k key.Public) (*member, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.peers[k]; m != nil {
		return m, nil
	}
	if k == d.own {
		return nil, exit.New(exit.Usage, "that is this machine's own key").
			WithTry("the other machine's key: run omegatun id there")
	}
	return nil, exit.New(exit.UnknownPeer, "%s is not listed in the running omegatun", k).
		WithTry("omegatun add %s", k)
}
