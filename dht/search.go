package dht

import (
	"context"
	"iter"
	"net/netip"
	"time"

	"omegatun/dht/key"
)

// Contact is a member of the network.
type Contact struct {
	ID   key.Target
	Addr netip.AddrPort
}

// QueryStats says what a query cost.
type QueryStats struct {
	Requests int // nodes asked
	Answers  int // of these, how many answered
	Found    int // of these, how many had what was looked for
	// Hops is how many nodes, one naming the next, led to the closest one found. The first were known: 0.
	Hops int
}

// Query is a running query: nodes ever closer to a target are asked, until the closest ones have answered.
// Announce and unannounce queries then store there. All methods are safe for concurrent use, but one goroutine
// at a time gets the answers.
//
// A Query ends by itself, when its context does, with [Query.Cancel], or with the node. It has no goroutine.
type Query[T any] struct {
	n     *Node
	parse func(found) (T, bool) // answers that do not parse are left out

	unhook func() bool   // of the context
	more   chan struct{} // has room for one
	done   chan struct{}

	// Guarded by n.mu.
	lookup   *lookup
	calls    []*call // that store
	ready    []T     // answers not handed out yet
	answered bool    // anyone has
	found    int     // answers that parsed
	over     bool
	closest  []found
	stored   Stored
	err      error
}

// startQuery starts a query. When the closest nodes are known, what commit returns is sent to each with a token,
// if commit is not nil. first are answers that we know ourselves.
func startQuery[T any](
	ctx context.Context, n *Node, spec lookupSpec, parse func(found) (T, bool), commit func(found) (callSpec, bool), first ...T,
) *Query[T] {
	q := &Query[T]{n: n, parse: parse, more: make(chan struct{}, 1), done: make(chan struct{}), ready: first}
	spec.found = func(_ time.Time, f found) {
		q.answered = true
		if r, ok := q.parse(f); ok {
			q.ready = append(q.ready, r)
			q.found++
			q.wake()
		}
	}
	known := len(first) > 0
	n.do(func(now time.Time) {
		q.lookup = n.lookup(now, spec, func(now time.Time, closest []found, err error) {
			q.closest = closest
			switch {
			case err != nil:
				q.end(now, err)
			case !q.answered && !known:
				q.end(now, ErrNoNodes)
			case commit == nil:
				q.end(now, nil)
			default:
				q.store(now, spec.target, commit)
			}
		})
	})
	// The query runs already, and may even be over; so this has a lock of its own.
	unhook := context.AfterFunc(ctx, func() {
		n.do(func(now time.Time) { q.end(now, context.Cause(ctx)) })
	})
	n.mu.Lock()
	q.unhook = unhook
	over := q.over
	n.mu.Unlock()
	if over {
		unhook()
	}
	return q
}

// failedQuery returns a query that is over and has asked nobody.
func failedQuery[T any](n *Node, err error) *Query[T] {
	q := &Query[T]{n: n, lookup: &lookup{query: new(query), over: true}, over: true, err: err, done: make(chan struct{})}
	close(q.done)
	return q
}

// store sends what makes returns to each of the closest nodes, with its token.
func (q *Query[T]) store(now time.Time, target key.Target, makes func(f found) (callSpec, bool)) {
	if len(q.closest) == 0 {
		q.end(now, ErrNoNodes)
		return
	}
	var specs []callSpec
	for _, f := range q.closest {
		if !f.token.set {
			continue
		}
		if c, ok := makes(f); ok {
			c.to, c.member, c.token, c.target, c.retries = f.addr, true, f.token, some(target), defaultRetries
			specs = append(specs, c)
		}
	}
	q.stored.Closest = len(specs)
	left, accepted := len(specs), make([]bool, len(specs))
	var failure error
	conclude := func(now time.Time) {
		for i, ok := range accepted {
			if ok {
				q.stored.Nodes = append(q.stored.Nodes, specs[i].to)
			}
		}
		switch {
		case len(q.stored.Nodes) > 0 || len(specs) == 0:
			q.end(now, nil)
		case q.stored.Refused != nil:
			q.end(now, q.stored.Refused)
		default:
			q.end(now, failure)
		}
	}
	if left == 0 {
		conclude(now)
		return
	}
	for i, spec := range specs {
		q.calls = append(q.calls, q.n.call(now, spec, func(now time.Time, a *answer, err error) {
			switch {
			case err != nil:
				failure = err
			case a.code != 0:
				q.stored.Refused = &ReplyError{Code: a.code}
			default:
				accepted[i] = true
			}
			if left--; left == 0 {
				conclude(now)
			}
		}))
	}
}

// end ends the query. n.mu is held.
func (q *Query[T]) end(now time.Time, err error) {
	if q.over {
		return
	}
	q.over, q.err = true, err
	q.lookup.cancel(now)
	for _, c := range q.calls {
		q.n.cancel(now, c)
	}
	if q.unhook != nil {
		q.unhook()
	}
	close(q.done)
}

func (q *Query[T]) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// Done returns a channel that is closed when the query is over.
func (q *Query[T]) Done() <-chan struct{} { return q.done }

// All yields the answers as they come, each once, and ends with the query. Breaking out of the loop cancels the
// query. The last pair has an error if the query did not run to its end: its context ended, it was canceled, the
// node is closed or suspended, or nobody answered ([ErrNoNodes]); or if nothing could be stored.
func (q *Query[T]) All() iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			q.n.mu.Lock()
			ready, over, err := q.ready, q.over, q.err
			q.ready = nil
			q.n.mu.Unlock()
			for _, r := range ready {
				if !yield(r, nil) {
					q.Cancel()
					return
				}
			}
			if over {
				if err != nil {
					var none T
					yield(none, err)
				}
				return
			}
			select {
			case <-q.more:
			case <-q.done:
			}
		}
	}
}

// first returns the first answer and ends the query; [ErrNotFound] if it ends without one.
func (q *Query[T]) first() (T, error) {
	next, stop := iter.Pull2(q.All())
	defer stop()
	r, err, ok := next()
	if !ok {
		err = ErrNotFound
	}
	return r, err
}

// Wait waits until the query is over, and returns the error that All would end with. Answers stay to be had by
// All.
func (q *Query[T]) Wait() error {
	<-q.done
	return q.err
}

// Cancel ends the query, if it is not over. Its error is [context.Canceled] then.
func (q *Query[T]) Cancel() {
	q.n.do(func(now time.Time) { q.end(now, context.Canceled) })
}

// Closest returns the nodes closest to the target that answered, nearest first, at most twenty; nil before the
// query is done. They are not simply the nearest: see the package comment on crowds.
func (q *Query[T]) Closest() []Contact {
	q.n.mu.Lock()
	defer q.n.mu.Unlock()
	var nodes []Contact
	for _, f := range q.closest {
		nodes = append(nodes, Contact{ID: f.id, Addr: f.addr})
	}
	return nodes
}

// Stored says how an announce or unannounce query, once done, went; it is the zero value for others.
func (q *Query[T]) Stored() Stored {
	q.n.mu.Lock()
	defer q.n.mu.Unlock()
	return q.stored
}

// Stats says what the query cost so far.
func (q *Query[T]) Stats() QueryStats {
	q.n.mu.Lock()
	defer q.n.mu.Unlock()
	s := QueryStats{Requests: q.lookup.requests, Answers: q.lookup.answered, Found: q.found}
	if len(q.lookup.closest) > 0 {
		s.Hops = q.lookup.closest[0].hops
	}
	return s
}
