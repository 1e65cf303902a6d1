package dht

// Stats counts what a node did since it started.
type Stats struct {
	Answered uint64 // requests of ours that were answered
	Lost     uint64 // requests of ours that were not, however often they were sent
	Requests uint64 // of others
	Limited  uint64 // of these, dropped because their host asks too much

	Forwarded uint64 // messages between peers, passed on

	Received, ReceivedBytes uint64 // datagrams that are messages of the protocol; UDP payload
	Sent, SentBytes         uint64
}

func (s *Stats) received(size int) {
	s.Received++
	s.ReceivedBytes += uint64(size)
}

// Stats returns what the node has done so far.
func (n *Node) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.stats
	s.Answered, s.Lost = uint64(n.responses), uint64(n.timeouts)
	return s
}
