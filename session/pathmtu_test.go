package session

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

// mtuPath is a path that loses what is too long, and some of the rest.
type mtuPath struct {
	carries int
	loss    float64 // of a probe, and of its answer
	rtt     time.Duration
	rand    *rand.Rand
	now     time.Time
	answers []mtuAnswer
	bytes   int
}

type mtuAnswer struct {
	at time.Time
	id uint64
}

// run lets m work for a while, or until it rests.
func (p *mtuPath) run(m *pathMTU, during time.Duration) {
	end := p.now.Add(during)
	for !p.now.After(end) {
		for len(p.answers) > 0 && !p.answers[0].at.After(p.now) {
			m.answered(p.answers[0].id, p.now)
			p.answers = p.answers[1:]
		}
		send, wake := m.advance(p.rtt, p.now)
		for _, s := range send {
			p.bytes += max(s.size, 44)
			if s.size <= p.carries && p.rand.Float64() >= p.loss && p.rand.Float64() >= p.loss {
				p.answers = append(p.answers, mtuAnswer{p.now.Add(p.rtt), s.id})
			}
		}
		if wake.IsZero() && len(p.answers) == 0 {
			return
		}
		next := end.Add(1)
		if !wake.IsZero() && wake.Before(next) {
			next = wake
		}
		if len(p.answers) > 0 && p.answers[0].at.Before(next) {
			next = p.answers[0].at
		}
		p.now = next
	}
}

const testLimit = DefaultMTU + packetOverhead

func TestMTUIsFound(t *testing.T) {
	for _, carries := range []int{9000, 1472, testLimit, testLimit - 1, 1452, 1440, 1400, 1333, 1252, 1233, 1232, 1231, 1200, 1096, 900, 572, 548} {
		for _, rtt := range []time.Duration{time.Millisecond, 60 * time.Millisecond, 600 * time.Millisecond} {
			p := &mtuPath{carries: carries, rtt: rtt, rand: rand.New(rand.NewPCG(1, 1)), now: time.Unix(1e9, 0)}
			var m pathMTU
			began := p.now
			m.start(testLimit, p.now)
			p.run(&m, time.Minute)
			want := min(carries, testLimit)
			if !m.settled() || m.size() > want || m.size() < want-mtuPrecise {
				t.Errorf("%d bytes, %v: settled %v at %d", carries, rtt, m.settled(), m.size())
			}
			if took := p.now.Sub(began); took > 3*time.Second+20*rtt {
				t.Errorf("%d bytes, %v: took %v", carries, rtt, took)
			}
			if carries >= testLimit && p.bytes > 3300 {
				t.Errorf("%d bytes, %v: %d bytes of probes where the first one arrives", carries, rtt, p.bytes)
			}
		}
	}
}

func TestMTUFallsAndRises(t *testing.T) {
	for _, row := range []struct {
		from, to int
		loss     float64
	}{
		{1472, 1252, 0}, {1472, 572, 0}, {1252, 1232, 0}, {1096, 572, 0}, {1472, 572, 0.1}, {1472, 1252, 0.2}, {1472, 1252, 0.5},
	} {
		p := &mtuPath{carries: row.from, rtt: 60 * time.Millisecond, rand: rand.New(rand.NewPCG(1, 1)), now: time.Unix(1e9, 0)}
		var m pathMTU
		m.start(testLimit, p.now)
		p.run(&m, time.Minute)
		before := m.size()
		p.carries, p.loss = row.to, row.loss
		began := p.now
		m.confirm(p.now)
		for m.size() == before && p.now.Sub(began) < time.Minute {
			p.run(&m, 10*time.Millisecond)
			m.confirm(p.now)
		}
		if took := p.now.Sub(began); m.size() == before || row.loss == 0 && took > 700*time.Millisecond || took > 6*time.Second {
			t.Errorf("%+v: the fall is noticed after %v", row, took)
		}
		p.loss = 0
		p.run(&m, time.Minute)
		if m.state == mtuDoubting || !m.settled() || m.size() > row.to {
			t.Errorf("%+v: settled %v at %d", row, m.settled(), m.size())
		}
		p.carries = row.from
		p.run(&m, time.Second)
		if m.size() > row.to {
			t.Errorf("%+v: larger sizes are tried at once", row)
		}
		p.now = p.now.Add(mtuRaiseAfter)
		p.run(&m, time.Minute)
		if m.size() != before {
			t.Errorf("%+v: %d bytes ten minutes after the path carries %d again", row, m.size(), before)
		}
	}
}

