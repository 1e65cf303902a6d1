package daemon

import (
	"context"
	"slices"
	"sync"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// subscriberBacklog is how many events may wait for one subscriber. Whoever is that slow is cut off.
const subscriberBacklog = 1024

// hub passes events on, and keeps those that still hold for whoever comes later. The zero value is ready. All methods
// are safe for concurrent use; none blocks.
type hub struct {
	mu     sync.Mutex // guards the fields below
	held   []control.Event
	subs   map[chan control.Event]bool
	closed bool
}

// emit passes e on. With hold, e also replaces what is held of its kind, for its key.
func (h *hub) emit(e control.Event, hold bool) {
	e.Schema = control.Schema
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	if hold {
		i := slices.IndexFunc(h.held, func(o control.Event) bool {
			return o.Event == e.Event && o.Key == e.Key && (e.Event != "note" || o.Reason == e.Reason)
		})
		if i < 0 {
			h.held = append(h.held, e)
		} else {
			h.held[i] = e
		}
	}
	for s := range h.subs {
		select {
		case s <- e:
		default:
			delete(h.subs, s)
			close(s)
		}
	}
}

// forget drops what is held about a peer.
func (h *hub) forget(k key.Public) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = slices.DeleteFunc(h.held, func(e control.Event) bool { return e.Event == "peer" && e.Key == k })
}

// last returns the event that is held about a peer.
func (h *hub) last(k key.Public) (control.Event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.held, func(e control.Event) bool { return e.Event == "peer" && e.Key == k })
	if i < 0 {
		return control.Event{}, false
	}
	return h.held[i], true
}

// subscribe returns the events that hold, and a channel of those to come. The channel is closed when the hub is, or
// if it is not emptied in time. The caller ends with unsubscribe.
func (h *hub) subscribe() (held []control.Event, events chan control.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	events = make(chan control.Event, subscriberBacklog)
	if h.closed {
		close(events)
		return nil, events
	}
	if h.subs == nil {
		h.subs = make(map[chan control.Event]bool)
	}
	h.subs[events] = true
	return slices.Clone(h.held), events
}

func (h *hub) unsubscribe(events chan control.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs[events] {
		delete(h.subs, events)
		close(events)
	}
}

// close ends all channels, after what is in them.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		close(s)
	}
	h.subs = nil
}

// each calls do for what holds and then for what comes, until the hub is closed, ctx ends or do returns an error.
func (h *hub) each(ctx context.Context, do func(control.Event) error) error {
	held, events := h.subscribe()
	defer h.unsubscribe(events)
	for _, e := range held {
		if err := do(e); err != nil {
			return err
		}
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				h.mu.Lock()
				defer h.mu.Unlock()
				if !h.closed {
					return exit.New(exit.Other, "events came faster than they were read")
				}
				return nil
			}
			if err := do(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
