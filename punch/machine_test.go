package punch

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"omegatun/dht"
)

// machineTest drives one side by hand, as its loop would.
type machineTest struct {
	t   *testing.T
	now time.Time
	m   machine
	out todo // of the last advance
}

func (mt *machineTest) advance(d time.Duration) {
	mt.t.Helper()
	end := mt.now.Add(d)
	mt.out = todo{}
	for range 10000 {
		wake := mt.m.advance(mt.now)
		out := mt.m.take()
		mt.out.hush = mt.out.hush || out.hush
		mt.out.open += out.open
		mt.out.probes = append(mt.out.probes, out.probes...)
		mt.out.pings = append(mt.out.pings, out.pings...)
		mt.out.signals = append(mt.out.signals, out.signals...)
		mt.out.paths = append(mt.out.paths, out.paths...)
		mt.out.answers = append(mt.out.answers, out.answers...)
		if wake.IsZero() || wake.After(end) {
			mt.now = end
			return
		}
		mt.now = wake
	}
	mt.t.Fatal("the machine does not rest")
}

var (
	relayA   = netip.MustParseAddrPort("192.88.99.10:1")
	relayB   = netip.MustParseAddrPort("192.88.99.11:1")
	serverAt = netip.MustParseAddrPort("192.88.99.102:4000")
	clientAt = netip.MustParseAddrPort("192.88.99.101:4000")
)

// newClientTest makes a client behind a NAT of the given kind.
func newClientTest(t *testing.T, kind dht.Firewall) (*machineTest, *client) {
	t.Helper()
	now := time.Unix(1000, 0)
	c := newClient(now, client{
		rand: rand.New(rand.NewPCG(1, 1)), main: &fakeSocket{}, relay: relayB, server: serverAt, fastOpen: true,
		pairs: []dht.RelayPair{{Relay: relayA, Peer: serverAt}, {Relay: relayB, Peer: serverAt}},
	}, nodeList(20))
	for i := range 4 {
		seen := clientAt
		if kind == dht.FirewallRandom {
			seen = netip.AddrPortFrom(seen.Addr(), seen.Port()+uint16(i))
		}
		c.survey.add(seen, nodeList(4)[i])
	}
	return &machineTest{t: t, now: now, m: c}, c
}

// wantSignals fails the test unless the last advance sent as many messages, and returns the first.
func (mt *machineTest) wantSignals(n int, reason string) *signal {
	mt.t.Helper()
	if len(mt.out.signals) != n {
		mt.t.Fatalf("%d messages, want %d: %s", len(mt.out.signals), n, reason)
	}
	if n == 0 {
		return nil
	}
	return &mt.out.signals[0]
}

func TestClientAsksThroughOtherRelays(t *testing.T) {
	mt, c := newClientTest(t, dht.FirewallConsistent)
	mt.advance(0)
	if s := mt.wantSignals(1, "the first"); s.relay != relayB {
		t.Errorf("asks through %v first, want the relay of the handshake", s.relay)
	}
	mt.advance(firstHedge)
	first := mt.wantSignals(1, "the second")
	if first.relay != relayA || first.payload.round != 1 {
		t.Errorf("asks in round %d through %v", first.payload.round, first.relay)
	}
	c.answered(mt.now, first, &payload{
		round: 1, firewall: dht.FirewallConsistent, addresses: []netip.AddrPort{serverAt}, token: token{1},
	}, serverAt, clientAt)
	mt.advance(0)
	s := mt.wantSignals(1, "an invitation")
	if !mt.out.hush || !s.payload.punching || s.relay != relayB || s.payload.remoteToken != (token{1}) {
		t.Errorf("hush %v, %+v", mt.out.hush, s)
	}
	mt.advance(5 * time.Second)
	if len(mt.out.signals) < 3 {
		t.Errorf("%d more invitations in 5 s", len(mt.out.signals))
	}
}

