// Package control is how the commands talk to a running omegatun: JSON over HTTP on a unix socket.
//
//	GET  /v1/status                       a Status
//	GET  /v1/events                       Events, one object a line, until either side ends
//	POST /v1/up     {"peers":[key]}       the Events of these peers, until each is connected or has failed
//	POST /v1/wait   {"peer","timeout_ms"} empty when the peer, or without one the DHT, is reachable
//	POST /v1/ping   {"peer",…}            Pongs, one object a line
//	POST /v1/explain {"peer","timeout_ms"} Steps of an attempt to connect, and the Attempt as the last line
//	POST /v1/reload                       empty when the configuration has been read again
//	POST /v1/down                         empty when everything on the host is undone
//
// An error is an object {"schema":1,"event":"error","code","reason","try"}: the whole answer with a status of 400 or
// more, or the last line of a stream.
//
// The socket has mode 0660, and the server looks at who is at the other end: root, the user it runs as, and its
// group may talk to it. On systems that do not tell, the socket's mode is all there is.
package control

import (
	"context"
	"net/netip"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// Schema is the version of every object that this package writes. Fields are only ever added.
const Schema = 1

// Daemon is what a [Server] serves. Methods are called from several goroutines at once and end early, with an error,
// when ctx ends. Errors that are [exit.Error]s reach the other end as they are.
type Daemon interface {
	// Status describes the daemon now.
	Status(ctx context.Context) (*Status, error)
	// Events calls emit for what happened so far that still holds, and then for what happens. It returns nil
	// when the daemon stops.
	Events(ctx context.Context, emit func(Event) error) error
	// Up admits and dials peers, until the daemon stops. It calls emit for the outcome of each and returns then.
	Up(ctx context.Context, peers []key.Public, emit func(Event) error) error
	// Wait returns when the peer is connected; for the zero key, when the daemon can be found by its peers. If ctx
	// ends first, the error says why that is so.
	Wait(ctx context.Context, peer key.Public) error
	// Ping measures the way to a peer through the tunnel, and calls emit for each answer and each lack of one.
	Ping(ctx context.Context, ping Ping, emit func(Pong) error) error
	// Explain connects to a peer, listed or not, and calls emit for each step as it is made, and then with what came of
	// it; or, if there is a connection, with the account of how it came about. Failure to connect is no error.
	Explain(ctx context.Context, peer key.Public, timeout time.Duration, emit func(Step) error) (*Attempt, error)
	// Reload reads the configuration again and applies what can be applied while running.
	Reload(ctx context.Context) error
	// Down stops the daemon. It returns when everything on the host is undone.
	Down(ctx context.Context) error
}

// Status is a description of the daemon.
type Status struct {
	Schema int          `json:"schema"`
	Self   Self         `json:"self"`
	Peers  []PeerStatus `json:"peers"` // in the order of the configuration; never nil
}

// Self is this machine.
type Self struct {
	Key       key.Public `json:"key"`
	Name      string     `json:"name"`
	IPv6      netip.Addr `json:"ipv6"`
	IPv4      netip.Addr `json:"ipv4"`  // zero: goes without, see Notes
	State     State      `json:"state"` // "starting", "up", "offline", "stopping"
	NAT       string     `json:"nat"`   // "unknown", "open", "consistent", "random"
	DHT       DHT        `json:"dht"`
	Interface Interface  `json:"interface"`
	PID       int        `json:"pid"`
	UptimeMS  int64      `json:"uptime_ms"`
	Notes     []string   `json:"notes,omitempty"` // what a person should know, such as an address that is left out
	Relay     *Relay     `json:"relay,omitempty"` // what is relayed for others; nil: this machine is no relay
	// Mapped is the router's address and port that it forwards to this machine; left out: none.
	Mapped netip.AddrPort `json:"mapped,omitzero"`
}

// Relay is what a relay does.
type Relay struct {
	Clients int    `json:"clients"` // keys that are connected
	Waiting int    `json:"waiting"` // for their peer
	Links   int    `json:"links"`   // pairs that are relayed
	Paired  uint64 `json:"paired"`  // since the start
	Packets uint64 `json:"packets"` // passed on
	Bytes   uint64 `json:"bytes"`
}

// State is how a daemon, or the way to a peer, is doing.
type State string

// DHT is this machine's place in the network.
type DHT struct {
	Nodes      int            `json:"nodes"` // known to it
	Persistent bool           `json:"persistent"`
	Address    netip.AddrPort `json:"address"` // as others see it; zero: not known
}

// Interface is the network interface.
type Interface struct {
	Name string `json:"name"`
	MTU  int    `json:"mtu"`
}

// PeerStatus is one peer.
type PeerStatus struct {
	Key     key.Public        `json:"key"`
	Name    string            `json:"name"`
	IPv6    netip.Addr        `json:"ipv6"`
	IPv4    netip.Addr        `json:"ipv4"`             // zero: goes without
	State   State             `json:"state"`            // "idle", "connecting", "connected", "failed"
	Reason  string            `json:"reason,omitempty"` // why the last attempt failed
	Path    *Path             `json:"path"`             // nil: none
	RxBytes uint64            `json:"rx_bytes"`
	TxBytes uint64            `json:"tx_bytes"`
	Dropped map[string]uint64 `json:"dropped"` // packets, by reason; never nil

	Suite     string     `json:"suite,omitempty"`        // cipher of the connection
	KeyAgeMS  int64      `json:"key_age_ms,omitempty"`   // of the keys in use
	Announced *Announced `json:"announced,omitempty"`    // what the peer says about itself
	Last      *Attempt   `json:"last_attempt,omitempty"` // to connect, in either direction; without Steps
}

// Announced is what a peer says about itself. It is authentic, and configures nothing.
type Announced struct {
	Version   string       `json:"version,omitempty"`
	Name      string       `json:"name,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"` // virtual ones
	MTU       int          `json:"mtu,omitempty"`
	Relaying  bool         `json:"relaying,omitempty"` // for this machine
	Relays    []key.Public `json:"relays,omitempty"`   // that it can use
}

// Attempt is the account of one attempt to connect.
type Attempt struct {
	Schema    int        `json:"schema"`
	Event     string     `json:"event"` // "attempt"
	Peer      key.Public `json:"peer"`
	AgoMS     int64      `json:"ago_ms"`    // since it began
	Incoming  bool       `json:"incoming"`  // the peer began it
	LocalNAT  string     `json:"local_nat"` // "unknown", "open", "consistent", "random"
	RemoteNAT string     `json:"remote_nat"`
	Strategy  string     `json:"strategy,omitempty"` // what is done about that pair of NATs
	State     State      `json:"state"`              // "connecting", "connected", "failed"
	TookMS    float64    `json:"took_ms"`            // until it was connected, or had failed
	Path      *Path      `json:"path"`               // in use; nil: none
	Code      exit.Code  `json:"code,omitempty"`     // why it failed, Reason too
	Reason    string     `json:"reason,omitempty"`
	Remedy    string     `json:"remedy,omitempty"` // what could be done about it, or about a path through a relay
	Steps     []Step     `json:"steps,omitempty"`
}

// Step is one thing that happened in an attempt to connect.
type Step struct {
	Schema  int     `json:"schema"`
	Event   string  `json:"event"`    // "step"
	AfterMS float64 `json:"after_ms"` // since the attempt began
	Stage   string  `json:"stage"`    // "find", "handshake", "path"
	Text    string  `json:"text"`     // for people
}

// Path is the way that packets take to a peer.
type Path struct {
	Kind       string         `json:"kind"` // "direct", "lan", "relay"
	Remote     netip.AddrPort `json:"remote"`
	Relay      *key.Public    `json:"relay"` // nil: none
	MTU        int            `json:"mtu"`
	RTTMS      float64        `json:"rtt_ms"`       // 0: not measured yet
	LastAuthMS int64          `json:"last_auth_ms"` // since the last authentic datagram
	Mapped     bool           `json:"mapped"`       // it leads through a port that one of the two routers forwards
}

// Event is something that happened. Which fields are set depends on Event:
//
//	interface  Name, MTU, IPv6, IPv4
//	listening  Key: peers can find this machine
//	peer       Key, PeerName, State; "connected": Path, Remote, MS; "failed", "disconnected": Code, Reason, Try
//	note       Reason, Try: what a person should know
//	down       nothing
type Event struct {
	Schema   int            `json:"schema"`
	Event    string         `json:"event"`
	Name     string         `json:"name,omitzero"`
	MTU      int            `json:"mtu,omitzero"`
	IPv6     netip.Addr     `json:"ipv6,omitzero"`
	IPv4     netip.Addr     `json:"ipv4,omitzero"`
	Key      key.Public     `json:"key,omitzero"`
	PeerName string         `json:"peer_name,omitzero"`
	State    State          `json:"state,omitzero"`
	Path     string         `json:"path,omitzero"`
	Remote   netip.AddrPort `json:"remote,omitzero"`
	MS       float64        `json:"ms,omitzero"` // from dialling to connected
	Code     exit.Code      `json:"code,omitzero"`
	Reason   string         `json:"reason,omitzero"`
	Try      string         `json:"try,omitzero"`
}

// Ping asks for a measurement.
type Ping struct {
	Peer       key.Public `json:"peer"`
	Count      int        `json:"count"`       // 0: until the caller ends it
	IntervalMS int64      `json:"interval_ms"` // between requests
	TimeoutMS  int64      `json:"timeout_ms"`  // for each answer, and for a way to be found at all
}

// maxPingMS bounds the times of a [Ping], in milliseconds: a day.
const maxPingMS = 24 * 60 * 60 * 1000

// Times returns the times of p, or an [exit.Error] if one of them is not between a millisecond and a day.
func (p Ping) Times() (interval, timeout time.Duration, err error) {
	for _, ms := range []int64{p.IntervalMS, p.TimeoutMS} {
		if ms <= 0 || ms > maxPingMS {
			return 0, 0, exit.New(exit.Usage, "interval and timeout must be between a millisecond and a day")
		}
	}
	return time.Duration(p.IntervalMS) * time.Millisecond, time.Duration(p.TimeoutMS) * time.Millisecond, nil
}

// Pong is one answer, or with Lost the lack of one.
type Pong struct {
	Schema int            `json:"schema"`
	Event  string         `json:"event"` // "pong", "lost"
	Seq    int            `json:"seq"`   // from 1
	RTTMS  float64        `json:"rtt_ms,omitzero"`
	Path   string         `json:"path,omitzero"`
	Remote netip.AddrPort `json:"remote,omitzero"`
}
