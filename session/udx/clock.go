package udx

import "time"

// Clock replaces the time and the goroutines of a [Mux]. With one of its own a simulation runs in a single goroutine:
// repeatable, and faster than time passes. Deadlines of reads and writes stay with the system's clock.
type Clock interface {
	// Now returns the time since some moment. It never goes back.
	Now() time.Duration

	// AfterFunc calls f once after d, or after what Reset says, unless Stop is called before. It does not wait.
	AfterFunc(d time.Duration, f func()) Timer

	// Go calls f soon. It does not call it before it returns.
	Go(f func())
}

// Timer is what [Clock.AfterFunc] returns. *[time.Timer] is one.
type Timer interface {
	Reset(d time.Duration) bool
	Stop() bool
}

func (m *Mux) now() instant {
	if m.clock != nil {
		return instant(m.clock.Now()) + 1
	}
	return instant(time.Since(m.start)) + 1
}

// time returns an instant as a time, zero for never. A Clock that is not the system's began in 1970.
func (m *Mux) time(t instant) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return m.start.Add(time.Duration(t - 1))
}

func (m *Mux) afterFunc(d time.Duration, f func()) Timer {
	if m.clock != nil {
		return m.clock.AfterFunc(d, f)
	}
	return time.AfterFunc(d, f)
}

// run calls f in another goroutine.
func (m *Mux) run(f func()) {
	if m.clock != nil {
		m.clock.Go(f)
		return
	}
	m.wg.Go(f)
}
