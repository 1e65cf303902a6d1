package portmap

import "time"

// epoch is one reading of a gateway's clock, the seconds since it last lost its mappings.
type epoch struct {
	seconds uint32
	at      time.Time // by our wall clock, which goes on while the host sleeps; zero: the protocol has no epoch
}

// readEpoch notes what a response that arrived at now said.
func readEpoch(seconds uint32, now time.Time) epoch { return epoch{seconds, now.Round(0)} }

// lostSince reports whether a gateway that speaks p has lost its mappings between two readings. A step of our own clock
// looks the same, and costs one renewal.
func (p Protocol) lostSince(before, after epoch) bool {
	if before.at.IsZero() || after.at.IsZero() {
		return false
	}
	client := int64(after.at.Sub(before.at) / time.Second)
	server := int64(after.seconds) - int64(before.seconds)
	if p == NATPMP { // RFC 6886, 3.6
		return server < client-client/8-2
	}
	// RFC 6887, 8.5
	return server < -1 || client+2 < server-server/16 || server+2 < client-client/16
}
