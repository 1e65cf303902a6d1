// Package netcheck finds out what the network that this machine is on lets it do: whether UDP gets out, how the NAT in
// front of it maps and filters, whether its router maps ports, and what other programs have to do with where packets go.
//
// The nodes of the DHT are what it measures with. They say where a datagram came from, answer to another port if asked to,
// and answer requests of any size:
//
//	socket   1 ──ping──▶ several nodes            all see the same port?            mapping
//	         1 ──"answer to port 2"──▶ node       port 2 has a mapping, but never   filtering
//	         2 ◀──answer?────────────── node      sent to this node
//	         1 ──ping of 1500 bytes, DF──▶ node   answered?                         path MTU
//	         1 ──▶ public address of 2            arrives?                          hairpin
//
// It announces nothing, and leaves nothing behind: the mapping that it asks the router for is removed.
//
// # Limitations
//
// How long a mapping lasts is not measured, as that takes minutes. The DHT is IPv4 only: of IPv6 it is only known whether
// there is an address and a route.
package netcheck

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"omegatun/dht"
	"omegatun/punch/portmap"
	"omegatun/tun/hostnet"
)

const (
	// Limit is how long a check takes at most.
	Limit = 10 * time.Second

	enterTime   = 4 * time.Second // for the first nodes to answer
	mappingTime = 8 * time.Second // from the start, for the router
	wantNodes   = 8               // that are asked how they see us
)

// Status says what a finding means for connections.
type Status string

// The statuses.
const (
	Good Status = "ok"   // as it should be
	Note Status = "note" // worth knowing
	Bad  Status = "bad"  // stands in the way of something
)

// Finding is one thing that was found out, for people.
type Finding struct {
	Check   string `json:"check"` // what was looked at: "udp", "nat", …; always the same words
	Status  Status `json:"status"`
	Text    string `json:"text"`              // what was found
	Meaning string `json:"meaning,omitempty"` // what follows from it
	Remedy  string `json:"remedy,omitempty"`  // what can be done about it
}

// Report is everything that was found out. Pointers are nil where it could not be.
type Report struct {
	Schema    int         `json:"schema"`
	UDP       bool        `json:"udp"` // datagrams get out and answers in
	DHT       DHT         `json:"dht"`
	NAT       NAT         `json:"nat"`
	PortMap   PortMapping `json:"port_mapping"`
	IPv4      Family      `json:"ipv4"`
	IPv6      Family      `json:"ipv6"`
	PathMTU   int         `json:"path_mtu"` // bytes of an IP packet that got through to a node, DF set; 0: not known
	LinkMTU   int         `json:"link_mtu"` // of the interface that packets leave by; 0: not known
	Conflicts []Conflict  `json:"conflicts"`
	Findings  []Finding   `json:"findings"`
	TookMS    int64       `json:"took_ms"`
}

// DHT is how the network of nodes answers.
type DHT struct {
	Reachable bool    `json:"reachable"`
	Nodes     int     `json:"nodes"`  // known
	RTTMS     float64 `json:"rtt_ms"` // to the nearest that was asked
	EnterMS   int64   `json:"enter_ms"`
}

// NAT is what is between this machine and the Internet.
type NAT struct {
	// Kind is the class that decides how connections are made: "open", "consistent", "random", "unknown".
	Kind   string     `json:"kind"`
	Public netip.Addr `json:"public"` // zero: not known
	// Mapping is "none" if there is no NAT, "endpoint-independent" if others see one port, whoever they are,
	// "endpoint-dependent" if each sees another, or "unknown".
	Mapping string `json:"mapping"`
	// Filtering is who may send to a port that is in use: "none" or "endpoint-independent" for anyone (the former without
	// it having sent), "address-dependent" for hosts that it has sent to, "address-and-port-dependent" for ports of those,
	// or "unknown".
	Filtering     string `json:"filtering"`
	PreservesPort *bool  `json:"preserves_port"`
	Sequential    *bool  `json:"sequential"` // endpoint-dependent only: the ports follow each other
	Hairpin       *bool  `json:"hairpin"`    // machines behind it reach each other by their public addresses
}

// PortMapping is what the router does for us.
type PortMapping struct {
	Gateway   netip.Addr     `json:"gateway"`   // zero: none
	Protocols []string       `json:"protocols"` // that it speaks
	Mapped    bool           `json:"mapped"`    // it has granted a mapping
	External  netip.AddrPort `json:"external"`  // where that leads here from
	Public    bool           `json:"public"`    // and that is an address on the Internet
}

// Family is what there is of an IP version.
type Family struct {
	Route     bool         `json:"route"`     // packets to the Internet have somewhere to go
	Interface string       `json:"interface"` // by which
	Addresses []netip.Addr `json:"addresses"`
}

