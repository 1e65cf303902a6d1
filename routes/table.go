package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// ErrPrefixTaken is returned for a prefix that already leads to another peer.
var ErrPrefixTaken = errors.New("prefix belongs to another peer")

// Table says which peer an address belongs to: the one with the longest prefix that holds it. The zero value is an
// empty table. Lookups take no lock and run while the table changes; all methods are safe for concurrent use.
type Table struct {
	current atomic.Pointer[bart.Table[*Peer]] // never modified, only replaced; nil: empty
	mu      sync.Mutex                        // held while replacing current
}

// Lookup returns the peer that a belongs to, nil if it is nobody's. a must not be an IPv4 address mapped into IPv6.
func (t *Table) Lookup(a netip.Addr) *Peer {
	current := t.current.Load()
	if current == nil {
		return nil
	}
	p, _ := current.Lookup(a)
	return p
}

// Len returns the number of prefixes.
func (t *Table) Len() int {
	if current := t.current.Load(); current != nil {
		return current.Size()
	}
	return 0
}

// Insert lets prefixes lead to p, all of them or, if there is an error, none. An error wraps [ErrPrefixTaken], or
// says which prefix is invalid. Prefixes that lead to p already are no error. Bits below a prefix are cleared.
func (t *Table) Insert(p *Peer, prefixes []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.current.Load()
	if next == nil {
		next = new(bart.Table[*Peer])
	}
	for _, prefix := range prefixes {
		canonical, err := canonicalPrefix(prefix)
		if err != nil {
			return err
		}
		if owner, ok := next.Get(canonical); ok && owner != p {
			return fmt.Errorf("routes: %v: %w %s", canonical, ErrPrefixTaken, owner.key.Short())
		}
		next = next.InsertPersist(canonical, p)
	}
	t.current.Store(next)
	return nil
}

// Remove takes those of prefixes out that lead to p.
func (t *Table) Remove(p *Peer, prefixes []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.current.Load()
	if next == nil {
		return
	}
	for _, prefix := range prefixes {
		canonical, err := canonicalPrefix(prefix)
		if err != nil {
			continue
		}
		if owner, ok := next.Get(canonical); ok && owner == p {
			next = next.DeletePersist(canonical)
		}
	}
	t.current.Store(next)
}

// canonicalPrefix returns prefix with the bits below it cleared, and as IPv4 if it is IPv4 mapped into IPv6.
func canonicalPrefix(prefix netip.Prefix) (netip.Prefix, error) {
	if !prefix.IsValid() {
		return netip.Prefix{}, fmt.Errorf("routes: %q is not a prefix", prefix.String())
	}
	if a := prefix.Addr(); a.Is4In6() {
		if prefix.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("routes: %v mixes IPv4 and IPv6", prefix)
		}
		prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}
