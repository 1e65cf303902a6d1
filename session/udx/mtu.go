package udx

import "time"

const (
	mtuProbes  = 3                // losses at one size before the path is taken not to carry it
	mtuStep    = 16               // sizes closer than this to one that failed are not tried
	mtuAgain   = 10 * time.Minute // after that, larger sizes are tried again: the path may have changed (RFC 8899)
	mtuPadding = maxExtension
)

// mtuSearch finds the largest IP packet a path carries. It pads packets of data, which are sent again without padding
// if they are lost, so a search costs nothing but a little delay. Sizes double towards the limit first, since most
// paths carry 1,500 bytes, and are halved after a failure.
type mtuSearch struct {
	size   int     // carried
	limit  int     // the largest that is not known to fail
	want   int     // being tried; zero: nothing to try
	losses int     // of probes of that size
	out    bool    // a probe is in flight
	again  instant // when to start over with larger sizes; zero: never
	begun  bool    // a packet was acknowledged, so the path works
}

// reset starts over, for a new path.
func (m *mtuSearch) reset() { *m = mtuSearch{size: minMTU, limit: maxMTU} }

// works tells that a packet went through; probing starts with the first one.
func (m *mtuSearch) works() {
	if !m.begun {
		m.begun = true
		m.choose()
	}
}

func (m *mtuSearch) choose() {
	m.losses, m.want = 0, 0
	switch {
	case m.size >= m.limit:
	case m.limit == maxMTU:
		m.want = min(m.size+mtuPadding, maxMTU)
	case m.limit-m.size >= mtuStep:
		m.want = m.size + (m.limit-m.size+1)/2
	}
}

// padding returns the padding that makes a packet of the given IP size a probe, and whether to send it as one.
func (m *mtuSearch) padding(now instant, ipSize int) (int, bool) {
	if m.again != 0 && now >= m.again {
		m.again, m.limit = 0, maxMTU
		m.choose()
	}
	if m.out || m.want == 0 || ipSize > m.want || m.want-ipSize > mtuPadding {
		return 0, false
	}
	m.out = true
	return m.want - ipSize, true
}

// carried tells that a probe arrived.
func (m *mtuSearch) carried(now instant, size int) {
	m.out = false
	if size <= m.size {
		return
	}
	m.size = size
	m.choose()
	m.rest(now)
}

// lost tells that a probe was lost. certain says that the host itself refused to send it.
func (m *mtuSearch) lost(now instant, size int, certain bool) {
	m.out = false
	if size != m.want {
		return
	}
	if m.losses++; m.losses >= mtuProbes || certain {
		m.limit = size - 1
		m.choose()
		m.rest(now)
	}
}

// shrink tells that packets larger than the smallest do not pass any more. What carried before is tried again: it may
// have been an outage.
func (m *mtuSearch) shrink() {
	m.limit, m.size = max(m.size, minMTU), minMTU
	m.out, m.again = false, 0
	m.choose()
}

func (m *mtuSearch) rest(now instant) {
	if m.want == 0 && m.size < maxMTU {
		m.again = now.add(mtuAgain)
	}
}
