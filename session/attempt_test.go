package session

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/punch/lab"
)

// tell writes an account as text.
func tell(t *testing.T, p *Peer) (Attempt, string) {
	t.Helper()
	list := p.Attempts()
	if len(list) == 0 {
		t.Fatal("no attempt is remembered")
	}
	var b strings.Builder
	for _, s := range list[0].Steps {
		b.WriteString(s.After.String() + " " + string(s.Stage) + ": " + s.Text + "\n")
	}
	t.Logf("%s%s\n%s", b.String(), list[0].Strategy, list[0].Remedy)
	return list[0], b.String()
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		i := strings.Index(text, w)
		if i < 0 {
			t.Errorf("%q is missing in\n%s", w, text)
			continue
		}
		text = text[i+len(w):]
	}
}

func TestAttemptsAreExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		w.relay("r", pubR)
		ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
		a, b := w.through(ha, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"))
		if _, err := a.AddPeer(keyOf("nobody")); err != nil {
			t.Fatal(err)
		}
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public()) // b does not dial
		time.Sleep(5 * time.Second)

		at, text := tell(t, a.Peer(b.public()))
		wantWords(t, text, "looking", "answers", "relay "+keyOf("r").Short(), "connected: relay")
		if at.Local != dht.FirewallRandom || at.Remote != dht.FirewallRandom || !at.Connected || at.Incoming || at.Took == 0 {
			t.Errorf("attempt %+v", at)
		}
		wantWords(t, at.Strategy, "only a relay")
		wantWords(t, at.Remedy, "forward a UDP port")
		at, text = tell(t, b.Peer(a.public()))
		wantWords(t, text, "asks", "connected: relay")
		if !at.Incoming {
			t.Error("b does not know that a began")
		}

		a.Peer(keyOf("nobody")).Connect()
		time.Sleep(5 * time.Second)
		at, text = tell(t, a.Peer(keyOf("nobody")))
		wantWords(t, text, "looking", "failed: not announced")
		wantWords(t, at.Remedy, "start omegatun")
		if n := len(a.Peer(keyOf("nobody")).Attempts()); n < 2 || n > rememberAttempts {
			t.Errorf("%d attempts are remembered", n)
		}
	})
}

func TestEveryPairOfNATsHasAStrategy(t *testing.T) {
	kinds := []dht.Firewall{dht.FirewallOpen, dht.FirewallConsistent, dht.FirewallRandom}
	for _, l := range kinds {
		for _, r := range kinds {
			if strategy(l, r) == "" {
				t.Errorf("%v and %v have no strategy", l, r)
			}
		}
	}
}