// TestLossIsNotTakenForAnMTU loses probes of every size.
func TestLossIsNotTakenForAnMTU(t *testing.T) {
	for _, loss := range []float64{0.05, 0.2, 0.5, 0.9, 1} {
		fell := 0
		const times = 2000
		for seed := range uint64(times) {
			p := &mtuPath{carries: 1472, rtt: 60 * time.Millisecond, rand: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1e9, 0)}
			var m pathMTU
			m.start(testLimit, p.now)
			p.run(&m, time.Minute)
			p.loss = loss
			m.confirm(p.now)
			for m.state == mtuDoubting {
				p.run(&m, 100*time.Millisecond)
			}
			if m.size() != testLimit {
				fell++
			}
		}
		t.Logf("loss %v: %d of %d checks were wrong", loss, fell, times)
		if fell > times/50 {
			t.Errorf("loss %v: %d of %d checks were wrong", loss, fell, times)
		}
	}
}

// sized makes a packet of n bytes.
func sized(n int) []byte {
	b := make([]byte, n)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	return b
}

// wantAllSizes sends packets of all sizes from a to b, and wants all of them.
func wantAllSizes(t *testing.T, a, b *end, most int) {
	t.Helper()
	for len(b.got) > 0 {
		<-b.got
	}
	want := 0
	for n := 40; n <= most; n += 23 {
		if err := a.Peer(b.public()).Send([][]byte{sized(n)}); err != nil {
			t.Fatalf("%s sends %d bytes: %v", a.name, n, err)
		}
		want++
		time.Sleep(time.Millisecond)
	}
	time.Sleep(time.Second)
	if len(b.got) != want {
		t.Errorf("%d of %d packets arrived from %s", len(b.got), want, a.name)
	}
}

func TestPacketsOfAllSizesPassEveryMTU(t *testing.T) {
	for _, row := range []struct {
		underlay, mtu int
	}{{0, 1420}, {1500, 1420}, {1480, 1418}, {1280, 1218}, {1124, 1062}, {600, 538}} {
		t.Run(fmt.Sprint(row.underlay), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				ha, hb, natA, _ := w.homes()
				natA.SetLink(lab.Link{MTU: row.underlay})
				a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
				b.listen(t)
				a.Peer(b.public()).Connect()
				a.connected(t, b.public())
				b.connected(t, a.public())
				time.Sleep(100 * time.Millisecond) // a round trip or two
				wantAllSizes(t, a, b, DefaultMTU)
				wantAllSizes(t, b, a, DefaultMTU)
				time.Sleep(3 * time.Second)
				for _, s := range [][2]*end{{a, b}, {b, a}} {
					if got := s[0].Peer(s[1].public()).MTU(); got > row.mtu || got < row.mtu-mtuPrecise {
						t.Errorf("%s: MTU %d, want %d", s[0].name, got, row.mtu)
					}
				}
				time.Sleep(10 * time.Minute) // keys are exchanged in packets of the control stream, the largest of all
				wantAllSizes(t, a, b, DefaultMTU)
				if s := a.Peer(b.public()).Status(); s.Epoch < 4 || a.Peer(b.public()).linkCount() != 1 {
					t.Errorf("epoch %d after ten minutes", s.Epoch)
				}
			})
		})
	}
}

// TestMTUFallsUnderWay lowers the MTU of a path on which large packets travel.
func TestMTUFallsUnderWay(t *testing.T) {
	for _, to := range []int{1280, 1124, 600} {
		for _, local := range []bool{false, true} { // the narrow cable is our own: the system refuses
			t.Run(fmt.Sprint(to, " ", local), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
					a, b, natA, _ := w.pair()
					time.Sleep(10 * time.Second)
					for _, s := range [][2]*end{{a, b}, {b, a}} {
						natA.SetLink(lab.Link{})
						a.server.(*labSocket).Host().SetLink(lab.Link{})
						s[0].NetworkChanged()
						time.Sleep(5 * time.Second)
						if got := s[0].Peer(s[1].public()).MTU(); got != DefaultMTU {
							t.Fatalf("%s: MTU %d at first", s[0].name, got)
						}
						last, longest := time.Now(), time.Duration(0)
						for i := range 1000 {
							if i == 200 {
								if local {
									a.server.(*labSocket).Host().SetLink(lab.Link{MTU: to})
								} else {
									natA.SetLink(lab.Link{MTU: to})
								}
							}
							_ = s[0].Peer(s[1].public()).Send([][]byte{sized(DefaultMTU)})
							time.Sleep(10 * time.Millisecond)
							if len(s[1].got) > 0 {
								<-s[1].got
								longest = max(longest, time.Since(last))
								last = time.Now()
							}
						}
						t.Logf("%s: longest gap %v", s[0].name, longest)
						if longest > 1500*time.Millisecond || time.Since(last) > time.Second {
							t.Errorf("%s: no packet arrived for %v, and %v at the end", s[0].name, longest, time.Since(last))
						}
						if got := s[0].Peer(s[1].public()).MTU(); got > to-28-packetOverhead || got < to-28-packetOverhead-mtuPrecise {
							t.Errorf("%s: MTU %d", s[0].name, got)
						}
					}
				})
			})
		}
	}
}
