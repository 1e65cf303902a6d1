package udx

import (
	"io"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// A stream that only receives notices that its peer is gone.
func TestReceiverNoticesThatThePeerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		a, b := pair(t, n, lan, lan)
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		readAll(t, b, "")
		write(t, b, "a part")
		if _, err := io.ReadFull(a, make([]byte, len("a part"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // the peer has nothing to say for now
		wantErr(t, "Err while the peer is silent, but there", a.Err(), nil)
		n.setDrop(func(netip.AddrPort, netip.AddrPort, []byte) bool { return true })
		start := time.Now()
		_, err := a.Read(make([]byte, 1))
		wantErr(t, "Read", err, ErrTimeout)
		wantErr(t, "Err", a.Err(), ErrTimeout)
		if took := time.Since(start); took > giveUpAfter+quietAsk {
			t.Errorf("it took %v, want %v", took, giveUpAfter)
		}
	})
}

// An outage that data would survive is survived without data, too; so is a pause of our own process, in which no
// answer can be heard.
func TestReceiverOutlivesAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		a, b := pair(t, n, lan, lan)
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		readAll(t, b, "")
		for range 5 {
			time.Sleep(time.Minute)
			n.setDrop(func(netip.AddrPort, netip.AddrPort, []byte) bool { return true })
			time.Sleep(giveUpAfter - 2*quietAsk - quietTime)
			n.setDrop(nil)
		}
		time.Sleep(time.Minute)
		write(t, b, "all of it")
		if err := b.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		readAll(t, a, "all of it")
	})
}

func TestQuiet(t *testing.T) {
	const s = instant(time.Second)
	for _, row := range []struct {
		name       string
		now, heard instant
		before     quiet
		after      quiet
		ask, gone  bool
	}{
		{"the peer has just spoken", 10 * s, 9 * s, quiet{}, quiet{at: 14 * s}, false, false},
		{"it has been silent", 10 * s, 5 * s, quiet{}, quiet{at: 11 * s, asked: 10 * s, count: 1}, true, false},
		{"it has not answered", 11 * s, 5 * s, quiet{asked: 10 * s, count: 1}, quiet{at: 12 * s, asked: 11 * s, count: 2}, true, false},
		{"it has answered", 11 * s, 10 * s, quiet{asked: 10 * s, count: 3}, quiet{at: 15 * s, asked: 10 * s}, false, false},
		{"after a pause of ours", 1000 * s, 10 * s, quiet{at: 14 * s}, quiet{at: 1001 * s, asked: 1000 * s, count: 1}, true, false},
		{
			"it answers no more", 17 * s, 5 * s,
			quiet{at: 17 * s, asked: 16 * s, count: giveUpCount},
			quiet{at: 17 * s, asked: 16 * s, count: giveUpCount},
			false, true,
		},
		{
			"it may be slow", 16 * s, 5 * s,
			quiet{asked: 15 * s, count: giveUpCount},
			quiet{at: 17 * s, asked: 16 * s, count: giveUpCount + 1},
			true, false,
		},
	} {
		q := row.before
		if ask, gone := q.look(row.now, row.heard); ask != row.ask || gone != row.gone || q != row.after {
			t.Errorf("%s: ask %v, gone %v, %+v, want %v, %v, %+v", row.name, ask, gone, q, row.ask, row.gone, row.after)
		}
	}
}
