package portmap

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// client speaks one protocol with one gateway. Only release may be called concurrently with the other methods.
type client interface {
	protocol() Protocol
	// probe finds out whether the gateway speaks the protocol, and leaves nothing behind there. The address is the
	// external one, if the gateway names it.
	probe(ctx context.Context) (netip.Addr, error)
	// request makes or renews the mapping, if possible at the external address and port wanted.
	request(ctx context.Context, want netip.AddrPort) (lease, error)
	// release removes the mapping.
	release(ctx context.Context, l lease) error
}

// gateway is one gateway, and the ways to talk to it.
type gateway struct {
	route
	clients []client // best first
	// listen passes on announcements until ctx ends. May be nil.
	listen func(ctx context.Context, out chan<- announcement) error
}

// opener makes the gateway of a route.
type opener func(cfg *Config, r route) gateway

// endpoints are the ports and groups of the protocols; tests have others.
type endpoints struct {
	port     uint16 // of PCP and NAT-PMP
	ssdpPort uint16
	search   netip.AddrPort // searches go there too
	announce netip.AddrPort // announcements come there
}

var standard = endpoints{
	port:     serverPort,
	ssdpPort: ssdpPort,
	search:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{239, 255, 255, 250}), ssdpPort),
	announce: netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 1}), announcePort),
}

// open implements opener.
func (e endpoints) open(cfg *Config, r route) gateway {
	s := server{r, e.port, resendAfter}
	g := gateway{route: r, clients: []client{&pcpClient{s, cfg.Port, cfg.Lifetime, nonceFor(cfg, r)}}}
	if !r.gateway.Is4() {
		return g
	}
	g.clients = append(g.clients,
		&pmpClient{s, cfg.Port, cfg.Lifetime},
		&upnpClient{
			server: server{r, e.ssdpPort, resendAfter}, group: e.search,
			internal: cfg.Port, lifetime: cfg.Lifetime, name: cfg.Name,
		},
	)
	g.listen = func(ctx context.Context, out chan<- announcement) error { return hear(ctx, s, e.announce, out) }
	return g
}

// nonceFor returns the nonce of the mapping at the gateway of r: the same each time if there is a secret, as only who
// has the nonce can renew or remove the mapping.
func nonceFor(cfg *Config, r route) (n nonce) {
	if len(cfg.Secret) == 0 {
		_, _ = rand.Read(n[:]) // never fails
		return n
	}
	h := hmac.New(sha256.New, cfg.Secret)
	gateway, local := r.gateway.As16(), r.local.As16()
	h.Write([]byte("omegatun pcp nonce"))
	h.Write(gateway[:])
	h.Write(local[:])
	h.Write(binary.BigEndian.AppendUint16(nil, cfg.Port))
	copy(n[:], h.Sum(nil))
	return n
}

// event is what a round of questions found out.
type event struct {
	lease   lease    // if valid, granted just now
	answers []Answer // of a search; nil if none was necessary
	done    bool     // the round has ended; no event follows
}

// round asks the gateway for the mapping: renews the lease held, and if that fails or there is none, searches for
// a protocol that grants one. Events are passed to tell, from this goroutine. It returns when roundTimeout has passed or
// ctx ends, mostly within two seconds.
func (g *gateway) round(ctx context.Context, held lease, want netip.AddrPort, tell func(event)) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	for _, c := range g.clients {
		if held.valid() && c.protocol() == held.protocol {
			if l, err := c.request(ctx, held.external); err == nil {
				tell(event{lease: l, done: true})
				return
			}
		}
	}
	if held.valid() {
		want = held.external
	}
	tell(event{answers: g.search(ctx, want, tell), done: true})
}

// search probes with all protocols at once, and asks the best that answers for the mapping, then the next.
func (g *gateway) search(ctx context.Context, want netip.AddrPort, tell func(event)) []Answer {
	answers := make([]Answer, len(g.clients))
	probed := make([]chan struct{}, len(g.clients))
	var wg sync.WaitGroup
	for i, c := range g.clients {
		probed[i] = make(chan struct{})
		wg.Go(func() {
			defer close(probed[i])
			external, err := c.probe(ctx)
			answers[i] = Answer{Protocol: c.protocol(), Speaks: err == nil, External: external, Err: err}
		})
	}
	for i, c := range g.clients {
		<-probed[i]
		if answers[i].Err != nil || ctx.Err() != nil {
			continue
		}
		l, err := c.request(ctx, want)
		if answers[i].Err = err; err != nil {
			continue
		}
		answers[i].External = l.external.Addr()
		tell(event{lease: l})
		break
	}
	wg.Wait()
	return answers
}

const (
	// roundTimeout bounds a round: a gateway with several services, each of them slow, needs that long.
	roundTimeout = 15 * time.Second
	// releaseTimeout bounds the removal of a mapping.
	releaseTimeout = 3 * time.Second
)

// release removes a mapping.
func (g *gateway) release(ctx context.Context, l lease) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	for _, c := range g.clients {
		if c.protocol() == l.protocol {
			return c.release(ctx, l)
		}
	}
	return nil
}