func TestClientInvitesToGuessOnlyOnceAtATime(t *testing.T) {
	mt, c := newClientTest(t, dht.FirewallConsistent)
	mt.advance(firstHedge)
	answer := &payload{
		round: 1, firewall: dht.FirewallRandom, addresses: []netip.AddrPort{netip.AddrPortFrom(serverAt.Addr(), 0)},
		token: token{1},
	}
	c.answered(mt.now, &mt.out.signals[1], answer, serverAt, clientAt)
	mt.advance(settle - 1)
	mt.wantSignals(0, "what was asked twice may be late")
	mt.advance(1)
	s := mt.wantSignals(1, "the invitation")
	mt.advance(10 * time.Second)
	mt.wantSignals(0, "the invitation may have arrived")
	c.missed(s.id)
	mt.advance(0)
	s = mt.wantSignals(1, "the invitation is known to be lost")

	// Without proof of its address the server's host is not searched.
	answer.round, answer.punching = 9, true
	c.answered(mt.now, s, answer, serverAt, clientAt)
	mt.advance(0)
	if len(mt.out.probes) != 0 || c.state != clientInviting {
		t.Errorf("%d probes to a host that is not proved, state %d", len(mt.out.probes), c.state)
	}
	s = mt.wantSignals(1, "the proof is asked for")
	answer.remoteToken = s.payload.token
	c.answered(mt.now, s, answer, serverAt, clientAt)
	if mt.advance(time.Second); len(mt.out.probes) < 50 || mt.out.probes[0].to.Addr() != serverAt.Addr() {
		t.Errorf("%d probes in the first second", len(mt.out.probes))
	}
}

func TestClientTriesLater(t *testing.T) {
	mt, c := newClientTest(t, dht.FirewallRandom)
	mt.advance(0)
	c.answered(mt.now, mt.wantSignals(1, "a question"), &payload{
		firewall: dht.FirewallConsistent, addresses: []netip.AddrPort{serverAt}, token: token{1},
	}, serverAt, clientAt)
	for i := range maxLater {
		mt.advance(2 * laterPause)
		s := mt.wantSignals(1, "an invitation")
		c.answered(mt.now, s, &payload{
			round: s.payload.round, refusal: refusalTryLater, firewall: dht.FirewallConsistent,
		}, serverAt, clientAt)
		if mt.advance(laterPause - 1); len(mt.out.signals) != 0 || c.err != nil {
			t.Fatalf("after refusal %d: %d messages, error %v", i+1, len(mt.out.signals), c.err)
		}
	}
	mt.advance(2 * laterPause)
	s := mt.wantSignals(1, "the last invitation")
	c.answered(mt.now, s, &payload{round: s.payload.round, refusal: refusalTryLater, firewall: 2}, serverAt, clientAt)
	if !errors.Is(mt.m.ended(), ErrBusy) {
		t.Errorf("ended with %v, want ErrBusy", mt.m.ended())
	}
}

func TestClientTakesRefusals(t *testing.T) {
	tests := []struct {
		name string
		p    payload
		want error
	}{
		{"aborted", payload{refusal: refusalAborted}, ErrRemoteAborted},
		{"try later, and gone", payload{refusal: refusalTryLater}, ErrBusy},
		{"another version", payload{refusal: refusalVersion}, errUnknownRefusal},
		{"an unknown reason", payload{refusal: 99}, errUnknownRefusal},
	}
	for _, tt := range tests {
		mt, c := newClientTest(t, dht.FirewallConsistent)
		mt.advance(0)
		c.answered(mt.now, mt.wantSignals(1, "a question"), &tt.p, serverAt, clientAt)
		if !errors.Is(mt.m.ended(), tt.want) {
			t.Errorf("%s: ended with %v, want %v", tt.name, mt.m.ended(), tt.want)
		}
		c.probed(mt.now, c.main, serverAt)
		if mt.advance(time.Minute); len(mt.out.probes)+len(mt.out.signals)+len(mt.out.paths) > 0 {
			t.Errorf("%s: goes on: %+v", tt.name, mt.out)
		}
	}
}

func TestClientForgetsLateAnswers(t *testing.T) {
	mt, c := newClientTest(t, dht.FirewallConsistent)
	mt.advance(firstHedge)
	asked := mt.out.signals
	answer := payload{round: 1, firewall: dht.FirewallConsistent, addresses: []netip.AddrPort{serverAt}, token: token{1}}
	c.answered(mt.now, &asked[1], &answer, serverAt, clientAt)
	c.answered(mt.now, &asked[1], &payload{refusal: refusalAborted, round: 1}, serverAt, clientAt)
	c.answered(mt.now, &asked[0], &payload{refusal: refusalAborted}, serverAt, clientAt)
	if c.err != nil {
		t.Errorf("a late answer ended it: %v", c.err)
	}
}

