package udx

import "time"

const (
	quietTime = 5 * time.Second // without a packet of the peer until it is asked for a sign of life
	quietAsk  = time.Second     // until it is asked again
)

// quiet notices that the peer has gone where nothing else would: our direction has ended and all of it is acknowledged, so nothing
// is ever sent that the peer would have to answer. Then a silent peer is asked with heartbeats. It is given as much time
// as one that does not acknowledge data. It is part of a Stream and guarded by its lock.
type quiet struct {
	at    instant // of the next look; zero: none is due
	asked instant // the last time
	count int     // heartbeats without an answer
}

// look decides what to do at time now about a peer of which the last packet came at heard: ask it, or give it up.
func (q *quiet) look(now, heard instant) (ask, gone bool) {
	if heard >= q.asked {
		q.count = 0
	}
	switch silent := now.sub(heard); {
	case silent < quietTime:
		q.at = heard.add(quietTime)
		return false, false
	case q.count >= giveUpCount && silent >= giveUpAfter:
		return false, true
	}
	q.asked, q.at = now, now.add(quietAsk)
	q.count++
	return true, false
}

// onlyReceivesLocked reports whether all that is left to do is to receive.
func (s *Stream) onlyReceivesLocked() bool { return s.sender.ended && !s.assembly.ended && !s.closing }
