//go:build linux

package netlab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// depth is the number of routers that a packet is taken to have crossed in the internet: less TTL dies.
const depth = 8

// Lab is an Internet. Building it is for one goroutine; what is built may be used concurrently.
type Lab struct {
	// Internet joins the sites and carries the public addresses.
	Internet *Net

	ctx    context.Context // ends commands of [Net.Run] that are under way
	prefix string
	trace  func(namespace, command string) // may be nil
	nets   []*Net
	links  []*Link
	boxes  []*box

	mu        sync.Mutex // guards processes
	processes []*Process
}

// internetRules count what crosses the internet, by flow, and what its own addresses (the DHT nodes) exchange
// with the sites.
const internetRules = `table inet internet {
  counter nodes { }
  counter between { }
  set flows {
    type ipv4_addr . inet_service . ipv4_addr . inet_service
    size 65535
    flags dynamic
    counter
  }
  chain forward {
    type filter hook forward priority filter
    meta l4proto udp counter name between
    ip ttl <= %d drop
    meta l4proto udp update @flows { ip saddr . udp sport . ip daddr . udp dport }
  }
  chain input {
    type filter hook input priority filter
    iifname != "lo" counter name nodes
  }
  chain output {
    type filter hook output priority filter
    oifname != "lo" counter name nodes
  }
}
`

// New makes an Internet without sites. The names of its namespaces start with prefix, which tells several
// labs in one sandbox apart; trace may be nil. The end of ctx ends building, and the commands of [Net.Run].
// The caller closes the lab, also after an error while adding to it.
func New(ctx context.Context, prefix string, trace func(namespace, command string)) (*Lab, error) {
	l := &Lab{ctx: ctx, prefix: prefix, trace: trace}
	var err error
	if l.Internet, err = l.newNet("internet"); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	err = errors.Join(
		l.Internet.router(),
		l.Internet.Input(fmt.Sprintf(internetRules, depth), "nft", "-f", "-"),
	)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// router lets the namespace forward packets.
func (n *Net) router() error {
	return n.Sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
		"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0",
		"net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
}

// nodePort is the customary UDP port of a DHT node.
const nodePort = 49737

// PublicAddrs gives the internet itself n addresses for DHT nodes: port 49737 of 192.88.99.10 and following. It
// is to be called once.
func (l *Lab) PublicAddrs(n int) ([]netip.AddrPort, error) {
	var addrs []netip.AddrPort
	a := netip.MustParseAddr("192.88.99.10")
	for range n {
		if err := l.Internet.Run("ip", "addr", "add", a.String()+"/32", "dev", "lo"); err != nil {
			return nil, err
		}
		addrs = append(addrs, netip.AddrPortFrom(a, nodePort))
		a = a.Next()
	}
	return addrs, nil
}

// Close ends the processes of the lab and removes its namespaces.
func (l *Lab) Close() error {
	l.mu.Lock()
	processes := l.processes
	l.processes = nil
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range processes {
		wg.Go(func() {
			p.Stop(5 * time.Second) //nolint:errcheck // killed then
		})
	}
	wg.Wait()
	var errs []error
	for _, k := range l.links {
		errs = append(errs, k.close())
	}
	for _, b := range l.boxes {
		errs = append(errs, b.close())
	}
	for _, n := range l.nets {
		if n.file != nil {
			errs = append(errs, n.remove())
		}
	}
	l.links, l.boxes, l.nets = nil, nil, nil
	return errors.Join(errs...)
}

// Flow is what crossed the internet between two sites in one direction.
type Flow struct {
	From, To       netip.AddrPort
	Packets, Bytes uint64
}

// Flows returns the UDP flows between sites so far, in no order. Packets to and from the internet's own
// addresses are not among them.
func (l *Lab) Flows() ([]Flow, error) {
	out, err := l.Internet.Output("nft", "-j", "list", "set", "inet", "internet", "flows")
	if err != nil {
		return nil, err
	}
	var list struct {
		Nftables []struct {
			Set struct {
				Elem []struct {
					Elem struct {
						Val struct {
							Concat [4]any `json:"concat"`
						} `json:"val"`
						Counter struct{ Packets, Bytes uint64 } `json:"counter"`
					} `json:"elem"`
				} `json:"elem"`
			} `json:"set"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("netlab: nft list: %w", err)
	}
	var flows []Flow
	for _, item := range list.Nftables {
		for _, e := range item.Set.Elem {
			c := e.Elem.Val.Concat
			from, err1 := netip.ParseAddrPort(fmt.Sprintf("%v:%v", c[0], c[1]))
			to, err2 := netip.ParseAddrPort(fmt.Sprintf("%v:%v", c[2], c[3]))
			if err := errors.Join(err1, err2); err != nil {
				return nil, fmt.Errorf("netlab: nft list: %w", err)
			}
			flows = append(flows, Flow{from, to, e.Elem.Counter.Packets, e.Elem.Counter.Bytes})
		}
	}
	return flows, nil
}

// NodeBytes returns how many bytes the internet's own addresses have exchanged with the sites, both directions.
func (l *Lab) NodeBytes() (uint64, error) {
	c, err := l.counter("nodes")
	return c.Bytes, err
}

// Between returns how many UDP packets the sites have sent to one another, those included that did not get across the internet.
func (l *Lab) Between() (packets uint64, err error) {
	c, err := l.counter("between")
	return c.Packets, err
}

type counter struct{ Packets, Bytes uint64 }

func (l *Lab) counter(name string) (counter, error) {
	out, err := l.Internet.Output("nft", "-j", "list", "counter", "inet", "internet", name)
	if err != nil {
		return counter{}, err
	}
	var list struct{ Nftables []struct{ Counter counter } }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return counter{}, fmt.Errorf("netlab: nft list: %w", err)
	}
	var sum counter
	for _, item := range list.Nftables {
		sum.Packets += item.Counter.Packets
		sum.Bytes += item.Counter.Bytes
	}
	return sum, nil
}

// Snapshot is the state of a namespace's network that a well-behaved program leaves as it found it: addresses,
// routes and rules of both families, packet filter, and the machine's resolv.conf. It waits until no address is tentative any
// more, at most ten seconds: on a busy machine those of new devices are for a while.
func (n *Net) Snapshot() (string, error) {
	for range 100 {
		if out, err := n.Output("ip", "-6", "addr", "show", "tentative"); err != nil || len(out) == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	var b strings.Builder
	for _, args := range [][]string{
		{"ip", "-d", "link"},
		{"ip", "addr"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"ip", "-4", "rule"},
		{"ip", "-6", "rule"},
		{"nft", "list", "ruleset"},
		{"cat", "/etc/resolv.conf"},
	} {
		out, err := n.Output(args...)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "$ %s\n%s", strings.Join(args, " "), out)
	}
	return b.String(), nil
}