// Conflict is another program's hand in where packets go.
type Conflict struct {
	Kind      string `json:"kind"` // "tunnel", "full-tunnel", "route", "shadow", "rp-filter"
	Interface string `json:"interface,omitempty"`
	Prefix    string `json:"prefix,omitempty"`
	Table     int    `json:"table,omitempty"`
}

// Config says how to check.
type Config struct {
	Node     *dht.Node      // to measure with; it has been started
	Answered func() bool    // reports whether any node has answered it
	Asked    []string       // whom it asks first, for a message
	Blocks   []netip.Prefix // the virtual addresses
	Logger   *slog.Logger
}

// Run checks, for [Limit] at most, and calls emit for each finding as it is made, in a fixed order, from this goroutine. The
// error is ctx's.
func Run(ctx context.Context, cfg Config, emit func(Finding)) (*Report, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	c := checker{Config: cfg, began: began, report: Report{
		Schema: 1, NAT: NAT{Kind: "unknown", Mapping: "unknown", Filtering: "unknown"}, Conflicts: []Conflict{},
		PortMap: PortMapping{Protocols: []string{}},
	}}
	c.emit = func(f Finding) {
		c.report.Findings = append(c.report.Findings, f)
		emit(f)
	}
	var wg sync.WaitGroup
	defer wg.Wait()

	c.local()
	mapping := make(chan portmap.Report, 1)
	wg.Go(func() { mapping <- c.mapPort(ctx) })
	c.enter(ctx)
	if c.report.UDP {
		if err := c.measure(ctx); err != nil && ctx.Err() == nil {
			c.Logger.Warn("the NAT is not measured", "error", err)
		}
	}
	select {
	case r := <-mapping:
		c.tellMapping(&r)
	case <-ctx.Done():
	}
	c.tellIPv6()
	c.tellMTU()
	c.tellConflicts()
	c.report.TookMS = time.Since(began).Milliseconds()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return &c.report, err
	}
	return &c.report, nil
}

// checker is a check under way. Its fields belong to Run's goroutine.
type checker struct {
	Config
	began  time.Time
	emit   func(Finding)
	report Report

	state      hostnet.State
	neighbours hostnet.Neighbours
	looked     error // why neighbours is not known
}

// local looks at the machine itself.
func (c *checker) local() {
	state, err := hostnet.Current()
	if err != nil {
		c.Logger.Warn("the machine's addresses are not known", "error", err)
	}
	c.state = state
	c.neighbours, c.looked = hostnet.Look(c.Blocks)
	r := &c.report
	r.IPv4 = Family{Route: state.Route4.Interface != 0, Interface: c.neighbours.Default4, Addresses: []netip.Addr{}}
	r.IPv6 = Family{Route: state.Route6.Interface != 0, Interface: c.neighbours.Default6, Addresses: []netip.Addr{}}
	for _, a := range state.Addrs {
		switch virtual := slices.ContainsFunc(c.Blocks, func(p netip.Prefix) bool { return p.Contains(a) }); {
		case virtual:
		case a.Is4():
			r.IPv4.Addresses = append(r.IPv4.Addresses, a)
		default:
			r.IPv6.Addresses = append(r.IPv6.Addresses, a)
		}
	}
	r.LinkMTU = linkMTU(r.IPv4.Interface)
}

// enter waits for the DHT.
func (c *checker) enter(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, enterTime)
	defer cancel()
	_ = c.Node.Ready(waiting) // what counts is who has answered
	info := c.Node.Info()
	r := &c.report
	r.UDP = c.Answered()
	r.DHT = DHT{Reachable: r.UDP, Nodes: info.Nodes, EnterMS: time.Since(c.began).Milliseconds()}
	if r.UDP {
		return // told when its distance is known
	}
	f := Finding{Check: "udp", Status: Bad, Text: "no DHT node answers", Meaning: "no peer can be found, and none finds this machine"}
	switch {
	case !r.IPv4.Route && c.looked == nil && r.IPv6.Route:
		f.Text += ": this machine has IPv6 only"
		f.Meaning = "the DHT is IPv4 only: peers are found on the local network, and connections go on, but nobody elsewhere is found"
		f.Remedy = "switch on CLAT (464XLAT) or IPv4 on this network"
	case !r.IPv4.Route && c.looked == nil:
		f.Text += ": this machine has no route to the Internet"
		f.Remedy = "connect it to a network; peers on one LAN need none"
	default:
		f.Remedy = "check that no firewall blocks UDP, here or at the router, and that " + asked(c.Asked) + " can be reached"
	}
	c.emit(f)
}

