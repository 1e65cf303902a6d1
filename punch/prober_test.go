package punch

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"omegatun/dht"
)

// fakeSocket is only compared.
type fakeSocket struct {
	dht.Socket
	n int
}

func (*fakeSocket) SendTTL([]byte, netip.AddrPort, int) error {
	panic("a machine sends nothing itself")
}
func (*fakeSocket) Close() error { panic("a machine closes nothing itself") }

var peer = netip.MustParseAddrPort("192.88.99.7:4000")

// runProber runs p until it finishes, opening sockets as it wants, but no more than most.
func runProber(t *testing.T, p *prober, now time.Time, most int, each func(at time.Time, q probe)) (end time.Time) {
	t.Helper()
	for range 100000 {
		send, open, wake := p.advance(now)
		for _, q := range send {
			each(now, q)
		}
		switch {
		case open > 0:
			var socks []Socket
			for range min(open, most) {
				socks = append(socks, &fakeSocket{n: len(socks)})
			}
			most -= len(socks)
			p.opened(socks)
		case p.finished:
			return now
		case !wake.After(now):
			t.Fatalf("wants to be called at %v, it is %v", wake, now)
		default:
			now = wake
		}
	}
	t.Fatal("the prober does not finish")
	return now
}

func TestExchangeIsBounded(t *testing.T) {
	start := time.Unix(1000, 0)
	good, doubtful := peer, netip.MustParseAddrPort("192.88.99.8:4000")
	kinds := map[string][]volley{"client": clientVolleys(), "server": serverVolleys(), "opened": openedVolleys()}
	for name, volleys := range kinds {
		p := newExchange(start, &fakeSocket{}, volleys)
		p.targets, p.doubtful = []netip.AddrPort{good, doubtful}, 1
		sent := map[netip.AddrPort]int{}
		early := 0
		end := runProber(t, &p, start, 0, func(at time.Time, q probe) {
			sent[q.to]++
			if q.ttl == normalTTL && at.Sub(start) < time.Second {
				early++
			}
		})
		if sent[good] > 16 || sent[doubtful] > 3 || end.Sub(start) > 11*time.Second {
			t.Errorf("%s: %v probes until %v", name, sent, end.Sub(start))
		}
		if (early == 0) != (name == "server") {
			t.Errorf("%s: %d probes of normal TTL in the first second", name, early)
		}
	}
}

func TestSearchTriesEachPortOnceAndFindsNeighbours(t *testing.T) {
	start := time.Unix(1000, 0)
	for seed := range uint64(20) {
		p := newGuesser(start, rand.New(rand.NewPCG(seed, 1)), search, &fakeSocket{}, netip.AddrPortFrom(peer.Addr(), 0), sequence{})
		tried := make(map[uint16]bool)
		var order []uint16
		end := runProber(t, &p, start, 0, func(_ time.Time, q probe) {
			if q.to.Port() < firstGuess || q.to.Addr() != peer.Addr() || tried[q.to.Port()] {
				t.Fatalf("probe to %v, tried before: %v", q.to, tried[q.to.Port()])
			}
			tried[q.to.Port()] = true
			order = append(order, q.to.Port())
		})
		if took := end.Sub(start); len(order) != searchProbes || took < 25*time.Second || took > 35*time.Second {
			t.Errorf("%d probes in %v", len(order), took)
		}
		// 256 neighbouring ports anywhere.
		base := uint16(firstGuess + rand.New(rand.NewPCG(seed, 2)).IntN(guesses-spreadSockets))
		met := -1
		for i, port := range order {
			if port >= base && port < base+spreadSockets {
				met = i
				break
			}
		}
		if met < 0 || met > 500 {
			t.Errorf("ports %d and on are met at try %d", base, met)
		}
	}
	seen := make([]bool, guesses)
	for i, at := 0, 0; i < guesses; i, at = i+1, (at+guessStride)%guesses {
		if seen[at] {
			t.Fatalf("port %d comes again after %d tries", at, i)
		}
		seen[at] = true
	}
}

func TestSpread(t *testing.T) {
	tests := []struct {
		name        string
		more, socks int
	}{
		{"all sockets open", 1000, 256},
		{"only some open", 99, 100},
		{"none opens", 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			p := newGuesser(start, rand.New(rand.NewPCG(1, 1)), spread, &fakeSocket{}, peer, sequence{})
			sent := make(map[Socket]int)
			var count, low int
			var pause time.Duration
			var last time.Time
			end := runProber(t, &p, start, tt.more, func(at time.Time, q probe) {
				if count == tt.socks {
					pause = at.Sub(last)
				}
				last = at
				count++
				sent[q.sock]++
				if q.ttl == lowTTL {
					low++
				}
				if q.to != peer {
					t.Fatalf("probe to %v", q.to)
				}
			})
			if len(sent) != tt.socks || low != 2*tt.socks || count != tt.socks+spreadProbes {
				t.Errorf("%d probes, %d of low TTL, from %d sockets, want %d", count, low, len(sent), tt.socks)
			}
			if pause < spreadPause || end.Sub(start) > 40*time.Second {
				t.Errorf("pause of %v after opening, %v in all", pause, end.Sub(start))
			}
		})
	}
}

func TestRemoteTargets(t *testing.T) {
	ap := netip.MustParseAddrPort
	var r remote
	r.seen = ap("1.1.1.1:5")
	r.update(&payload{addresses: []netip.AddrPort{
		ap("1.1.1.1:5"), ap("1.1.1.1:6"), ap("2.2.2.2:7"), ap("3.3.3.3:0"), ap("0.0.0.0:9"), ap("224.0.0.1:9"),
		ap("255.255.255.255:9"), ap("2.2.2.2:7"),
	}}, netip.MustParseAddr("1.1.1.1"))
	got, doubtful := r.targets()
	if len(got) != 3 || doubtful != 1 || got[0] != r.seen || got[1] != ap("1.1.1.1:6") || got[2] != ap("2.2.2.2:7") {
		t.Errorf("targets %v, of which %d doubtful", got, doubtful)
	}
	if target, ok := r.proved(spread); !ok || target != r.seen {
		t.Errorf("proved for a spread: %v, %v", target, ok)
	}
	r.seen = ap("9.9.9.9:1")
	if target, ok := r.proved(spread); !ok || target != ap("1.1.1.1:5") {
		t.Errorf("proved for a spread, seen elsewhere: %v, %v", target, ok)
	}
	if target, ok := r.proved(search); !ok || target != ap("1.1.1.1:0") {
		t.Errorf("proved for a search: %v, %v", target, ok)
	}
	r.update(&payload{}, netip.Addr{})
	if _, ok := r.proved(spread); ok {
		t.Error("an address that the peer no longer has is proved")
	}
	many := payload{}
	for i := range 100 {
		many.addresses = append(many.addresses, netip.AddrPortFrom(peer.Addr(), uint16(i+1)))
	}
	if r.update(&many, netip.Addr{}); len(r.told) > maxRemoteAddrs {
		t.Errorf("%d addresses kept", len(r.told))
	}
}
