package session

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"omegatun/dht"
)

func handshakeRequest(n int, from netip.Addr) *dht.HandshakeRequest {
	return &dht.HandshakeRequest{
		Noise: binary.LittleEndian.AppendUint64(nil, uint64(n)), Client: netip.AddrPortFrom(from, 1000),
	}
}

func TestSlots(t *testing.T) {
	now := time.Now()
	home, elsewhere := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")

	t.Run("a retry has the slot of the first request", func(t *testing.T) {
		slots := newSlots()
		s := slots.take(handshakeRequest(1, home), now)
		if s == nil {
			t.Fatal("no slot")
		}
		for range maxWaiting + 1 {
			if again := slots.take(handshakeRequest(1, elsewhere), now); again != nil {
				t.Fatal("a retry got a slot of its own")
			}
		}
		if len(s.waiting) != maxWaiting {
			t.Errorf("%d requests wait for the answer, want %d", len(s.waiting), maxWaiting)
		}
	})
	t.Run("a retired slot is forgotten, and its number used again", func(t *testing.T) {
		slots := newSlots()
		first, second := slots.take(handshakeRequest(1, home), now), slots.take(handshakeRequest(2, home), now)
		slots.retire(first, now)
		if slots.expire(now.Add(slotLife - 1)); len(slots.byMsg) != 2 {
			t.Error("forgotten too early")
		}
		if slots.expire(now.Add(slotLife)); len(slots.byMsg) != 1 {
			t.Error("not forgotten")
		}
		if s := slots.take(handshakeRequest(3, home), now.Add(slotLife)); s == nil || s.id != first.id {
			t.Errorf("the new slot is %+v, want number %d", s, first.id)
		}
		slots.forget(first) // was replaced: nothing happens
		if len(slots.byMsg) != 2 {
			t.Error("forgetting a slot twice frees that of somebody else")
		}
		slots.forget(second)
	})
	t.Run("strangers do not use up what friends need", func(t *testing.T) {
		slots := newSlots()
		slots.befriend(home, now)
		taken := 0
		for n := range 3 * strangerBurst {
			if slots.take(handshakeRequest(n, elsewhere), now) != nil {
				taken++
			}
		}
		if taken != strangerBurst {
			t.Errorf("%d handshakes of strangers taken at once, want %d", taken, strangerBurst)
		}
		if slots.take(handshakeRequest(-1, home), now) == nil {
			t.Error("a friend is refused")
		}
		if slots.take(handshakeRequest(-2, home), now.Add(friendLife-time.Second)) == nil {
			t.Error("a friend is refused later")
		}
	})
	t.Run("the friends remembered are bounded", func(t *testing.T) {
		slots := newSlots()
		for n := range maxFriends + 10 {
			slots.befriend(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), now)
		}
		if len(slots.friends) != maxFriends {
			t.Errorf("%d friends, want %d", len(slots.friends), maxFriends)
		}
	})
	t.Run("the slots are bounded", func(t *testing.T) {
		slots := newSlots()
		at := now
		for n := range maxSlots + 10 {
			at = at.Add(time.Second / strangerRate)
			if got := slots.take(handshakeRequest(n, elsewhere), at) != nil; got != (n < maxSlots) {
				t.Fatalf("slot %d: %t", n, got)
			}
		}
	})
	t.Run("nobody is answered after the end", func(t *testing.T) {
		slots := newSlots()
		s := slots.take(handshakeRequest(1, home), now)
		slots.close()
		slots.retire(s, now)
		slots.expire(now.Add(slotLife))
		if slots.take(handshakeRequest(2, home), now) != nil {
			t.Error("a handshake was taken after close")
		}
	})
}