func TestClientOffersPathsWithinBounds(t *testing.T) {
	mt, c := newClientTest(t, dht.FirewallConsistent)
	mt.advance(0)
	c.probed(mt.now, c.main, serverAt)
	c.probed(mt.now, c.main, serverAt)
	c.probed(mt.now, &fakeSocket{n: 1}, serverAt)
	if mt.advance(offerAgain); len(mt.out.paths) != 2 {
		t.Errorf("paths %v, want one for each socket", mt.out.paths)
	}
	c.probed(mt.now, c.main, serverAt)
	if mt.advance(0); len(mt.out.paths) != 1 {
		t.Errorf("paths %v, want the first again", mt.out.paths)
	}
	for i := range 2000 {
		c.probed(mt.now, c.main, netip.AddrPortFrom(serverAt.Addr(), uint16(10000+i)))
		c.probed(mt.now, c.main, netip.AddrPortFrom(netip.AddrFrom4([4]byte{44, 0, byte(i >> 8), byte(i)}), 1))
	}
	mt.advance(0)
	if len(mt.out.paths) > maxKnownPaths+maxStrangePaths || len(c.given) > maxKnownPaths+maxStrangePaths {
		t.Errorf("%d paths offered, %d remembered", len(mt.out.paths), len(c.given))
	}
}

func TestClientSendsNothingToAddressesThatAreNone(t *testing.T) {
	for _, bad := range []string{"224.0.0.1:1", "255.255.255.255:1", "0.0.0.0:1", "1.2.3.4:0", "[::1]:1"} {
		now := time.Unix(1000, 0)
		c := newClient(now, client{
			main: &fakeSocket{}, relay: relayA, server: netip.MustParseAddrPort(bad), fastOpen: true,
			pairs: []dht.RelayPair{{Relay: relayA, Peer: serverAt}},
		}, nil)
		mt := &machineTest{t: t, now: now, m: c}
		if mt.advance(time.Second); len(mt.out.probes) > 0 || mt.out.signals[0].payload.remoteAddress.IsValid() {
			t.Errorf("%s: probes %v", bad, mt.out.probes)
		}
	}
}

func newServerTest(t *testing.T) (*machineTest, *server) {
	t.Helper()
	now := time.Unix(1000, 0)
	s := newServer(now, server{rand: rand.New(rand.NewPCG(1, 1)), main: &fakeSocket{}}, nodeList(20))
	for _, by := range nodeList(4) {
		s.survey.add(serverAt, by)
	}
	return &machineTest{t: t, now: now, m: s}, s
}

func TestServerTriesLaterForALimit(t *testing.T) {
	mt, s := newServerTest(t)
	s.limit = NewLimit(1)
	s.limit.acquire()
	ask := func(round uint64) payload {
		t.Helper()
		s.asked(mt.now, request{relayed: true, peer: clientAt, payload: payload{
			round: round, punching: true, firewall: dht.FirewallRandom, remoteToken: s.token(clientAt),
			addresses: []netip.AddrPort{netip.AddrPortFrom(clientAt.Addr(), 0)},
		}}, netip.AddrPort{}, relayA)
		mt.advance(0)
		if len(mt.out.answers) != 1 {
			t.Fatalf("%d answers, error %v", len(mt.out.answers), s.err)
		}
		return mt.out.answers[0].payload
	}
	if p := ask(1); p.refusal != refusalTryLater || p.punching || p.firewall != dht.FirewallConsistent {
		t.Errorf("answer %+v, want to try later", p)
	}
	mt.advance(laterTime - time.Second)
	s.limit.release()
	if p := ask(2); p.refusal != refusalNone || !p.punching {
		t.Errorf("answer %+v, want to punch", p)
	}
	mt.advance(time.Minute)
	if !errors.Is(mt.m.ended(), ErrNoProbe) || !s.limit.acquire() {
		t.Errorf("ended with %v; the place was given back: %v", mt.m.ended(), s.limit.active == 1)
	}
}

