package punch

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/punch/lab"
)

// meetMany lets pairs meet in count worlds and returns the times of success in order, and the errors.
func meetMany(
	t *testing.T, count int, server, client string, change func(w *world),
) (took []time.Duration, failed []error) {
	t.Helper()
	for seed := range count {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, delayed(uint64(seed)), server, client)
				if change != nil {
					change(w)
				}
				if o := w.meet(t); o.err != nil {
					failed = append(failed, o.err)
				} else {
					took = append(took, o.took)
				}
			})
		})
	}
	slices.Sort(took)
	return took, failed
}

// lossy makes the access links of both sides lose packets in both directions.
func lossy(loss float64) func(w *world) {
	return func(w *world) {
		w.client.host.SetLink(lab.Link{Loss: loss})
		w.server.host.SetLink(lab.Link{Loss: loss})
	}
}

func TestLoss(t *testing.T) {
	tests := []struct {
		loss        float64
		tries       int
		atLeast     int
		median, max time.Duration
	}{
		{0.05, 40, 40, 200 * time.Millisecond, 2 * time.Second},
		{0.2, 40, 40, 700 * time.Millisecond, 5 * time.Second},
		{0.5, 40, 36, 8 * time.Second, 30 * time.Second}, // one in eighty fails, over 2,000 tries
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%v %%", 100*tt.loss), func(t *testing.T) {
			took, failed := meetMany(t, tt.tries, "linux", "linux", lossy(tt.loss))
			t.Logf("%d of %d, median %v, max %v", len(took), tt.tries, took[len(took)/2], took[len(took)-1])
			if len(took) < tt.atLeast || took[len(took)/2] > tt.median || took[len(took)-1] > tt.max {
				t.Errorf("errors: %v", failed)
			}
		})
	}
}

func TestFarApart(t *testing.T) {
	took, failed := meetMany(t, 1, "linux", "eimrand", func(w *world) {
		w.net.SetLink(lab.Link{Latency: 200 * time.Millisecond}) // 400 ms there and back
	})
	if len(failed) > 0 || took[0] > 1100*time.Millisecond {
		t.Errorf("took %v, %v", took, failed)
	}
}

// TestShallowInternet has probes of low TTL arrive.
func TestShallowInternet(t *testing.T) {
	for _, kind := range []string{"linux", "fw", "eimrand"} {
		synctest.Test(t, func(t *testing.T) {
			cfg := delayed(1)
			cfg.Hops = -1
			w := newWorld(t, cfg, kind, kind)
			if o := w.meet(t); o.err != nil || o.took > 200*time.Millisecond {
				t.Errorf("%s: %+v", kind, o)
			}
		})
	}
}

func TestSmallNetworks(t *testing.T) {
	for nodes := 3; nodes >= 1; nodes-- {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, delayed(1), "linux", "linux")
			w.client.known = w.client.known[:nodes]
			w.server.known = w.server.known[:nodes]
			if o := w.meet(t); o.err != nil || o.took > 300*time.Millisecond {
				t.Errorf("%d nodes: %+v", nodes, o)
			}
		})
	}
}

func TestOneHomeWithHairpin(t *testing.T) {
	for _, hairpin := range []bool{true, false} {
		t.Run(fmt.Sprint(hairpin), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, delayed(1), "linux", "linux")
				cfg := lab.RandomPort(nextPublic(9))
				cfg.Hairpin = hairpin
				home := w.net.NAT("one home", cfg)
				w.client.host.Move(home, netip.MustParseAddr("192.168.9.10"))
				w.server.host.Move(home, netip.MustParseAddr("192.168.9.11"))
				o := w.meet(t)
				if (o.err == nil) != hairpin {
					t.Errorf("meet: %+v", o)
				}
				if !hairpin && !errors.Is(o.err, ErrNoProbe) {
					t.Errorf("failed with %v, want ErrNoProbe", o.err)
				}
			})
		})
	}
}

// blockProbes loses every probe and echo.
func blockProbes(p lab.Packet) bool { return len(p.Payload) < 10 }

