package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/session/protomux"
	"omegatun/session/udx"
)

func timeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// recordedFrame is a frame of testdata/conversation.json.
type recordedFrame struct{ From, Frame string }

type recordedConversation struct {
	Client1 []recordedFrame `json:"client1_frames"`
	Client2 []recordedFrame `json:"client2_frames"`
}

func TestRelaySaysWhatTheReferenceSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v recordedConversation
		load(t, "conversation.json", &v)
		r := newTestRelay(t, Config{})
		ends := make([]*conn, 2)
		for i := range ends {
			ends[i], _ = r.serve(keyOf(byte(0x11*(i+1))), netip.Addr{})
			defer ends[i].Close()
		}
		// play writes what the client has sent, and reads what the relay had answered, up to a number of frames.
		at := [2]int{}
		play := func(client, n int) {
			t.Helper()
			frames := [][]recordedFrame{v.Client1, v.Client2}[client]
			for _, f := range frames[at[client] : at[client]+n] {
				if f.From != "server" {
					ends[client].WriteMessage(unhex(t, f.Frame))
					synctest.Wait()
					continue
				}
				select {
				case b := <-ends[client].in.messages:
					if got := fmt.Sprintf("%x", b); got != f.Frame {
						t.Fatalf("to client %d: %s, recorded %s", client+1, got, f.Frame)
					}
				default:
					t.Fatalf("nothing was said to client %d, recorded %s", client+1, f.Frame)
				}
			}
			at[client] += n
		}
		synctest.Wait()
		play(0, 3) // opens, and the first pair
		play(1, 4) // opens, the second pair, and the answer
		play(0, 1) // the answer
		if st := r.Stats(); st.Links != 1 || st.Waiting != 0 {
			t.Errorf("%d links, %d tokens, want 1, 0", st.Links, st.Waiting)
		}
		play(0, 1) // another token
		if st := r.Stats(); st.Waiting != 1 {
			t.Errorf("%d tokens, want 1", st.Waiting)
		}
		play(0, 1) // cancelled
		if st := r.Stats(); st.Links != 1 || st.Waiting != 0 {
			t.Errorf("%d links, %d tokens, want 1, 0", st.Links, st.Waiting)
		}
		play(0, 1) // unpaired
		if st := r.Stats(); st.Links != 0 {
			t.Errorf("%d links, want 0", st.Links)
		}
		play(1, 1) // close
		for i, frames := range [][]recordedFrame{v.Client1, v.Client2} {
			if at[i] != len(frames) || len(ends[i].in.messages) > 0 {
				t.Errorf("client %d: %d of %d frames, %d more were said", i+1, at[i], len(frames), len(ends[i].in.messages))
			}
		}
		r.ids.wantHeld(t, 0, "after all")
		if st := r.Stats(); st.Clients != 1 {
			t.Errorf("%d clients, want the one that has not closed", st.Clients)
		}
	})
}

func TestClientSaysWhatTheReferenceSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v recordedConversation
		load(t, "conversation.json", &v)
		for n, frames := range [][]recordedFrame{v.Client1, v.Client2} {
			mine, theirs := stream(16)
			mux := protomux.New(mine, protomux.Config{Protocols: []string{Protocol}})
			defer mux.Close()
			theirs.WriteMessage(unhex(t, frames[0].Frame)) // the relay opens first
			synctest.Wait()
			c, err := NewClient(mux, keyOf(byte(0x11*(n+1))))
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			ask := func(initiator bool, token byte, stream, want udx.ID, wantErr error) {
				wg.Go(func() {
					id, err := c.Pair(t.Context(), initiator, Token(keyOf(token)), stream)
					if id != want || !errors.Is(err, wantErr) {
						t.Errorf("Pair: %d, %v, want %d, %v", id, err, want, wantErr)
					}
				})
				synctest.Wait()
			}
			steps := [][]func(){{ // before each of its frames
				func() {},
				func() { ask(true, 0x77, 501, 1001, nil) },
				func() { ask(true, 0x88, 503, 0, ErrCancelled) },
				func() { c.Unpair(t.Context(), Token(keyOf(0x88))) },
				func() { c.Unpair(t.Context(), Token(keyOf(0x77))) },
			}, {
				func() {},
				func() { ask(false, 0x77, 502, 1000, nil) },
				func() { c.Close() },
			}}[n]
			for _, f := range frames[1:] {
				if f.From == "server" {
					theirs.WriteMessage(unhex(t, f.Frame))
					synctest.Wait()
					continue
				}
				steps[0]()
				steps = steps[1:]
				synctest.Wait()
				select {
				case b := <-theirs.in.messages:
					if got := fmt.Sprintf("%x", b); got != f.Frame {
						t.Fatalf("client %d: %s, recorded %s", n+1, got, f.Frame)
					}
				default:
					t.Fatalf("client %d says nothing, recorded %s", n+1, f.Frame)
				}
			}
			wg.Wait()
			c.Close()
		}
	})
}

func TestPairedClientsReachEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, Config{})
		p := r.pair(r.client(1), r.client(2))
		a, b := addrOf(1, 7000), addrOf(2, 7000)
		r.forward(a, packet(p.idA, udx.FlagHeartbeat, ""))
		r.forward(b, packet(p.idB, udx.FlagData, "hi"),
			sent{b, packet(502, udx.FlagHeartbeat, "")}, sent{a, packet(501, udx.FlagData, "hi")})
		r.forward(a, packet(p.idA, udx.FlagMessage, "sealed"), sent{b, packet(502, udx.FlagMessage, "sealed")})
		r.forward(addrOf(3, 7000), packet(p.idA, udx.FlagData, "forged"))
		if st := r.Stats(); st.Clients != 2 || st.Links != 1 || st.Paired != 1 || st.Packets != 3 || st.Bytes != 68 {
			t.Errorf("stats %+v", st)
		}
	})
}

func TestWhatEndsALink(t *testing.T) {
	for _, tc := range []struct {
		name string
		act  func(r *testRelay, p paired)
	}{
		{"unpair by the initiator", func(r *testRelay, p paired) { p.a.Unpair(r.t.Context(), p.token) }},
		{"unpair by the responder", func(r *testRelay, p paired) { p.b.Unpair(r.t.Context(), p.token) }},
		{"the channel closes", func(_ *testRelay, p paired) { p.a.Close() }},
		{"the control connection closes", func(_ *testRelay, p paired) { p.b.conn.Close() }},
		{"a message that is none", func(r *testRelay, p paired) { p.a.ch.Send(r.t.Context(), messagePair, []byte{1}) }},
		{"destroy", func(r *testRelay, p paired) {
			r.Receive(r.sock, packet(p.idA, udx.FlagDestroy, ""), addrOf(1, 7000))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newTestRelay(t, Config{})
				p := r.pair(r.client(1), r.client(2))
				other := r.pair(r.client(3), r.client(4))
				r.ids.wantHeld(t, 4, "by two links")
				tc.act(r, p)
				synctest.Wait()
				r.ids.wantHeld(t, 2, "by the link that is left")
				if r.Receive(r.sock, packet(p.idA, 0, ""), addrOf(1, 7000)) || r.Receive(r.sock, packet(p.idB, 0, ""), addrOf(2, 7000)) {
					t.Error("the link lives")
				}
				if !r.Receive(r.sock, packet(other.idA, 0, ""), addrOf(3, 7000)) {
					t.Error("another link has ended with it")
				}
				if st := r.Stats(); st.Links != 1 || r.registry.linked != 1 {
					t.Errorf("%d links, %d counted, want 1", st.Links, r.registry.linked)
				}
			})
		})
	}
}

func TestTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, Config{})
		a, b := r.client(1), r.client(2)
		token := NewToken()
		a.ch.Send(t.Context(), messagePair, pair{token: token, stream: 1}.append(nil))
		time.Sleep(19 * time.Second)
		if st := r.Stats(); st.Waiting != 1 {
			t.Errorf("after 19 s: %d tokens wait, want 1", st.Waiting)
		}
		time.Sleep(2 * time.Second)
		if st := r.Stats(); st.Waiting != 0 || st.Expired != 1 {
			t.Errorf("after 21 s: %d tokens wait, %d expired, want 0, 1", st.Waiting, st.Expired)
		}
		ctx, cancel := timeout(t, 15*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := b.Pair(ctx, true, token, 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 15*time.Second {
			t.Errorf("Pair with a token that expired: %v after %v, want the deadline", err, time.Since(start))
		}
		synctest.Wait()
		if st := r.Stats(); st.Waiting != 0 {
			t.Errorf("%d tokens wait for a client that gave up, want 0", st.Waiting)
		}
	})
}

func TestPairIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, Config{})
		a, b, thief := r.client(1), r.client(2), r.client(3)
		token := NewToken()
		got := make(chan udx.ID, 1)
		go func() {
			id, _ := a.Pair(t.Context(), true, token, 501)
			got <- id
		}()
		synctest.Wait()
		if _, err := a.Pair(t.Context(), true, token, 502); !errors.Is(err, ErrPairing) {
			t.Errorf("Pair with a token that is being paired: %v, want ErrPairing", err)
		}
		// The place is taken, whoever asks for it again.
		thief.ch.Send(t.Context(), messagePair, pair{initiator: true, token: token, stream: 666}.append(nil))
		synctest.Wait()
		id, err := b.Pair(t.Context(), false, token, 502)
		if err != nil {
			t.Fatal(err)
		}
		first := <-got
		a.ch.Send(t.Context(), messagePair, pair{initiator: true, token: token, stream: 501}.append(nil)) // once more
		synctest.Wait()
		if st := r.Stats(); st.Links != 1 || st.Waiting != 0 || first == id {
			t.Errorf("%d links, %d tokens, ids %d and %d", st.Links, st.Waiting, first, id)
		}
	})
}

func TestClientsOwnLimits(t *testing.T) {
	wait := func(r *testRelay, c *served, initiator bool, token Token) (err error) {
		ctx, cancel := timeout(r.t, 5*time.Second)
		defer cancel()
		_, err = c.Pair(ctx, initiator, token, 1)
		return err
	}
	t.Run("tokens", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newTestRelay(t, Config{WaitingPerKey: 2})
			a, again, b := r.client(1), r.client(1), r.client(2)
			for range 2 {
				a.ch.Send(t.Context(), messagePair, pair{token: NewToken()}.append(nil))
			}
			synctest.Wait()
			if err := wait(r, again, true, NewToken()); !errors.Is(err, ErrRefused) {
				t.Errorf("Pair beyond the limit, over another connection: %v, want ErrRefused", err)
			}
			if err := <-again.done; !errors.Is(err, errLimit) {
				t.Errorf("Serve: %v, want errLimit", err)
			}
			if err := wait(r, a, true, NewToken()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Pair beyond the limit, beside tokens that wait: %v, want the deadline", err)
			}
			token := NewToken()
			b.ch.Send(t.Context(), messagePair, pair{token: token}.append(nil))
			synctest.Wait()
			if err := wait(r, a, true, token); err != nil {
				t.Errorf("Pair with one who waits, at the limit of own tokens: %v", err)
			}
			a.Close()
			synctest.Wait()
			if err := wait(r, r.client(1), true, NewToken()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Pair after the others are gone: %v, want the deadline", err)
			}
		})
	})
	t.Run("links", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newTestRelay(t, Config{LinksPerKey: 2})
			a := r.client(1)
			r.pair(a, r.client(2))
			p := r.pair(a, r.client(3))
			b := r.client(4)
			token := NewToken()
			b.ch.Send(t.Context(), messagePair, pair{token: token}.append(nil))
			synctest.Wait()
			if err := wait(r, a, true, token); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("third link: %v, want the deadline", err)
			}
			a.Unpair(t.Context(), p.token)
			synctest.Wait()
			r.pair(a, b)
			if st := r.Stats(); st.Links != 2 {
				t.Errorf("%d links, want 2", st.Links)
			}
		})
	})
	t.Run("links while it waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newTestRelay(t, Config{LinksPerKey: 1})
			a, b, c := r.client(1), r.client(2), r.client(3)
			token := NewToken()
			a.ch.Send(t.Context(), messagePair, pair{token: token}.append(nil))
			synctest.Wait()
			r.pair(a, b)
			if err := wait(r, c, true, token); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Pair with a client that is at its limit: %v, want the deadline", err)
			}
			if st := r.Stats(); st.Links != 1 || st.Waiting != 0 || r.registry.linked != 1 {
				t.Errorf("%+v, %d links counted", st, r.registry.linked)
			}
		})
	})
	t.Run("links of all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newTestRelay(t, Config{Links: 1})
			r.pair(r.client(1), r.client(2))
			if err := wait(r, r.client(3), true, NewToken()); !errors.Is(err, ErrRefused) {
				t.Errorf("Pair beyond the limit: %v, want ErrRefused", err)
			}
		})
	})
}

func TestClientThatDoesNotReadIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, Config{WaitingPerKey: 1 << 20, LinksPerKey: 1 << 20, Links: 1 << 20})
		a := r.client(1)
		deaf, done := r.serve(keyOf(2), netip.Addr{})
		deaf.WriteMessage(unhex(t, "0001010b"+fmt.Sprintf("%x", Protocol)+"20"+strings.Repeat("02", 32)))
		for i := 0; len(done) == 0; i++ { // both ask for the same tokens; a reads the answers
			if i == 1<<20 {
				t.Fatal("still served")
			}
			p := pair{token: Token{byte(i), byte(i >> 8), byte(i >> 16)}, stream: 1}
			select {
			case deaf.out.messages <- append([]byte{1, 0}, p.append(nil)...):
			case <-deaf.in.ended:
			}
			p.initiator = true
			if err := a.ch.Send(t.Context(), messagePair, p.append(nil)); err != nil {
				t.Fatal(err)
			}
			if i%100 == 0 {
				synctest.Wait()
			}
		}
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v, want that it gave up", err)
		}
		if st := r.Stats(); st.Clients != 1 {
			t.Errorf("%d clients are served, want the one that reads", st.Clients)
		}
		a.Close()
		synctest.Wait()
		r.ids.wantHeld(t, 0, "at the end")
	})
}

func TestServerCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, Config{})
		p := r.pair(r.client(1), r.client(2))
		r.Server.Close()
		r.Server.Close()
		r.ids.wantHeld(t, 0, "after Close")
		for _, c := range []*served{p.a, p.b} {
			if err := <-c.done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Serve: %v, want ErrClosed", err)
			}
			<-c.Done()
			if err := c.Err(); !errors.Is(err, ErrRefused) {
				t.Errorf("Client.Err: %v, want ErrRefused", err)
			}
		}
		if r.Receive(r.sock, packet(p.idA, 0, ""), addrOf(1, 7000)) {
			t.Error("a link outlives its server")
		}
		mine, theirs := stream(16)
		defer theirs.Close()
		mux := protomux.New(mine, protomux.Config{})
		defer mux.Close()
		err := r.Serve(t.Context(), mux, Control{})
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve after Close: %v, want ErrClosed", err)
		}
	})
}

func TestClientErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		act  func(c *Client, mux *protomux.Mux, relay *conn)
		want error
	}{
		{"closed", func(c *Client, _ *protomux.Mux, _ *conn) { c.Close() }, net.ErrClosed},
		{"the connection ends", func(_ *Client, _ *protomux.Mux, relay *conn) { relay.Close() }, ErrRefused},
		{"the connection is closed", func(_ *Client, mux *protomux.Mux, _ *conn) { mux.Close() }, net.ErrClosed},
		{"no relay", func(_ *Client, _ *protomux.Mux, relay *conn) { relay.WriteMessage([]byte{0, 2, 1}) }, ErrRefused},
		{"the relay talks nonsense", func(_ *Client, _ *protomux.Mux, relay *conn) {
			relay.WriteMessage(append([]byte{0, 1, 1}, append(append([]byte{11}, Protocol...), append([]byte{32}, make([]byte, 32)...)...)...))
			relay.WriteMessage([]byte{1, 0, 1})
		}, ErrMessage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mine, relay := stream(16)
				mux := protomux.New(mine, protomux.Config{})
				defer mux.Close()
				defer relay.Close()
				c, err := NewClient(mux, keyOf(0))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				result := make(chan error, 1)
				go func() {
					_, err := c.Pair(t.Context(), true, NewToken(), 1)
					result <- err
				}()
				synctest.Wait()
				tc.act(c, mux, relay)
				if err := <-result; !errors.Is(err, tc.want) {
					t.Errorf("Pair: %v, want %v", err, tc.want)
				}
				<-c.Done()
				if err := c.Err(); !errors.Is(err, tc.want) {
					t.Errorf("Err: %v, want %v", err, tc.want)
				}
				if _, err := c.Pair(t.Context(), true, NewToken(), 1); !errors.Is(err, tc.want) {
					t.Errorf("Pair afterwards: %v, want %v", err, tc.want)
				}
				if err := c.Unpair(t.Context(), NewToken()); !errors.Is(err, tc.want) {
					t.Errorf("Unpair afterwards: %v, want %v", err, tc.want)
				}
			})
		})
	}
}

func TestClientIgnoresWhatItDidNotAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, relay := stream(16)
		mux := protomux.New(mine, protomux.Config{})
		defer mux.Close()
		c, err := NewClient(mux, keyOf(7))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		relay.WriteMessage(<-relay.in.messages) // the same open back
		token := NewToken()
		result := make(chan udx.ID, 1)
		go func() {
			id, _ := c.Pair(t.Context(), true, token, 1)
			result <- id
		}()
		synctest.Wait()
		for _, p := range []pair{
			{initiator: false, token: token, stream: 66},
			{initiator: true, token: NewToken(), stream: 67},
			{initiator: true, token: token, stream: 5},
			{initiator: true, token: token, stream: 68},
		} {
			relay.WriteMessage(append([]byte{1, 0}, p.append(nil)...))
			relay.WriteMessage([]byte{1, 9, 1}) // and messages that do not exist
		}
		if id := <-result; id != 5 {
			t.Errorf("Pair: %d, want 5", id)
		}
	})
}