// asked names whom the node asks first.
func asked(list []string) string {
	switch len(list) {
	case 0:
		return "the DHT"
	case 1:
		return list[0]
	}
	return list[0] + " or another of the bootstrap nodes"
}

// mapPort asks the router for a mapping, and has it removed again.
func (c *checker) mapPort(ctx context.Context) portmap.Report {
	s, err := listen(c.Node)
	if err != nil {
		return portmap.Report{}
	}
	defer s.close()
	m := portmap.New(portmap.Config{
		Gateway: hostnet.Gateway, Port: s.LocalAddr().Port(), Lifetime: 2 * time.Minute, Name: "omegatun netcheck", Logger: c.Logger,
	})
	deadline := time.NewTimer(mappingTime - time.Since(c.began))
	defer deadline.Stop()
	var r portmap.Report
	for waiting := true; waiting; {
		changed := m.Changes()
		r = m.Report()
		if r.Rounds > 0 {
			break
		}
		select {
		case <-changed:
		case <-deadline.C:
			waiting = false
		case <-ctx.Done():
			waiting = false
		}
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := m.Close(ending); err != nil {
		c.Logger.Info("the router did not confirm that the mapping is removed", "error", err)
	}
	return r
}

func (c *checker) tellMapping(m *portmap.Report) {
	p := &c.report.PortMap
	p.Gateway = m.Gateway
	for _, a := range m.Answers {
		if a.Speaks {
			p.Protocols = append(p.Protocols, a.Protocol.String())
		}
	}
	f := Finding{Check: "port-mapping", Status: Note}
	random := c.report.NAT.Kind == "random"
	const enable = "switch on UPnP, NAT-PMP or PCP in the router, or forward a UDP port and set port in the configuration"
	switch {
	case m.Mapping.Protocol != 0:
		p.Mapped, p.External, p.Public = true, m.Mapping.External, m.Mapping.Public
		if p.Protocols = slices.Compact(append(p.Protocols, m.Mapping.Protocol.String())); p.Public {
			f.Status, f.Text = Good, "the router opens ports by "+m.Mapping.Protocol.String()
			f.Meaning = "peers reach this machine directly, whatever their NAT"
			break
		}
		f.Text = "the router opens ports by " + m.Mapping.Protocol.String() + ", but has no public address itself"
		f.Meaning = "another NAT is in front of it, the carrier's or a second router, and the mapping is of no use"
		f.Remedy = "put one of two routers into bridge mode; a carrier may give out a public address on request"
	case c.report.NAT.Mapping == "none":
		f.Status, f.Text = Good, "not needed: there is no NAT"
	case !m.Gateway.IsValid() && len(m.Answers) == 0:
		f.Text = "there is no router to ask"
	case len(p.Protocols) > 0:
		f.Text = "the router speaks " + join(p.Protocols) + ", but opens no port"
		f.Remedy = "look at its settings: port mapping may be restricted to some devices"
	default:
		f.Text = "the router " + m.Gateway.String() + " answers neither PCP nor NAT-PMP nor UPnP"
		if f.Meaning = "connections do without"; random {
			f.Status, f.Meaning, f.Remedy = Bad, "it would make direct paths possible that now need a relay", enable
		}
	}
	c.emit(f)
}

func (c *checker) tellIPv6() {
	r := &c.report.IPv6
	public := slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() })
	f := Finding{Check: "ipv6", Status: Note}
	switch {
	case r.Route && public:
		f.Status, f.Text, f.Meaning = Good, "a public address, and a route", "peers that have it too can be met without a NAT in between"
	case r.Route:
		f.Text, f.Meaning = "a route, but no public address", "paths are IPv4"
	default:
		f.Text, f.Meaning = "none", "paths are IPv4; inside tunnels IPv6 always works"
	}
	c.emit(f)
}

func (c *checker) tellMTU() {
	r := &c.report
	if !r.UDP {
		return
	}
	f := Finding{Check: "mtu", Status: Good}
	switch {
	case r.PathMTU == 0:
		f.Status, f.Text = Note, "not measured: no node answers large requests"
	case r.PathMTU >= 1500 || r.LinkMTU > 0 && r.PathMTU >= r.LinkMTU:
		f.Text = fmtBytes(r.PathMTU) + " get through"
	case r.PathMTU >= 1340: // 1280 inside and 60 around it
		f.Text, f.Meaning = fmtBytes(r.PathMTU)+" get through", "less than usual, and enough"
	default:
		f.Status, f.Text = Note, "only "+fmtBytes(r.PathMTU)+" get through"
		f.Meaning = "packets of tunnels travel in parts, which is slower"
		f.Remedy = "raise the MTU of the link, often of PPPoE or another VPN; omegatun works without"
	}
	c.emit(f)
}