func TestFailures(t *testing.T) {
	contains := func(word string) func(p lab.Packet) bool {
		return func(p lab.Packet) bool { return strings.Contains(string(p.Payload), `"`+word+`"`) }
	}
	nowhere := []netip.AddrPort{netip.MustParseAddrPort("44.0.0.1:1"), netip.MustParseAddrPort("44.0.0.2:1")}
	tests := []struct {
		name   string
		change func(w *world)
		want   error
		stage  Stage
		within time.Duration
	}{
		{"no probe arrives", func(w *world) { w.net.Drop(blockProbes) }, ErrNoProbe, StagePunching, 15 * time.Second},
		{"the server is silent", func(w *world) { w.net.Drop(contains("asked")) }, ErrSilent, StageAsking, talkTime},
		{"the server is silent from round one on", func(w *world) {
			answers := 0
			w.net.Drop(func(p lab.Packet) bool {
				if contains("tell")(p) {
					answers++
				}
				return blockProbes(p) || answers > 1 && contains("tell")(p)
			})
		}, ErrSilent, StageInviting, talkTime},
		{
			"no node says how it sees the server", func(w *world) { w.server.known = nowhere }, ErrRemoteUnknown,
			StageAsking, 10 * time.Second,
		},
		{"no node says how it sees the client", func(w *world) {
			w.client.known = nowhere
			w.net.Drop(func(p lab.Packet) bool { return blockProbes(p) || contains("tell")(p) })
		}, ErrSilent, StageAsking, talkTime},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, delayed(1), "linux", "linux")
				tt.change(w)
				o := w.meet(t)
				var failed *FailedError
				if !errors.As(o.err, &failed) || !errors.Is(o.err, tt.want) || failed.Stage != tt.stage ||
					failed.After > tt.within {
					t.Errorf("meet: %v, want %v while %v within %v", o.err, tt.want, tt.stage, tt.within)
				}
			})
		})
	}
}

// The server is told why a client gives up, although the first copy of that message is lost and the client is closed at once.
func TestLastWordsArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, delayed(1), "sym", "sym")
		seen := make(map[string]int)
		w.net.Drop(func(p lab.Packet) bool {
			if !strings.Contains(string(p.Payload), `"ask"`) {
				return false
			}
			seen[string(p.Payload)]++
			return seen[string(p.Payload)] == 1 && len(seen) > 1
		})
		o := w.meet(t)
		if !errors.Is(o.err, ErrBothRandom) || o.server.Remote != dht.FirewallRandom || o.server.Local != dht.FirewallRandom {
			t.Errorf("meet: %v; the server knows %+v", o.err, o.server)
		}
	})
}

func TestSocketsRunOut(t *testing.T) {
	took, failed := meetMany(t, 3, "linux", "sym", func(w *world) { w.client.noMore = 100 })
	if len(failed) > 1 {
		t.Errorf("with 100 sockets: %v, %v", took, failed)
	}
}

func TestFirstSocketFails(t *testing.T) {
	broken := errors.New("no more sockets")
	open := func() (Socket, error) { return nil, broken }
	d := newSide(t, nil, nil)
	if _, err := NewClient(ClientConfig{Node: d, OpenSocket: open, Relays: make([]dht.RelayPair, 1)}); !errors.Is(err, broken) {
		t.Errorf("NewClient: %v", err)
	}
	if _, err := NewServer(ServerConfig{Node: d, OpenSocket: open}); !errors.Is(err, broken) {
		t.Errorf("NewServer: %v", err)
	}
	if _, err := NewClient(ClientConfig{Node: d, OpenSocket: open}); !errors.Is(err, ErrNoRelays) {
		t.Errorf("NewClient without relays: %v", err)
	}
}

func TestLimit(t *testing.T) {
	l := NewLimit(1)
	if !l.acquire() {
		t.Fatal("no place in a new limit")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, delayed(1), "linux", "sym")
		w.limit = l
		if o := w.meet(t); !errors.Is(o.err, ErrBusy) {
			t.Errorf("meet while the limit is reached: %v, want ErrBusy", o.err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, delayed(1), "linux", "sym")
		w.limit = l
		time.AfterFunc(2*time.Second, l.release)
		if o := w.meet(t); o.err == nil && o.took < 1500*time.Millisecond {
			t.Errorf("meet: %+v, though the limit was reached", o)
		}
	})
	l = NewLimit(2) // both sides of one meeting share it here
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, delayed(1), "linux", "sym")
			w.limit = l
			if o := w.meet(t); errors.Is(o.err, ErrBusy) {
				t.Errorf("meet: %v: a place was not given back", o.err)
			}
		})
	}
	for i, want := range []bool{true, true, false} {
		if got := l.acquire(); got != want {
			t.Errorf("place %d of two is free: %v, want %v", i+1, got, want)
		}
	}
}

// TestOneWayPathsAreNotTheEnd has a client whose router lets everybody in: probes reach it on ports over which its
// answers do not get back.
func TestOneWayPathsAreNotTheEnd(t *testing.T) {
	took, failed := meetMany(t, 20, "linux", "symeif", nil)
	if len(failed) > 0 {
		t.Errorf("%d met, %v", len(took), failed)
	}
}