func TestKnock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := timeout(t, 950*time.Millisecond)
		defer cancel()
		var s heart
		if err := Knock(ctx, &s); err != nil || s.beats != 10 {
			t.Errorf("Knock: %d heartbeats, %v, want 10", s.beats, err)
		}
		s.err = net.ErrClosed
		if err := Knock(t.Context(), &s); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Knock on a closed stream: %v", err)
		}
	})
}

type heart struct {
	beats int
	err   error
}

func (h *heart) Heartbeat() error { h.beats++; return h.err }

func TestBucket(t *testing.T) {
	now := time.Now()
	k := &bucket{rate: 100}
	if !k.take(burstMin, now) || k.take(1, now) {
		t.Error("the first burst is not what it should be")
	}
	if k.take(1, now.Add(-time.Hour)) {
		t.Error("a clock that goes back brings tokens")
	}
	now = now.Add(2 * time.Hour)
	if !k.take(burstMin, now) || k.take(1, now) {
		t.Error("a long pause brings more than a burst, or less")
	}
	if !(&bucket{}).take(1<<40, now) {
		t.Error("the zero bucket has a limit")
	}
}

// FuzzRegistry does random things to a registry, and compares its counts with what there is.
func FuzzRegistry(f *testing.F) {
	f.Add([]byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
	f.Add([]byte("02XY9Z")) // a client is paired with itself, at its limit
	f.Fuzz(func(t *testing.T, script []byte) {
		r := newRegistry()
		r.waitingPerKey, r.linksPerKey, r.links, r.timeout = 2, 2, 4, 10*time.Second
		var sessions []*session
		now := time.Now()
		for _, op := range script {
			pick := func() *session {
				if len(sessions) == 0 {
					return nil
				}
				return sessions[int(op>>4)%len(sessions)]
			}
			s := pick()
			token := Token{op >> 5}
			switch op & 7 {
			case 0:
				s := &session{key: keyOf(op >> 4 & 3)}
				r.enter(s)
				sessions = append(sessions, s)
			case 1, 2, 3:
				if s == nil {
					break
				}
				m, _ := r.pair(s, pair{initiator: op&1 == 0, token: token}, now)
				if m == nil {
					break
				}
				l := &link{token: m.token}
				for i, p := range m.places {
					l.sides[i].owner = p.session
				}
				if op&8 == 0 || !r.link(l) {
					r.uncount(m.places[0].session, m.places[1].session)
				}
			case 4:
				if s != nil {
					if l := r.unpair(s, token); l != nil && (!r.unlink(l) || r.unlink(l)) {
						t.Error("a link ended twice, or not at all")
					}
				}
			case 5:
				if s != nil {
					for _, l := range r.leave(s) {
						r.unlink(l)
					}
					sessions = slices.DeleteFunc(sessions, func(o *session) bool { return o == s })
				}
			case 6:
				now = now.Add(time.Duration(op) * time.Second / 16)
				r.expire(now)
			}
			waiting, links, perAccount := 0, 0, map[*account]int{}
			for _, m := range r.meetings {
				for _, p := range m.places {
					if p != nil {
						waiting++
						if p.session.waiting[m.token] != m || p.session.left {
							t.Error("a token waits for a session that does not know")
						}
					}
				}
			}
			for l := range r.open {
				for i := range l.sides {
					perAccount[l.sides[i].owner.account]++
				}
			}
			for _, s := range sessions {
				waiting -= len(s.waiting)
				links += len(s.links)
				if s.account.links != perAccount[s.account] || s.account.links > 2 || s.account.waiting > 3 {
					t.Errorf("account: %d links, %d tokens, has %d links", s.account.links, s.account.waiting, perAccount[s.account])
				}
			}
			if r.linked != len(r.open) || r.linked > 4 || waiting > 0 || len(r.accounts) > len(sessions) {
				t.Errorf("%d links counted, %d open; %d places too many; %d accounts of %d sessions",
					r.linked, len(r.open), waiting, len(r.accounts), len(sessions))
			}
		}
		for _, s := range sessions {
			for _, l := range r.leave(s) {
				r.unlink(l)
			}
		}
		if len(r.meetings)+len(r.accounts)+len(r.open)+r.linked != 0 {
			t.Errorf("left behind: %d tokens, %d accounts, %d links, %d counted", len(r.meetings), len(r.accounts), len(r.open), r.linked)
		}
	})
}
