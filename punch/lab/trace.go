package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// record is what the trace knows of one packet. Its methods do nothing on nil.
type record struct {
	net      *Network
	sent     time.Duration // since the network was made
	host     string
	order    uint64
	src, dst netip.AddrPort
	ttl      int
	what     string

	out  netip.AddrPort // source address in the core, if it got there
	fate string
	copy bool
}

func (n *Network) newRecordLocked(h *Host, p *packet) *record {
	if !n.cfg.Trace {
		return nil
	}
	r := &record{
		net: n, sent: n.nowLocked().Sub(n.born), host: h.name, order: p.order, src: p.src, dst: p.dst, ttl: p.ttl,
	}
	switch {
	case n.cfg.Describe != nil:
		r.what = n.cfg.Describe(p.data)
	case len(p.data) == 1:
		r.what = "1 byte"
	default:
		r.what = fmt.Sprintf("%d bytes", len(p.data))
	}
	n.trace = append(n.trace, r)
	return r
}

func (r *record) outside(p *packet) {
	if r != nil {
		r.out = p.src
	}
}

func (r *record) lost(reason string) {
	if r != nil {
		r.fate = "lost: " + reason
	}
}

func (r *record) delivered(h *Host, p *packet) {
	if r != nil {
		r.fate = fmt.Sprintf("%s at %v", h.name, r.net.nowLocked().Sub(r.net.born))
		if p.src != r.src {
			r.fate += fmt.Sprintf(" from %v", p.src)
		}
	}
}

func (r *record) duplicate(n *Network) *record {
	if r == nil {
		return nil
	}
	d := *r
	d.copy = true
	n.trace = append(n.trace, &d)
	return &d
}

// Trace returns a line for every packet sent so far: when it was sent, by whom, from where to where, what
// it was, and what became of it. Lines are in order of time, then of hosts, so that two runs of a deterministic
// test give the same text. It is empty unless Config.Trace is set.
//
//	20ms  a  192.168.1.10:40000 > 192.88.99.102:40001  probe ttl 5  lost: ttl
//	35ms  b  192.168.2.10:40001 > 192.88.99.101:40000  probe  a at 55ms from 192.88.99.102:40001
func (n *Network) Trace() string {
	n.mu.Lock()
	records := slices.Clone(n.trace)
	lines := make([]string, 0, len(records))
	slices.SortStableFunc(records, func(a, b *record) int {
		return cmp.Or(cmp.Compare(a.sent, b.sent), cmp.Compare(a.order, b.order))
	})
	for _, r := range records {
		what := r.what
		if r.ttl != defaultTTL {
			what += fmt.Sprintf(" ttl %d", r.ttl)
		}
		if r.copy {
			what += " (copy)"
		}
		lines = append(lines, fmt.Sprintf("%v  %s  %v > %v  %s  %s\n",
			r.sent, r.host, r.src, r.dst, what, cmp.Or(r.fate, "under way")))
	}
	n.mu.Unlock()
	return strings.Join(lines, "")
}
