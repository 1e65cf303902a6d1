package dht

import "time"

// Clock is where a node has the time from. A simulation that runs thousands of nodes gives them one that jumps
// from event to event. It is safe for concurrent use.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once d has passed, but not before it returns.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer calls a function later. It is what [time.AfterFunc] returns.
type Timer interface {
	// Stop prevents the call, unless it has begun.
	Stop() bool
	// Reset makes the call happen d from now, instead of or after the one set before.
	Reset(d time.Duration) bool
}

// systemClock is the clock of the system.
type systemClock struct{}

func (systemClock) Now() time.Time                            { return time.Now() }
func (systemClock) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