func TestServerRefusesWithoutProof(t *testing.T) {
	mt, s := newServerTest(t)
	s.asked(mt.now, request{relayed: true, peer: clientAt, payload: payload{
		punching: true, firewall: dht.FirewallRandom, remoteToken: token{9},
		addresses: []netip.AddrPort{netip.AddrPortFrom(clientAt.Addr(), 0)},
	}}, netip.AddrPort{}, relayA)
	mt.advance(time.Second)
	if !errors.Is(mt.m.ended(), ErrUnverified) || len(mt.out.probes) > 0 {
		t.Errorf("ended with %v after %d probes", mt.m.ended(), len(mt.out.probes))
	}
	if a := mt.out.answers; len(a) != 1 || !a[0].abort || a[0].payload.refusal != refusalAborted {
		t.Errorf("answers %+v", a)
	}
}

func TestServerTokenOnlyThroughOwnRelays(t *testing.T) {
	for _, relayed := range []bool{true, false} {
		mt, s := newServerTest(t)
		s.asked(mt.now, request{relayed: relayed, peer: clientAt, payload: payload{token: token{7}}}, netip.AddrPort{}, relayA)
		mt.advance(0)
		p := mt.out.answers[0].payload
		if (p.token == s.token(clientAt)) != relayed || p.remoteToken != (token{7}) {
			t.Errorf("through an own relay %v: token %x, remote token %x", relayed, p.token, p.remoteToken)
		}
	}
}

func TestServerIsBounded(t *testing.T) {
	mt, s := newServerTest(t)
	mt.advance(0)
	probes, answers := 0, 0
	for i := range uint64(5000) {
		s.probed(s.main, clientAt)
		s.asked(mt.now, request{relayed: true, peer: clientAt, payload: payload{
			round: i, remoteAddress: serverAt,
		}}, netip.AddrPort{}, relayA)
		mt.advance(time.Millisecond)
		probes, answers = probes+len(mt.out.probes), answers+len(mt.out.answers)
	}
	if answers != maxAnswers || probes > maxProbeAnswers+4*maxAnswers {
		t.Errorf("%d answers and %d probes", answers, probes)
	}
	mt.advance(time.Minute)
	if !errors.Is(mt.m.ended(), ErrNeverAsked) {
		t.Errorf("ended with %v, want ErrNeverAsked", mt.m.ended())
	}
}

// Both sides learn why, whichever of them gives up: npm hyperdht says no class then, and what it said before counts.
func TestServerEndsWhenTheClientGivesUp(t *testing.T) {
	const unknown, consistent, random = dht.FirewallUnknown, dht.FirewallConsistent, dht.FirewallRandom
	for _, row := range []struct{ before, last, want dht.Firewall }{
		{unknown, random, random},
		{unknown, unknown, unknown},
		{consistent, unknown, consistent},
		{consistent, random, random},
	} {
		mt, s := newServerTest(t)
		s.asked(mt.now, request{peer: clientAt, payload: payload{firewall: row.before}}, netip.AddrPort{}, relayA)
		s.asked(mt.now, request{peer: clientAt, payload: payload{
			refusal: refusalAborted, firewall: row.last, round: 1,
		}}, netip.AddrPort{}, relayA)
		if mt.advance(0); !errors.Is(mt.m.ended(), ErrRemoteAborted) || len(mt.out.answers) != 1 {
			t.Errorf("%+v: ended with %v, answers %v", row, mt.m.ended(), mt.out.answers)
		}
		if got := s.report(); got.Remote != row.want || mt.out.answers[0].payload.firewall != got.Local {
			t.Errorf("%+v: %+v, and the client is told %v", row, got, mt.out.answers[0].payload.firewall)
		}
	}
}

func TestClientSaysItsClassWhenItGivesUp(t *testing.T) {
	mt, c := newClientTest(t, dht.FirewallRandom)
	mt.advance(0)
	s := mt.wantSignals(1, "a question")
	c.answered(mt.now, s, &payload{firewall: dht.FirewallRandom, token: token{1}}, serverAt, clientAt)
	mt.advance(surveyTime)
	p := mt.wantSignals(1, "two random NATs").payload
	if !errors.Is(mt.m.ended(), ErrBothRandom) || p.refusal != refusalAborted || p.firewall != dht.FirewallRandom {
		t.Errorf("ended with %v, and told the server %+v", mt.m.ended(), p)
	}
}
